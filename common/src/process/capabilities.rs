//! Giving up capabilities that are not needed after the start.
//!
//! On Linux each thread has its own capabilities (capabilities(7)), so each thread gives up its own:
//! threads of the runtime when they start, the thread of `main` when the sockets are bound.

use std::io;

/// The capabilities that a daemon keeps if it runs as root. Without them root could not use the files of
/// other users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Reading and changing files of other users: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
    Files,
    /// Reading files of other users: CAP_DAC_READ_SEARCH.
    ReadFiles,
}

impl Kept {
    /// The capabilities as bits. The numbers are those of linux/capability.h.
    fn bits(self) -> u64 {
        const DAC_OVERRIDE: u64 = 1 << 1;
        const DAC_READ_SEARCH: u64 = 1 << 2;
        const FOWNER: u64 = 1 << 3;
        match self {
            Self::Files => DAC_OVERRIDE | DAC_READ_SEARCH | FOWNER,
            Self::ReadFiles => DAC_READ_SEARCH,
        }
    }
}

/// Returns true if the process runs as root, which neither daemon needs.
pub fn is_root() -> bool {
    // SAFETY: geteuid(2) takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Sets `no_new_privs` for this thread and those that it starts: programs that they execute get
/// no privileges from set-user-ID bits or file capabilities.
///
/// # Errors
/// The kernel is older than Linux 3.5.
pub fn forbid_new() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this option takes integers only (PR_SET_NO_NEW_PRIVS(2const)).
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives up all capabilities of this thread permanently. A thread of root keeps `kept_by_root`.
///
/// # Errors
/// The kernel refuses. It never does if capabilities are only given up.
pub fn give_up(kept_by_root: Kept) -> io::Result<()> {
    let mut header = CapabilityHeader { version: VERSION_3, thread: 0 };
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: version 3 reads a header and writes two elements (capget(2)). Both have C's layout and live
    // during the call.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let kept = if is_root() { kept_by_root.bits() } else { 0 };
    for (set, kept) in sets.iter_mut().zip([kept as u32, (kept >> 32) as u32]) {
        set.permitted &= kept;
        set.effective &= kept;
        // The kernel reduces the ambient set to this set.
        set.inheritable = 0;
    }
    // SAFETY: as above, but the kernel reads both.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// [`give_up`] for threads of the runtime, which cannot return an error. The process ends if the kernel
/// refuses.
pub fn give_up_or_end(kept_by_root: Kept) {
    if let Err(error) = give_up(kept_by_root) {
        log::error!("cannot give up capabilities: {error}");
        std::process::exit(1);
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits in two halves.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    /// 0 means the calling thread.
    thread: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_no_capabilities_but_those_that_root_keeps() {
        let status = std::thread::spawn(|| {
            forbid_new().unwrap();
            give_up(Kept::ReadFiles).unwrap();
            // Giving up twice is allowed.
            give_up(Kept::ReadFiles).unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let status = status.join().unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        let set = |name| u64::from_str_radix(field(name), 16).unwrap();
        let most = if is_root() { Kept::ReadFiles.bits() } else { 0 };
        assert_eq!((set("CapEff:") & !most, set("CapPrm:") & !most), (0, 0), "{status}");
        assert_eq!((set("CapInh:"), set("CapAmb:")), (0, 0), "{status}");
        assert_eq!(field("NoNewPrivs:"), "1");
    }
}
