//! Where the programs of a measurement run.
//!
//! With one request at a time the kernel keeps client, proxy and upstream on one CPU or spreads them,
//! and changes its mind between two proxies and within a run; a wake-up across CPUs costs more than
//! either proxy. So what takes microseconds is measured in each place on its own, and free besides.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::fs;

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
    pub(crate) fn all() -> Vec<Self> {
        let cpus = sched_getaffinity(None).map_or(1, |set| set.count());
        if cpus > 1 { vec![Self::Together, Self::Apart, Self::Free] } else { vec![Self::Free] }
    }

    /// Its name in the output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Together => "one CPU",
            Self::Apart => "proxy apart",
            Self::Free => "free",
        }
    }

    /// Moves the processes there, with all their threads. `allowed` is where they may run at all.
    pub(crate) fn put(self, allowed: &CpuSet, ends: &[u32], proxies: &[u32]) {
        let cpus: Vec<usize> =
            (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect();
        let only = |at: usize| {
            let mut set = CpuSet::new();
            cpus.get(at).or(cpus.first()).into_iter().for_each(|cpu| set.set(*cpu));
            set
        };
        let (for_ends, for_proxies) = match self {
            Self::Together => (only(0), only(0)),
            Self::Apart => (only(0), only(1)),
            Self::Free => (*allowed, *allowed),
        };
        for (pids, set) in [(ends, for_ends), (proxies, for_proxies)] {
            for pid in pids {
                let threads =
                    fs::read_dir(format!("/proc/{pid}/task")).expect("a process that runs");
                for thread in threads.flatten() {
                    let id = thread.file_name().to_string_lossy().parse().ok();
                    // A thread that ended meanwhile needs no place.
                    let _ended = sched_setaffinity(id.and_then(Pid::from_raw), &set);
                }
            }
        }
    }
}
