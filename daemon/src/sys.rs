//! The few things only the system can do, and where memory comes from. The one file with `unsafe`, and why each
//! is sound.

/// jemalloc keeps pieces of up to 32 KiB at hand for each thread, where glibc's cache ends at a kilobyte and
/// at seven of a kind: with 64 requests under way most of a request's memory came from its shared lists
/// (docs/performance.md). Not on other processors: a build is for the page size it was made on, and there it
/// differs from machine to machine. Elsewhere the system's own stays.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How it is set up; it reads this symbol before it serves its first piece. One arena: nearly all is allocated by
/// the one thread that runs the loop, and each further arena holds pages of its own. What is at hand is looked
/// through every 16 MiB instead of at every other request, and is a hundred of each kind at least.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "the name is the allocator's own for a text that ends with a zero")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static HEAP_SETTINGS: Option<&'static u8> =
    b"narenas:1,tcache_gc_incr_bytes:16777216,tcache_nslots_small_min:100\0".first();

/// Gives memory back to the system: what was freed, and code that ran and may not run again for hours.
/// Called when the last idle connection has gone, never on a request's way: what a burst of streams used is
/// kept while nothing is allocated, unless the allocator is told.
pub(crate) fn release_memory() {
    #[cfg(target_os = "linux")]
    release_code();
    release_freed();
}

/// Where glibc allocates: large pieces come from the system one by one and go back to it as soon as they are
/// free. By itself it raises what counts as large with each that is freed, and what is then cut from a
/// thread's own heap is never given back at its end: two megabytes of a moment in which the cache was
/// written. How much may lie free at the end of the first heap is said too, as glibc derives it from the
/// former. To be called before anything is freed.
pub(crate) fn keep_large_pieces_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(target_arch = "x86_64")))]
    {
        const LARGE: i32 = 128 << 10;
        const FREE_AT_END: i32 = 64 << 20;
        #[expect(unsafe_code, reason = "mallopt has no preconditions")]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_AT_END);
        }
    }
}

/// Closes what whoever started this process left open to it beside the standard streams: a lock's file, a
/// pipe that somebody reads to its end. A daemon would hold them for as long as it lives. Nothing is
/// handed to it that way. To be called before anything is opened.
#[cfg(unix)]
pub(crate) fn close_inherited() {
    let Ok(open) = std::fs::read_dir("/dev/fd") else { return };
    let numbers: Vec<i32> =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        #[expect(unsafe_code, reason = "see below")]
        // SAFETY: the process has one thread and has opened nothing yet: no value owns this number. The
        // folder's own is closed already, which is an error that does nothing.
        unsafe {
            rustix::io::close(number);
        }
    }
}

/// Gives back what was freed, and only that: what this thread has at hand, and then all pages without a piece
/// that is in use. Whoever allocates meanwhile waits for up to a millisecond.
pub(crate) fn release_freed() {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    for told in [c"thread.tcache.flush", c"arena.4096.purge"] {
        let none = std::ptr::null_mut();
        #[expect(unsafe_code, reason = "see below")]
        // SAFETY: both are commands without a value: nothing is read or written through the pointers. 4096
        // stands for all arenas. An allocator that knows neither answers with an error, and nothing is lost.
        let _unknown = unsafe {
            tikv_jemalloc_sys::mallctl(told.as_ptr(), none, std::ptr::null_mut(), none, 0)
        };
    }
    #[cfg(all(target_os = "linux", target_env = "gnu", not(target_arch = "x86_64")))]
    {
        #[expect(unsafe_code, reason = "malloc_trim has no preconditions and is thread-safe")]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Unmaps the pages of the program that are as they are on the disk. They stay in the page cache, now
/// for the system to keep or to drop, and come back sixteen at a time when they are touched: a start
/// runs through most of the code once, and what serves requests is a third of it. Libraries stay: the
/// system has them in memory for everybody.
#[cfg(target_os = "linux")]
fn release_code() {
    let maps = std::fs::read_to_string("/proc/self/smaps");
    let own = std::fs::read_link("/proc/self/exe");
    let (Ok(maps), Ok(own)) = (maps, own) else { return };
    for (start, length) in clean_code(&maps, &own.to_string_lossy()) {
        #[expect(unsafe_code, reason = "see below")]
        // SAFETY: the range is a whole mapping of the program itself, which nobody unmaps, private,
        // never writable, and without one page of its own: what is read there afterwards is what the
        // file has, as before.
        // Refused for locked memory: then it was to stay.
        let _refused = unsafe {
            rustix::mm::madvise(
                std::ptr::with_exposed_provenance_mut(start),
                length,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
    }
}

/// Start and length of each mapping in `/proc/PID/smaps` that shows this file as it is: not writable,
/// private, and without pages of its own (relocations, a debugger's breakpoints).
#[cfg(target_os = "linux")]
fn clean_code(maps: &str, file: &str) -> Vec<(usize, usize)> {
    let (mut found, mut current) = (Vec::new(), None);
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some((start, end)) = first.split_once('-') {
            // A replaced program's path ends with ` (deleted)` in both places.
            let of_file = line.ends_with(file);
            let range =
                usize::from_str_radix(start, 16).ok().zip(usize::from_str_radix(end, 16).ok());
            current = range.filter(|_| of_file && matches!(second, "r-xp" | "r--p"));
        } else if first == "Anonymous:"
            && second == "0"
            && let Some((start, end)) = current.take()
        {
            found.push((start, end.saturating_sub(start)));
        }
    }
    found
}

/// Lifts the soft limit of open files to the hard one: a thousand streams are two thousand sockets.
pub(crate) fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            limit.current = limit.maximum;
            // Where it is forbidden the old limit holds, and connections are refused earlier.
            let _forbidden = setrlimit(Resource::Nofile, limit);
        }
    }
}

