//! Where the programs of a measurement run.
//!
//! With one request at a time the kernel keeps client, proxy and upstream on one CPU or spreads them,
//! and changes its mind between two proxies and within a run; a wake-up across CPUs costs more than
//! either proxy. So what takes microseconds is measured in each place on its own, and free besides.

#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Where client and upstream, and where the proxies run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// All on one CPU: the CPU time up to the first byte and nothing else.
    Together,
    /// Proxies on a CPU of their own: four wake-ups across CPUs, for each of them.
    Apart,
    /// Where the kernel likes.
    Free,
}

impl Place {
    /// All that can be had here; only the free one with one CPU.
    pub(crate) fn all(cpus: &Cpus) -> &'static [Self] {
        if cpus.several() { &[Self::Together, Self::Apart, Self::Free] } else { &[Self::Free] }
    }

    /// Its name in the output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Together => "one CPU",
            Self::Apart => "proxy apart",
            Self::Free => "free",
        }
    }

    /// Moves the processes there, with all their threads.
    #[cfg(target_os = "linux")]
    pub(crate) fn put(self, cpus: &Cpus, ends: &[u32], proxies: &[u32]) {
        let (for_ends, for_proxies) = match self {
            Self::Together => (cpus.only(0), cpus.only(0)),
            Self::Apart => (cpus.only(0), cpus.only(1)),
            Self::Free => (cpus.0, cpus.0),
        };
        for (pids, set) in [(ends, for_ends), (proxies, for_proxies)] {
            for pid in pids {
                let threads =
                    std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process that runs");
                for thread in threads.flatten() {
                    let id = thread.file_name().to_string_lossy().parse().ok();
                    // A thread that ended meanwhile needs no place.
                    let _ended = sched_setaffinity(id.and_then(Pid::from_raw), &set);
                }
            }
        }
    }

    /// Nothing: only Linux lets a process be placed from outside.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn put(self, _cpus: &Cpus, _ends: &[u32], _proxies: &[u32]) {}
}

/// The CPUs that a measurement may use; none are known where they can't be chosen.
#[derive(Debug)]
pub(crate) struct Cpus(#[cfg(target_os = "linux")] CpuSet);

#[cfg(target_os = "linux")]
impl Cpus {
    /// Those of this process.
    pub(crate) fn own() -> Self {
        Self(sched_getaffinity(None).expect("where it may run"))
    }

    fn several(&self) -> bool {
        self.0.count() > 1
    }

    /// The first or the second of them.
    fn only(&self, at: usize) -> CpuSet {
        let mut set = CpuSet::new();
        (0..CpuSet::MAX_CPU)
            .filter(|cpu| self.0.is_set(*cpu))
            .nth(at)
            .into_iter()
            .for_each(|cpu| set.set(cpu));
        set
    }
}

#[cfg(not(target_os = "linux"))]
impl Cpus {
    /// Those of this process.
    pub(crate) const fn own() -> Self {
        Self()
    }

    const fn several(&self) -> bool {
        false
    }
}
