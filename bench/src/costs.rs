//! CPU time and memory of a server: of all processes that it starts, including ended ones.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// A control group (version 2, or the unified hierarchy beside version 1) in which all processes of
/// a server start. The kernel sums up their CPU time there. Sampling /proc would miss the
/// short-lived processes that some servers start for each session.
pub(crate) struct ControlGroup {
    path: PathBuf,
}

/// Memory of all processes of a control group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Proportional set size in KiB: pages that processes share are counted once.
    pub pss: u64,
    /// The largest resident set of any single process since [`ControlGroup::reset_peak`], in KiB.
    pub peak: u64,
    pub processes: u64,
}

impl ControlGroup {
    /// Creates a control group with this name and the process id of the benchmark.
    ///
    /// # Errors
    /// No cgroup2 file system is mounted, or the user may not create groups in it.
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let unified = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let point = words.next()?;
            (words.next()? == "cgroup2").then(|| PathBuf::from(point))
        });
        let unified = unified.ok_or_else(|| io::Error::other("no cgroup2 is mounted"))?;
        let path = unified.join(format!("ftp-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error} (root is needed)", path.display()))
        })?;
        Ok(Self { path })
    }

    /// The file to which a process writes `0` to join the group.
    pub(crate) fn procs_file(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// CPU time used so far, user and kernel, in seconds.
    ///
    /// # Errors
    /// `cpu.stat` cannot be read.
    pub(crate) fn cpu(&self) -> io::Result<f64> {
        let text = fs::read_to_string(self.path.join("cpu.stat"))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
        usage
            .map(|microseconds| microseconds / 1e6)
            .ok_or_else(|| io::Error::other("cpu.stat has no line usage_usec"))
    }

    /// Memory that the group's processes use now.
    ///
    /// # Errors
    /// The list of the group's processes cannot be read.
    pub(crate) fn memory(&self) -> io::Result<Memory> {
        let mut memory = Memory::default();
        for process in self.processes()? {
            // The process has ended since the list was read.
            let Ok(rollup) = fs::read_to_string(process.join("smaps_rollup")) else { continue };
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            memory.pss += kib(&rollup, "Pss:");
            memory.peak = memory.peak.max(kib(&status, "VmHWM:"));
            memory.processes += 1;
        }
        Ok(memory)
    }

    /// Resets the peak memory of all processes to what they use now.
    ///
    /// # Errors
    /// The kernel does not allow it.
    pub(crate) fn reset_peak(&self) -> io::Result<()> {
        self.processes()?.iter().try_for_each(|process| fs::write(process.join("clear_refs"), "5"))
    }

    fn processes(&self) -> io::Result<Vec<PathBuf>> {
        let text = fs::read_to_string(self.procs_file())?;
        Ok(text.lines().map(|id| Path::new("/proc").join(id)).collect())
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // The kernel needs a moment until killed processes leave the group.
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn kib(text: &str, name: &str) -> u64 {
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok());
    value.unwrap_or(0)
}

/// CPU seconds that the whole machine has been busy since it started.
pub(crate) fn machine_cpu() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<f64> =
        text.lines().next().unwrap_or_default().split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal, in hundredths of a second.
    let busy = numbers.iter().enumerate().filter(|(i, _)| ![3, 4].contains(i) && *i < 8);
    busy.map(|(_, n)| n).sum::<f64>() / 100.0
}

/// CPU seconds that this process has used so far.
///
/// # Errors
/// `getrusage` fails.
pub(crate) fn own_cpu() -> io::Result<f64> {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    };
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}