/// When a process started, in the system's own unit; `None` when there is no such process.
///
/// A process id alone is reused; with its start it names one process until the next boot.
#[cfg(target_os = "linux")]
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state follows the last one. Field 22 is the
    // start, the state is field 3.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    // A zombie has ended; only its parent hasn't noticed.
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

/// When a process started; unknown (0) here, so only its being there counts.
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::test_kill_process(pid).is_ok().then_some(0)
}

/// When a process started; unknown (0) here: keys end by their time alone.
#[cfg(windows)]
pub(crate) fn process_start(_pid: u32) -> Option<u64> {
    Some(0)
}

/// Who listens on a loopback port, for an error message: `name (pid N)`.
#[cfg(target_os = "linux")]
pub(crate) fn port_holder(port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        std::fs::read_to_string(table).ok()?.lines().skip(1).find_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let local = fields.nth(1)?;
            let listening = fields.nth(1)? == "0A";
            (listening && local.ends_with(&wanted)).then(|| fields.nth(5).map(str::to_owned))?
        })
    })?;
    let socket = format!("socket:[{inode}]");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let holds = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten().any(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == &*socket)
        });
        holds.then(|| {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            format!("`{}` (pid {pid})", name.trim())
        })
    })
}

/// Who listens on a loopback port; not told here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn port_holder(_port: u16) -> Option<String> {
    None
}

/// Has a loopback socket sent on as fast as it is read: nothing is lost there and no link fills, so a system's own
/// way of measuring a link and of pacing what is sent (BBR) is time spent for nothing, a twentieth of a
/// request's (docs/performance.md). A listener's sockets have it from the listener. "reno" is the one way that every
/// kernel has and that needs no right.
#[cfg(target_os = "linux")]
pub(crate) fn unpaced(socket: impl std::os::fd::AsFd) {
    // A kernel that refuses it goes its own way.
    let _refused = rustix::net::sockopt::set_tcp_congestion(socket, "reno");
}

/// Other systems don't let a socket choose.
#[cfg(not(target_os = "linux"))]
pub(crate) fn unpaced<T>(_socket: &T) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_unmapped_comes_back() {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = code_that_was_unmapped_comes_back as fn() as usize;
        let within = |&(start, length): &(usize, usize)| (start..start + length).contains(&own);
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        assert!(clean_code(&maps, exe.to_str().unwrap()).iter().any(within), "{maps}");
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        release_memory();
        assert!(resident() < before, "{before} → {}", resident());
        assert!(process_start(std::process::id()).is_some());
    }

    #[test]
    fn only_what_is_as_on_the_disk_is_unmapped() {
        let maps = "\
            1000-3000 r-xp 00000000 08:01 7 /usr/bin/x\nRss: 4 kB\nAnonymous:      0 kB\n\
            3000-4000 r-xp 00000000 08:01 7 /usr/bin/x\nAnonymous:      4 kB\n\
            4000-5000 rw-p 00000000 08:01 7 /usr/bin/x\nAnonymous:      0 kB\n\
            5000-6000 r--s 00000000 08:01 7 /usr/bin/x\nAnonymous:      0 kB\n\
            6000-7000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:      0 kB\n\
            7000-8000 r--p 00000000 00:00 0\nAnonymous:      0 kB\n\
            x-8000 r-xp 00000000 08:01 7 /usr/bin/x\nAnonymous:      0 kB\n\
            8000-a000 r--p 00000000 08:01 7 /usr/lib/y\nAnonymous:      0 kB\n\
            b000-c000 r--p 00000000 08:01 7 /usr/bin/x\nAnonymous:      0 kB\n";
        assert_eq!(clean_code(maps, "/usr/bin/x"), [(0x1000, 0x2000), (0xb000, 0x1000)]);
    }

    #[test]
    fn own_process_has_a_start_and_own_port_a_holder() {
        assert!(process_start(std::process::id()).is_some_and(|start| start > 0));
        assert_eq!(process_start(u32::MAX), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = port_holder(port).unwrap();
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    }
}
