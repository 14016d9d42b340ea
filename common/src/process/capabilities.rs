//! Giving up capabilities that are not needed after the start.
//!
//! On Linux each thread has its own capabilities (capabilities(7)), so each thread gives up its own:
//! threads of the runtime when they start, the thread of `main` when the sockets are bound. `ftp-relay` may
//! have one thread that keeps CAP_NET_ADMIN, to run `nft`.

use std::io;

/// The capabilities that a daemon keeps if it runs as root. Without them root could not use the files of
/// other users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Reading and changing files of other users: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
    Files,
    /// Reading files of other users: CAP_DAC_READ_SEARCH.
    ReadFiles,
    /// No capability.
    Nothing,
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
            Self::Nothing => 0,
        }
    }
}

/// Returns true if the process runs as root, which no daemon needs.
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
    let kept = if is_root() { kept_by_root.bits() } else { 0 };
    change(|set, half| {
        let kept = (kept >> (32 * half)) as u32;
        set.permitted &= kept;
        set.effective &= kept;
        // The kernel reduces the ambient set to this set.
        set.inheritable = 0;
    })
}

/// Gives up all capabilities of this thread except CAP_NET_ADMIN. Programs that the thread executes inherit
/// it.
///
/// # Errors
/// EPERM: the thread does not have CAP_NET_ADMIN.
pub fn keep_network_administration() -> io::Result<()> {
    /// Of linux/capability.h. It is in the lower half of the sets.
    const NET_ADMIN: u32 = 12;
    change(|set, half| {
        let kept = if half == 0 { 1 << NET_ADMIN } else { 0 };
        set.permitted &= kept;
        set.effective = set.permitted;
        set.inheritable = set.permitted;
    })?;
    let (number, unused): (libc::c_ulong, libc::c_ulong) = (NET_ADMIN.into(), 0);
    let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
    // SAFETY: this option takes integers only (PR_CAP_AMBIENT(2const)).
    match unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, number, unused, unused) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Changes the capability sets of this thread. Each set has two halves of 32 bits.
fn change(new: impl Fn(&mut CapabilitySets, usize)) -> io::Result<()> {
    let mut header = CapabilityHeader { version: VERSION_3, thread: 0 };
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: version 3 reads a header and writes two elements (capget(2)). Both have C's layout and live
    // during the call.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    sets.iter_mut().enumerate().for_each(|(half, set)| new(set, half));
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

    fn field<'s>(status: &'s str, name: &str) -> &'s str {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim()
    }

    fn set(status: &str, name: &str) -> u64 {
        u64::from_str_radix(field(status, name), 16).unwrap()
    }

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
        let most = if is_root() { Kept::ReadFiles.bits() } else { 0 };
        assert_eq!((set(&status, "CapEff:") & !most, set(&status, "CapPrm:") & !most), (0, 0), "{status}");
        assert_eq!((set(&status, "CapInh:"), set(&status, "CapAmb:")), (0, 0), "{status}");
        assert_eq!(field(&status, "NoNewPrivs:"), "1");
    }

    #[test]
    fn a_program_of_the_network_thread_has_net_admin_if_the_thread_had_it_and_nothing_else() {
        let status = std::thread::spawn(|| {
            forbid_new().unwrap();
            let has = set(&std::fs::read_to_string("/proc/thread-self/status").unwrap(), "CapPrm:") >> 12 & 1;
            assert_eq!(keep_network_administration().is_ok(), has == 1);
            let output = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            (has << 12, String::from_utf8(output.stdout).unwrap())
        });
        let (wanted, status) = status.join().unwrap();
        assert_eq!((set(&status, "CapEff:"), set(&status, "CapPrm:")), (wanted, wanted), "{status}");
    }
}
