//! Giving up root's powers, once what needed them is done.
//!
//! Linux keeps capabilities by thread (capabilities(7)): every thread gives up its own. The runtime's
//! threads do it as they start; the thread of `main` when the sockets are bound.

use std::io;

/// What a daemon that somebody runs as root keeps: without it root could not use files of others,
/// which it was given root for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Reading and changing files of others: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
    Files,
    /// Reading them: CAP_DAC_READ_SEARCH.
    ReadFiles,
}

impl Kept {
    /// Numbers of linux/capability.h.
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

/// Whether the process has a power that neither daemon needs.
pub fn is_root() -> bool {
    // SAFETY: takes nothing, and cannot fail (geteuid(2)).
    unsafe { libc::geteuid() == 0 }
}

/// No program that this process might run gets more power than it has, by set-user-ID bits or file
/// capabilities. For this thread and those that it starts.
///
/// # Errors
/// The kernel refuses, which none since Linux 3.5 does.
pub fn forbid_new() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this option takes numbers alone (PR_SET_NO_NEW_PRIVS(2const)).
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes all capabilities from this thread, for good; a thread of root keeps `kept_by_root`.
///
/// # Errors
/// The kernel refuses, which it does not where capabilities are only given up.
pub fn give_up(kept_by_root: Kept) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, thread: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: version 3 reads a header and writes two elements (capget(2)); both are of C's layout,
    // and live during the call.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let kept = if is_root() { kept_by_root.bits() } else { 0 };
    for (set, kept) in sets.iter_mut().zip([kept as u32, (kept >> 32) as u32]) {
        set.permitted &= kept;
        set.effective &= kept;
        // The ambient set is never more than this one.
        set.inheritable = 0;
    }
    // SAFETY: as above; the kernel reads both.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// [`give_up`] for threads of the runtime, which have nobody to tell an error to: a process that
/// cannot give up its powers does not serve.
pub fn give_up_or_end(kept_by_root: Kept) {
    if let Err(error) = give_up(kept_by_root) {
        log::error!("cannot give up capabilities: {error}");
        std::process::exit(1);
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits, in two halves.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    /// 0 is the calling one.
    thread: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_gave_up_has_nothing_but_what_root_keeps() {
        let status = std::thread::spawn(|| {
            forbid_new().unwrap();
            give_up(Kept::ReadFiles).unwrap();
            // A second time there is nothing to give up.
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
