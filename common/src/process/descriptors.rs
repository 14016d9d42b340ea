//! The limit of open files and connections of the process (RLIMIT_NOFILE).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard limit, and returns the hard limit.
///
/// The soft limit is usually 1024, for programs that use select(2). The daemons do not use it.
///
/// # Errors
/// The kernel refuses. The limit is then unchanged.
pub fn raise() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // A sandbox may forbid setrlimit. The service manager has then set both limits to the same value.
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
