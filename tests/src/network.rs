//! Hosts with separate networks and mounts: namespaces, without root.

use std::{
    env,
    fs::File,
    net::IpAddr,
    os::{fd::AsRawFd, unix::process::CommandExt},
    panic,
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
};

/// Set in the process with a separate network: a directory in which the process reports that it ran.
const MARK: &str = "CLUSTER_TESTS_OWN_NETWORK";

/// Runs `body`, the whole body of the test `test`, in a process with a separate network and separate
/// mounts, on which it has root's rights.
///
/// # Panics
/// `body` panics, or this machine allows no namespaces.
pub fn with_own_network(test: &str, body: impl FnOnce()) {
    if let Some(directory) = env::var_os(MARK) {
        ip(&["link", "set", "lo", "up"]);
        body();
        File::create(Path::new(&directory).join("done")).expect("a temporary directory takes files");
        return;
    }
    let own = env::current_exe().expect("a running test knows its executable");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount"]);
    let able = command.arg("true").status();
    assert!(
        able.as_ref().is_ok_and(|status| status.success()),
        "this test needs `unshare --user --net --mount`, which does not work here ({able:?}): see \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns and \
         user.max_user_namespaces, or be root"
    );
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "--kill-child", "--fork", "--"]);
    command.arg(own).args(["--exact", test, "--nocapture"]).env(MARK, directory.path());
    // SAFETY: prctl is async-signal-safe, and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
    }
    let status = command.status().expect("unshare was there a moment ago");
    assert!(status.success(), "in a network of its own, {test} failed: see above");
    // If `test` is misspelt, no test runs, and none fails.
    assert!(directory.path().join("done").exists(), "there is no test {test}");
}

/// True in a process that [`with_own_network`] started.
pub(crate) fn is_own() -> bool {
    env::var_os(MARK).is_some()
}

/// A host in the test's networks.
pub struct Host {
    name: &'static str,
    /// Keeps the namespace alive.
    network: File,
}

/// A network for hosts: a bridge.
pub struct Network(String);

impl Network {
    /// # Panics
    /// The kernel refuses.
    pub fn new(name: &str) -> Self {
        ip(&["link", "add", name, "type", "bridge"]);
        ip(&["link", "set", name, "up"]);
        Self(name.to_owned())
    }
}

impl Host {
    /// A host with only a loopback interface.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn new(name: &'static str) -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make networks");
            File::open("/proc/thread-self/ns/net").expect("a thread has a network")
        });
        let host = Self { name, network: made.join().expect("a network was made") };
        host.run("ip", &["link", "set", "lo", "up"]);
        host
    }

    /// Connects the host's `interface` to a network, with these addresses.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn connect(&self, interface: &str, network: &Network, addresses: &[(IpAddr, u8)]) {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let port = format!("port{}", LAST.fetch_add(1, Ordering::Relaxed));
        // A name that contains a slash is a path.
        let netns = format!("/proc/{}/fd/{}", process::id(), self.network.as_raw_fd());
        ip(&["link", "add", &port, "type", "veth", "peer", "name", interface, "netns", &netns]);
        ip(&["link", "set", &port, "master", &network.0, "up"]);
        for (address, prefix) in addresses {
            let address = format!("{address}/{prefix}");
            // The address is unique, so IPv6 duplicate address detection, which takes a second, is skipped.
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            self.run("ip", &[&["addr", "add", &address, "dev", interface], nodad].concat());
        }
        self.run("ip", &["link", "set", interface, "up"]);
    }

    /// Runs a closure in this host's namespaces.
    ///
    /// # Panics
    /// The closure panics.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let entered = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.network, CloneFlags::CLONE_NEWNET).expect("root may enter networks");
                body()
            });
            thread.join()
        });
        entered.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Prepares a command so that its process runs on this host.
    ///
    /// # Panics
    /// There are too many open files.
    pub fn place(&self, command: &mut Command) {
        let network = self.network.try_clone().expect("a file can be opened once more");
        // SAFETY: setns is only a system call, and nothing is allocated between fork and exec.
        unsafe {
            command.pre_exec(move || Ok(setns(&network, CloneFlags::CLONE_NEWNET)?));
        }
    }

    /// Runs a program on this host and returns its output.
    ///
    /// # Panics
    /// The program is not installed, or fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments);
        self.place(&mut command);
        output(self.name, command)
    }
}

fn ip(arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    command.args(arguments);
    output("the networks", command)
}

fn output(whose: &str, mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{whose}: {command:?}: {error}; ./dev test installs what the tests need")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{whose}: {command:?} failed: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
