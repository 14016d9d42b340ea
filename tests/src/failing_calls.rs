//! Storage that lacks an operation, without a special file system: a system call of the node always fails.

use std::{io, os::unix::process::CommandExt, process::Command};

use nix::{errno::Errno, libc};

/// A system call and its error.
#[derive(Clone, Copy, Debug)]
pub struct FailingCall {
    number: libc::c_long,
    errno: Errno,
}

impl FailingCall {
    /// As on storage without fsync.
    pub fn fsync() -> Self {
        Self { number: libc::SYS_fsync, errno: Errno::EINVAL }
    }

    /// As on storage that cannot replace a file.
    pub fn rename() -> Self {
        Self { number: libc::SYS_renameat, errno: Errno::EBUSY }
    }

    /// As on a network file system: no RENAME_NOREPLACE.
    pub fn rename_without_replacing() -> Self {
        Self { number: libc::SYS_renameat2, errno: Errno::EINVAL }
    }

    /// As on storage without hard links.
    pub fn hard_link() -> Self {
        Self { number: libc::SYS_linkat, errno: Errno::EPERM }
    }

    /// As on a full disk.
    pub fn full_disk() -> Self {
        Self { number: libc::SYS_fsync, errno: Errno::ENOSPC }
    }
}

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Prepares a command so that these calls fail in its process (seccomp).
pub(crate) fn install(command: &mut Command, calls: &[FailingCall]) {
    // The number of the system call is the first field of seccomp_data.
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        let is_it = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call.number as u32);
        filter.push(libc::sock_filter { jf: 1, ..is_it });
        let error = libc::SECCOMP_RET_ERRNO | call.errno as u32;
        filter.push(statement(libc::BPF_RET | libc::BPF_K, error));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    // SAFETY: between fork and exec there are only system calls, on memory of the closure.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            // `program` and the filter live until the call returns, and the kernel copies them.
            let is_set = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
                    == 0;
            if is_set { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
}
