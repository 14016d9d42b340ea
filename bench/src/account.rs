//! What processes cost: CPU time and memory of all that a server starts, those that have ended
//! included.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// A control group (version 2, or its hierarchy beside version 1) that a server's processes are
/// born into. The kernel counts in it what each of them ever used; sampling /proc would miss the
/// processes that some servers start for every session.
pub struct Group {
    path: PathBuf,
}

/// Memory of all processes of a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// KiB; what processes share is counted once.
    pub pss: u64,
    /// KiB; the most that any one process had in RAM since [`Group::forget_peak`].
    pub peak: u64,
    pub processes: u64,
}

impl Group {
    /// # Errors
    /// There is no such hierarchy, or this user may not use it.
    pub fn create(name: &str) -> io::Result<Self> {
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

    /// Where a process writes `0` to become part of the group.
    pub fn entrance(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// CPU time so far, in seconds: user and kernel.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn cpu(&self) -> io::Result<f64> {
        let text = fs::read_to_string(self.path.join("cpu.stat"))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
        usage.map(|microseconds| microseconds / 1e6).ok_or_else(|| io::Error::other("no usage_usec"))
    }

    /// # Errors
    /// The kernel does not tell.
    pub fn memory(&self) -> io::Result<Memory> {
        let mut memory = Memory::default();
        for process in self.processes()? {
            // One that has ended since has no memory.
            let Ok(rollup) = fs::read_to_string(process.join("smaps_rollup")) else { continue };
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            memory.pss += kib(&rollup, "Pss:");
            memory.peak = memory.peak.max(kib(&status, "VmHWM:"));
            memory.processes += 1;
        }
        Ok(memory)
    }

    /// From now on the peak is a new one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_peak(&self) -> io::Result<()> {
        self.processes()?.iter().try_for_each(|process| fs::write(process.join("clear_refs"), "5"))
    }

    fn processes(&self) -> io::Result<Vec<PathBuf>> {
        let text = fs::read_to_string(self.entrance())?;
        Ok(text.lines().map(|id| Path::new("/proc").join(id)).collect())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes that were just killed leave within moments.
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

/// CPU seconds that the whole machine was busy so far.
pub fn machine_cpu() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<f64> =
        text.lines().next().unwrap_or_default().split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal, in hundredths of a second.
    let busy = numbers.iter().enumerate().filter(|(i, _)| ![3, 4].contains(i) && *i < 8);
    busy.map(|(_, n)| n).sum::<f64>() / 100.0
}

/// CPU seconds of this process so far.
///
/// # Errors
/// The kernel does not tell.
pub fn own_cpu() -> io::Result<f64> {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    };
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}
