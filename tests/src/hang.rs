//! Storage that hangs, without root and without a special file system. The kernel passes every `openat2`
//! of the node to the test (seccomp user notifications). The test delays its response to calls below one
//! directory. To the node, the system call hangs.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt, net::UnixStream, process::CommandExt},
    },
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// A directory in a node's home that hangs until [`Hang::release`].
pub struct Hang {
    /// Path relative to the home.
    directory: String,
    state: Mutex<HangState>,
}

#[derive(Default)]
struct HangState {
    listener: Option<Arc<OwnedFd>>,
    /// Hanging calls, by the kernel's number.
    held: Vec<u64>,
    is_released: bool,
}

impl Hang {
    /// Calls at and below `directory` will hang.
    pub fn below(directory: &str) -> Arc<Self> {
        Arc::new(Self { directory: directory.to_owned(), state: Mutex::default() })
    }

    /// Number of calls that hang now.
    pub fn held(&self) -> usize {
        self.state().held.len()
    }

    /// Lets all hanging and later calls proceed.
    pub fn release(&self) {
        let mut state = self.state();
        state.is_released = true;
        let held = std::mem::take(&mut state.held);
        if let Some(listener) = &state.listener {
            for id in held {
                go_on(listener, id);
            }
        }
    }

    /// Prepares a command so that its process passes its calls to the test. The result must be passed to
    /// [`Self::supervise`] after the process has started.
    ///
    /// # Panics
    /// The sockets cannot be created.
    pub(crate) fn prepare(command: &mut Command) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        // SAFETY: between fork and exec there are only system calls, on memory of the stack and of the
        // closure.
        unsafe {
            command.pre_exec(move || {
                let listener = install_filter()?;
                let descriptors = [listener.as_raw_fd()];
                let message = [ControlMessage::ScmRights(&descriptors)];
                let bytes = [io::IoSlice::new(b"f")];
                sendmsg::<()>(theirs.as_raw_fd(), &bytes, &message, MsgFlags::empty(), None)?;
                Ok(())
            });
        }
        ours
    }

    /// Responds to the process's calls from now on, on a thread that ends with the process.
    ///
    /// # Panics
    /// The process has not sent the descriptor of its filter.
    pub(crate) fn supervise(self: &Arc<Self>, socket: &UnixStream) {
        let listener = Arc::new(receive_descriptor(socket).expect("the process sends its listener"));
        self.state().listener = Some(Arc::clone(&listener));
        let hang = Arc::clone(self);
        thread::spawn(move || {
            while let Some(call) = next_call(&listener) {
                // Locked until the call is registered, so that no release misses it.
                let mut state = hang.state();
                if !state.is_released && hang.concerns(&call) {
                    state.held.push(call.id);
                } else {
                    go_on(&listener, call.id);
                }
            }
        });
    }

    fn concerns(&self, call: &libc::seccomp_notif) -> bool {
        let mut path = [0; 256];
        let Ok(memory) = File::open(format!("/proc/{}/mem", call.pid)) else { return false };
        let read = memory.read_at(&mut path, call.data.args[1]).unwrap_or(0);
        let path = path[..read].split(|byte| *byte == 0).next().unwrap_or_default();
        let path = path.strip_prefix(b"./").unwrap_or(path);
        let below = path.strip_prefix(self.directory.as_bytes());
        below.is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
    }

    fn state(&self) -> MutexGuard<'_, HangState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes every `openat2` of this process to the returned descriptor. Async-signal-safe.
fn install_filter() -> io::Result<OwnedFd> {
    const fn statement(code: u32, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
    }
    let filter = [
        // The number of the system call is the first field of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_openat2 as u32)
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: prctl takes integers. `program` and the filter that it points to live until the call
    // returns, and the kernel copies them.
    let descriptor = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    match RawFd::try_from(descriptor) {
        // SAFETY: the kernel has just created this descriptor for this process.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut bytes = [io::IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!(RawFd);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let [descriptor] = descriptors[..]
        {
            // SAFETY: the kernel has just installed this descriptor in this process, and no other code
            // uses it.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The next call. `None`: the process has ended.
fn next_call(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    loop {
        // SAFETY: all bits zero is a valid value of this structure of integers. The kernel requires it.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        let mut poll = libc::pollfd { fd: listener.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` and `call` are valid structures, and the count is 1.
        unsafe {
            if libc::poll(&mut poll, 1, -1) > 0 && poll.revents & libc::POLLIN == 0 {
                return None;
            }
            // An error means that the caller was killed in the meantime.
            if libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) == 0 {
                return Some(call);
            }
        }
    }
}

/// Lets a call proceed normally. Fails only if the caller is gone, which does not matter.
fn go_on(listener: &OwnedFd, id: u64) {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: `answer` is a valid structure of the type that this ioctl takes.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer);
    }
}
