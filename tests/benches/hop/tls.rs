//! Turns to an upstream over TLS, as the real one is: by HTTP/2 and by HTTP/1.1. The upstream is the
//! simulated one, which costs more than the daemon, so the figure is the daemon's CPU time; nginx speaks
//! no HTTP/2 to an upstream, so there is none beside it.

use crate::{
    Bench,
    parts::cost,
    stats::{median, spread},
    world,
};
use cma_tests::{
    http::Door,
    sim::{SimConfig, tls::Authority},
};
use std::{fs, time::Duration};

/// CPU time of a turn.
pub(crate) fn rates(bench: &Bench) {
    for (name, protocols) in
        [("HTTP/2", ["h2", "http/1.1"].as_slice()), ("HTTP/1.1", ["http/1.1"].as_slice())]
    {
        let authority = Authority::new();
        let tls = Some(authority.server(&["localhost"], protocols));
        let world = world(SimConfig { tls, ..SimConfig::default() });
        let roots = world.path("tmp/ca.pem");
        fs::write(&roots, authority.pem()).expect("written");
        let world = world.with_env("CODEX_CA_CERTIFICATE", &roots.to_string_lossy());
        world.import_all();
        let (door, time) = (Door::of(&world), Duration::from_secs(2));
        let (turn, port) = (door.turn().bytes(), door.addr.port());
        let pid = world.daemon_pid().expect("the daemon runs");
        let (rates, costs): (Vec<_>, Vec<_>) =
            (0..bench.rounds).map(|_| cost(pid, port, &turn, time)).unzip();
        println!(
            "{name} over TLS, 8 clients: {:.0} turns/s; CPU of a turn {} us",
            median(&rates),
            spread(&costs)
        );
        world.end_daemon();
    }
}
