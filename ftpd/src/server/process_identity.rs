//! The identity of this process: its host's boot, its network namespace and its control addresses.

use std::fs;

/// A text that no two live processes share: the host's boot id, the network namespace, and the control
/// addresses, which only one process can bind. The registry compares it to detect that an earlier process
/// is gone. `boot_id` is used if the kernel's boot id cannot be read. `None` if neither is known, or the
/// namespace is unknown.
pub(super) fn of_process(boot_id: Option<&str>, control: &str) -> Option<String> {
    let from_kernel = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    // systemd writes the boot id without the kernel's hyphens.
    let boot_id = from_kernel.as_deref().or(boot_id)?.trim().replace('-', "");
    // `net:[4026531840]`: the number is unique as long as a process is in the namespace.
    let network = fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{boot_id} {} {control}", network.display()))
}

/// The host's name, for display only. Empty if it is not UTF-8.
pub(super) fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}
