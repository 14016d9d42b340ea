//! Where this process runs, as the registry compares it.

use std::fs;

/// What only one living process can have: this host since it booted, its network namespace, and the control
/// addresses there, which this process has bound. `boot_id` is used where the kernel's cannot be read.
/// `None` if the host or the namespace is not known.
pub fn of_process(boot_id: Option<&str>, control: &str) -> Option<String> {
    let kernels = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    // systemd writes it without the kernel's hyphens.
    let boot_id = kernels.as_deref().or(boot_id)?.trim().replace('-', "");
    // `net:[4026531840]`: no other namespace has the number as long as a process is in this one.
    let network = fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{boot_id} {} {control}", network.display()))
}

/// The host's name, for people. Empty if it is not UTF-8.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}
