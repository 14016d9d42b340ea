//! How many files and connections the process may have open (RLIMIT_NOFILE).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard limit, and returns that.
///
/// The soft limit is 1024 almost everywhere, for programs that use select(2). These daemons do not.
///
/// # Errors
/// As the kernel says; the limit is then what it was.
pub fn raise() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // A sandbox may forbid setrlimit; the service manager has set both limits then.
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
