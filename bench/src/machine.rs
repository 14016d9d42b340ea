//! Prepares the machine for a run: network namespace, CPU pinning, and the description of both for
//! the results.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};
use serde::Serialize;

/// The passive range of our nodes: enough ports for the largest workload. Each port costs a file
/// descriptor.
pub(crate) const PASSIVE_PORTS: (u16, u16) = (20000, 21499);

/// The conditions of a run, for the results.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Conditions {
    pub cpu: String,
    pub cpus: usize,
    pub memory_gib: u64,
    pub kernel: String,
    /// Network namespace and TCP settings.
    pub network: String,
    pub pinning: String,
    pub files: String,
}

/// The environment in which servers start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    /// The CPU for all servers; `None` if there is only one CPU.
    pub cpu: Option<usize>,
    /// New mounts are visible only to this process and its children.
    pub own_mounts: bool,
}

/// Moves this process into a new network namespace with Linux's defaults, and pins it to a CPU.
/// Processes that it starts inherit the namespace. The caller must not have started any thread yet.
///
/// # Errors
/// The process cannot be pinned to a CPU, or the limit of open files cannot be read or set.
pub(crate) fn prepare(files: &Path) -> io::Result<(Conditions, Placement)> {
    let host_list = allow_cubic();
    let namespaces = own_namespaces();
    let own_mounts = namespaces.is_ok();
    let network = match namespaces.and_then(|()| own_network()) {
        Ok(()) => "own namespace, loopback only, CUBIC, Linux's default buffers".to_owned(),
        Err(error) => {
            let control = fs::read_to_string(CONGESTION_CONTROL).unwrap_or_default();
            format!(
                "no prepared namespace ({error}), congestion control {}: not comparable with other machines",
                control.trim()
            )
        }
    };
    if let Some((list, before)) = host_list {
        // Restores the host's list. The new namespace keeps CUBIC.
        let _ = list.write_all_at(before.as_bytes(), 0);
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
    let (cpu, pinning) = match cpus[..] {
        [servers, client, ..] => {
            bind_to(client)?;
            (Some(servers), format!("servers on CPU {servers}, client on CPU {client}"))
        }
        _ => (None, "no pinning: servers and client share one CPU".to_owned()),
    };
    let conditions = Conditions {
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
        cpus: cpus.len(),
        memory_gib: field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib >> 20),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        network,
        pinning,
        files: file_system(files),
    };
    Ok((conditions, Placement { cpu, own_mounts }))
}

/// Pins the calling thread, and the threads that it starts, to one CPU.
///
/// # Errors
/// This process may not use the CPU.
pub(crate) fn bind_to(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

const ALLOWED_CONGESTION_CONTROLS: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// Adds CUBIC to the host's list of allowed congestion controls, because a new namespace may use
/// only these. Returns the open file and the former list if the list was changed. The file is opened
/// here, because other namespaces cannot open it for writing.
fn allow_cubic() -> Option<(File, String)> {
    let before = fs::read_to_string(ALLOWED_CONGESTION_CONTROLS).ok()?;
    if before.split_whitespace().any(|name| name == "cubic") {
        return None;
    }
    let list = File::options().write(true).open(ALLOWED_CONGESTION_CONTROLS).ok()?;
    list.write_all_at(format!("{} cubic", before.trim()).as_bytes(), 0).ok()?;
    Some((list, before))
}

fn own_namespaces() -> io::Result<()> {
    // The mount namespace is for vsftpd: its file in /etc/pam.d must not be visible to the host.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?)
}

fn own_network() -> io::Result<()> {
    // /proc/sys/net shows the network namespace of the process that opens it. It needs no new mount.
    raise_loopback()?;
    let passive = format!("{}-{}", PASSIVE_PORTS.0, PASSIVE_PORTS.1);
    for (key, value) in [
        ("ipv4/tcp_congestion_control", "cubic"),
        ("ipv4/ip_local_port_range", "10240 65000"),
        // Excludes passive ports: a client connection from such a port would keep nginx from binding it.
        ("ipv4/ip_local_reserved_ports", passive.as_str()),
        ("ipv4/tcp_rmem", "4096 131072 6291456"),
        ("ipv4/tcp_wmem", "4096 16384 4194304"),
        ("core/somaxconn", "4096"),
    ] {
        fs::write(Path::new("/proc/sys/net").join(key), value)
            .map_err(|error| io::Error::new(error.kind(), format!("{key}: {error}")))?;
    }
    Ok(())
}

fn raise_loopback() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: `ifreq` consists of integers and raw pointers. All-zero bytes are valid values of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let socket = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: SIOCSIFFLAGS reads the structure, which lives until the call returns.
    match unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the value of the first line `name : value` of a file in /proc.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Returns the type of the file system that holds `path`.
fn file_system(path: &Path) -> String {
    let mut command = Command::new("stat");
    let output = command.args(["--file-system", "--format=%T"]).arg(path).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
