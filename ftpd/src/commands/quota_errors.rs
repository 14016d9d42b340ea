//! The replies to operations that a quota does not permit.

use crate::{
    limits::quota::QuotaError,
    protocol::{Code, Failure, Reply},
};

impl From<QuotaError> for Reply {
    fn from(error: QuotaError) -> Self {
        let detail = error.to_string();
        match error {
            QuotaError::Exceeded { .. } | QuotaError::UsedUp => {
                Self::new(Code::QUOTA_EXCEEDED, "Quota exceeded")
                    .because(Failure::with_detail("quota", detail))
            }
            QuotaError::Counting => {
                Self::new(Code::FILE_BUSY, "Your files are being counted; try again later")
                    .because("quota_counting")
            }
            QuotaError::RegistryAway => {
                Self::new(Code::FILE_BUSY, "Uploads are not possible at this time; try again later")
                    .because(Failure::with_detail("registry_away", detail))
            }
        }
    }
}
