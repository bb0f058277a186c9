//! What is measured, part by part. Every figure stands beside nginx's of the same run.

use super::{
    Bench,
    client::{Client, rate as rate_of, request, streams as open_streams},
    place::Place,
    programs, socket,
    stats::{median, percentile, spread},
};
use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Added time to first byte of small requests.
pub(crate) fn ttfb(bench: &Bench) {
    for place in Place::all(&bench.cpus) {
        bench.place(*place);
        println!("-- {}", place.name());
        added(bench, 1024, 2_500);
    }
}

/// Added time to first byte and throughput of 2 MiB bodies.
pub(crate) fn large(bench: &Bench) {
    added(bench, 2 * 1024 * 1024, 200);
    rates(bench, 2 * 1024 * 1024, 4, Duration::from_secs(2));
}

/// Requests a second at 64 clients, and what a thousand cost in CPU.
pub(crate) fn rate(bench: &Bench) {
    rates(bench, 1024, 64, Duration::from_secs(3));
    let (ways, time) = (bench.ways(), Duration::from_secs(3));
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for _ in 0..bench.rounds {
        for (way, pid) in (1..).zip(bench.proxies()) {
            let bytes = request(ways[way].1, &bench.key, 1024, "");
            costs[way].push(cost(pid, ways[way].1, &bytes, time).1);
        }
    }
    let own = costs.last().map(|costs| spread(costs)).unwrap_or_default();
    println!("cmad: CPU of a request, 8 clients: {own} us");
    ratio("CPU of a request in us, 8 clients", &ways, &costs);
}

/// Requests a second at 8 clients, and what each costs a proxy in CPU time, in microseconds.
pub(crate) fn cost(pid: u32, port: u16, request: &[u8], time: Duration) -> (f64, f64) {
    let before = cpu_seconds(pid);
    let rate = rate_of(port, request, 8, time);
    (rate, (cpu_seconds(pid) - before) / (rate * time.as_secs_f64()) * 1e6)
}

/// Requests go alternately straight and over one way; "added" is the difference of the neighbours. One
/// way after the other: with two proxies at work in turn the kernel gives each a CPU, and one of them
/// the client's.
fn added(bench: &Bench, body: usize, count: usize) {
    let ways = bench.ways();
    let mut p50: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    let mut p99 = p50.clone();
    for round in 0..bench.rounds {
        let mut clients: Vec<_> = ways.iter().map(|(_, port)| Client::connect(*port)).collect();
        let bytes: Vec<_> =
            ways.iter().map(|(_, port)| request(*port, &bench.key, body, "")).collect();
        let mut differences: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
        for way in 1..ways.len() {
            for n in 0..count + 50 {
                // Not counted: what the way before still does after its answer would delay the next.
                clients[0].ask(&bytes[0]);
                let (straight, _) = clients[0].ask(&bytes[0]);
                let (through, _) = clients[way].ask(&bytes[way]);
                if n >= 50 {
                    differences[way].push(through - straight);
                }
            }
        }
        for way in 1..ways.len() {
            p50[way].push(percentile(&differences[way], 0.5));
            p99[way].push(percentile(&differences[way], 0.99));
        }
        let shown: Vec<_> = (1..ways.len())
            .map(|way| {
                format!("{} p50 {:.0} p99 {:.0} us", ways[way].0, p50[way][round], p99[way][round])
            })
            .collect();
        println!("round {round}: added TTFB, {body} B: {}", shown.join(", "));
    }
    ratio("added TTFB p50", &ways, &p50);
    ratio("added TTFB p99", &ways, &p99);
}

fn rates(bench: &Bench, body: usize, clients: usize, time: Duration) {
    let ways = bench.ways();
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for round in 0..bench.rounds {
        for (way, (_, port)) in ways.iter().enumerate() {
            all[way].push(rate_of(*port, &request(*port, &bench.key, body, ""), clients, time));
        }
        let shown: Vec<_> = ways
            .iter()
            .zip(&all)
            .map(|((name, _), rate)| format!("{name} {:.0}/s", rate[round]))
            .collect();
        println!("round {round}: {clients} clients, {body} B: {}", shown.join(", "));
    }
    ratio("requests/s", &ways, &all);
}

