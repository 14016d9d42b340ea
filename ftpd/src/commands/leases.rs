//! The replies to commands that get no lease on their paths.

use common::registry::{Conflict, LeaseRefused};

use crate::{
    failure::Failure,
    protocol::{Code, Reply},
};

/// 450: another session has a lease on one of the paths, or the registry is away.
pub fn refused(refused: &LeaseRefused) -> Reply {
    match refused {
        LeaseRefused::Busy { holder, conflict } => {
            let text = match conflict {
                Conflict::Same => "Another session writes this file",
                Conflict::Below => "A file below is being written",
                Conflict::Above => "Another session renames or removes a directory above",
            };
            let failure = Failure { holder: *holder, ..Failure::from("write_lease") };
            Reply::new(Code::FILE_BUSY, text).because(failure)
        }
        LeaseRefused::RegistryAway => {
            let failure = Failure {
                detail: Some("Redis is away, and registry_away = \"refuse\"".into()),
                ..Failure::from("registry_away")
            };
            Reply::new(Code::FILE_BUSY, "Uploads are not possible at this time; try again later")
                .because(failure)
        }
    }
}