/// cmad over the yardstick, within each round.
fn ratio(what: &str, ways: &[(&'static str, u16)], figures: &[Vec<f64>]) {
    if let ([_, (name, _), _], [_, yardstick, cmad]) = (ways, figures) {
        let ratios: Vec<_> = cmad.iter().zip(yardstick).map(|(cmad, its)| cmad / its).collect();
        println!(
            "{what}: {name} {}, cmad {}, cmad/{name} {}",
            spread(yardstick),
            spread(cmad),
            spread(&ratios)
        );
    }
}

/// Age of events at 1,000 streams that arrive within 3 s.
pub(crate) fn streams(bench: &Bench) {
    let ways = bench.ways();
    let mut p50: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    let mut p99 = p50.clone();
    for round in 0..bench.rounds.min(3) {
        for (way, (name, port)) in ways.iter().enumerate() {
            let bytes = request(*port, &bench.key, 1024, "?events=50&gap=100");
            let seen = open_streams(*port, &bytes, 1000, 50, Duration::from_secs(3), || {});
            p50[way].push(median(&seen.ages));
            p99[way].push(percentile(&seen.ages, 0.99));
            println!(
                "round {round}: {name}: event age p50 {:.0} p99 {:.0} us, {} lost",
                median(&seen.ages),
                percentile(&seen.ages, 0.99),
                seen.lost
            );
        }
    }
    ratio("event age p50", &ways, &p50);
    ratio("event age p99", &ways, &p99);
}

/// Events 10 ms apart on a kept connection: no mode at 40 ms.
pub(crate) fn deltas(bench: &Bench) {
    for (name, port) in bench.ways() {
        let bytes = request(port, &bench.key, 1024, "?events=200&gap=10");
        let seen = open_streams(port, &bytes, 4, 200, Duration::from_millis(100), || {});
        let late = seen.ages.iter().filter(|age| **age > 30_000.0).count();
        println!(
            "{name}: age p50 {:.0} p99 {:.0} max {:.0} us, {late} over 30 ms, {} lost",
            median(&seen.ages),
            percentile(&seen.ages, 0.99),
            percentile(&seen.ages, 1.0),
            seen.lost
        );
    }
}

/// What holding a stream's preamble back does to its first visible event: the age of an event 25 ms
/// behind a preamble, which is held until then, and of one as far behind an event that is shown at once.
/// Streams begin 10 ms apart, so that no event comes with another's beginning or end.
pub(crate) fn preamble(bench: &Bench) {
    let ways = bench.ways();
    let mut ages = vec![[Vec::new(), Vec::new()]; ways.len()];
    for _ in 0..bench.rounds {
        for (way, (_, port)) in ways.iter().enumerate() {
            for (kind, first) in ["held", "shown"].into_iter().enumerate() {
                let query = format!("?first={first}&events=1&gap=25");
                let bytes = request(*port, &bench.key, 1024, &query);
                let seen = open_streams(*port, &bytes, 200, 1, Duration::from_secs(2), || {});
                assert_eq!(seen.lost, 0, "an event was lost");
                ages[way][kind].push(median(&seen.ages));
            }
        }
    }
    for ((name, _), [held, shown]) in ways.iter().zip(&ages) {
        let added: Vec<f64> = held.iter().zip(shown).map(|(held, shown)| held - shown).collect();
        println!(
            "{name}: age behind a preamble {} us, behind an event {} us, held adds {} us",
            spread(held),
            spread(shown),
            spread(&added)
        );
    }
}

/// WebSocket: turns a second, what a turn's first message and each later one costs.
pub(crate) fn sockets(bench: &Bench) {
    turns(bench, "bare ends", socket::rate);
    turns(bench, "programs", programs::rate);
    for place in Place::all(&bench.cpus) {
        bench.place(*place);
        println!("-- {}", place.name());
        messages(bench);
    }
}

/// Of a round, as many slices are measured of each way in turn: how fast the machine is changes within a
/// second by more than the ways differ.
const SLICES: u32 = 8;

/// Turns a second between two ends of a kind.
fn turns(bench: &Bench, ends: &str, rate: fn(u16, &str, usize, Duration) -> f64) {
    let ways = bench.ways();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for round in 0..bench.rounds {
        let mut sums = vec![0.0; ways.len()];
        for _ in 0..SLICES {
            for (way, (_, port)) in ways.iter().enumerate() {
                sums[way] += rate(*port, &bench.key, 8, Duration::from_secs(2) / SLICES);
            }
        }
        for (way, sum) in sums.into_iter().enumerate() {
            rates[way].push(sum / f64::from(SLICES));
        }
        let shown =
            ways.iter().zip(&rates).map(|((name, _), all)| format!("{name} {:.0}", all[round]));
        println!("round {round}: {ends}: turns/s: {}", shown.collect::<Vec<_>>().join(", "));
    }
    ratio(&format!("turns/s, {ends}"), &ways, &rates);
}

/// What is added to a turn's messages.
fn messages(bench: &Bench) {
    let (ways, key) = (bench.ways(), &bench.key);
    let mut first: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    let mut later = first.clone();
    for round in 0..bench.rounds {
        let mut sockets: Vec<_> =
            ways.iter().map(|(_, port)| socket::Socket::connect(*port, key)).collect();
        let turn = socket::turn("");
        let mut added: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
        for way in 1..ways.len() {
            for n in 0..1_050 {
                sockets[0].ask(&turn);
                let straight = sockets[0].ask(&turn);
                let through = sockets[way].ask(&turn);
                if n >= 50 {
                    added[way].push(through - straight);
                }
            }
        }
        let direct = median(&socket::ages(bench.direct, key));
        for way in 1..ways.len() {
            first[way].push(median(&added[way]));
            later[way].push(median(&socket::ages(ways[way].1, key)) - direct);
            println!(
                "round {round}: {}: added first message p50 {:.0} us, later ones {:.0} us",
                ways[way].0, first[way][round], later[way][round]
            );
        }
    }
    ratio("added to a turn's first message, p50", &ways, &first);
    ratio("added to a later message, p50", &ways, &later);
}

/// Resident memory: fresh, under a thousand streams, and a minute after.
pub(crate) fn memory(bench: &Bench) {
    bench.world.kill_daemon();
    bench.world.ctl("daemon start").ok();
    std::thread::sleep(Duration::from_secs(5));
    let fresh = rss_mib(bench.pid());
    let (before, waited) = (cpu_seconds(bench.pid()), 20);
    std::thread::sleep(Duration::from_secs(waited));
    let idle = cpu_seconds(bench.pid()) - before;
    println!("fresh: {fresh:.1} MiB; idle CPU in {waited} s: {idle:.3} s");
    let bytes = request(bench.cmad, &bench.key, 1024, "?events=50&gap=100");
    let pid = bench.pid();
    let mut peak = 0.0;
    let seen =
        open_streams(bench.cmad, &bytes, 1000, 50, Duration::from_secs(3), || peak = rss_mib(pid));
    println!("1,000 streams: {peak:.1} MiB, {} events lost", seen.lost);
    let large = request(bench.cmad, &bench.key, 2 * 1024 * 1024, "");
    rate_of(bench.cmad, &large, 4, Duration::from_secs(2));
    println!("after 2 MiB bodies: {:.1} MiB", rss_mib(pid));
    std::thread::sleep(Duration::from_secs(60));
    let after = rss_mib(pid);
    println!("60 s after load: {after:.1} MiB, {:.2} x fresh", after / fresh);
    if let Some(it) = &bench.yardstick {
        println!("{}: {:.1} MiB", it.name, rss_mib(it.pid()));
    }
}

/// Start times of whole processes.
pub(crate) fn start(bench: &Bench) {
    let shown = |what: &str, times: &[f64]| {
        println!("{what}: p50 {:.2} ms, p99 {:.2} ms", median(times), percentile(times, 0.99));
    };
    let plain = times(300, || spawn(bench, "/bin/true", &[]));
    shown("/bin/true (fork and exec)", &plain);
    shown("cmactl status", &times(300, || spawn(bench, "cmactl", &["status"])));
    // The shim in front of a program that does nothing, against that program alone.
    let fake = bench.world.path("fake");
    fs::create_dir_all(&fake).expect("a folder");
    let package = fake.join("node_modules/@openai/codex");
    fs::create_dir_all(package.join("bin")).expect("a folder");
    fs::write(package.join("package.json"), r#"{"name":"@openai/codex","version":"0.169.0"}"#)
        .expect("written");
    let program = package.join("bin/codex");
    fs::copy("/bin/true", &program).expect("copied");
    let program = program.display().to_string();
    let alone = times(300, || spawn(bench, &program, &["exec", "x"]));
    let through = times(300, || {
        let mut command = bench.world.command("codex");
        command.env("CMA_CODEX_BIN", &program).args(["exec", "x"]);
        command
    });
    shown("the program alone", &alone);
    shown("the program through the shim", &through);
    println!("the shim adds p50 {:.2} ms", median(&through) - median(&alone));
    let mut listening = Vec::new();
    for _ in 0..30 {
        bench.world.kill_daemon();
        let begun = Instant::now();
        let mut command = bench.world.command("cmad");
        command.arg("run").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("started");
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().expect("a pipe")),
            &mut line,
        )
        .expect("a line");
        listening.push(begun.elapsed().as_secs_f64() * 1e3);
        assert!(line.contains("ready"), "{line}");
        let _ended = child.kill();
        let _reaped = child.wait();
    }
    shown("cmad, exec to listening", &listening);
}

fn spawn(bench: &Bench, program: &str, args: &[&str]) -> Command {
    let mut command = bench.world.command(program);
    command.args(args);
    command
}

fn times(count: usize, mut command: impl FnMut() -> Command) -> Vec<f64> {
    (0..count)
        .map(|_| {
            let mut command = command();
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let begun = Instant::now();
            let ended = command.status().expect("ran");
            let took = begun.elapsed().as_secs_f64() * 1e3;
            assert!(ended.success(), "{command:?}: {ended}");
            took
        })
        .collect()
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    // Field 1 of schedstat: nanoseconds on a CPU, of the main thread; threads are summed.
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<f64>().ok()
        })
        .sum::<f64>()
        / 1e9
}

/// Resident memory of a process.
fn rss_mib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok()
    });
    kib.unwrap_or(f64::NAN) / 1024.0
}
