//! What the daemon costs: direct, nginx and cmad in turn, in one run, on one machine.
//!
//! `cargo bench -p cma-tests --bench hop [-- PART…]`, parts: `ttfb`, `large`, `rate`, `tls`, `streams`,
//! `deltas`, `sockets`, `memory`, `start`; all of them without one. The programs measured are the release
//! build's (`cargo build --release` first), or the packaged ones when it is built with them
//! (`service-units/package`, which also runs it for its profile). nginx is measured when it is installed;
//! `CMA_BENCH_YARDSTICK=bare` puts a hop of the libraries alone in its place, `none` nothing.
//!
//! The method is that of the field's measurements: added time to first byte is the distribution of
//! differences between neighbouring requests, one straight and one through; client, proxy and
//! upstream share the machine; ratios are taken within a round and their median over rounds is told.
//! Nothing else may run meanwhile: a p99 says nothing then.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench ends where something goes wrong, and its figures are its output"
)]

mod bare;
mod client;
mod parts;
mod place;
mod programs;
mod socket;
mod stats;
mod tls;
mod upstream;
mod yardstick;

use cma_tests::{
    sim::{AccountSpec, SimConfig},
    world::World,
};
use std::process::{Child, Command, Stdio};

/// Three accounts with quota for any number of turns, and a daemon as it is at a person's.
pub(crate) fn world(config: SimConfig) -> World {
    let endless = |name| {
        let mut account = AccountSpec::new(name);
        account.primary.per_request = 1e-6;
        account.secondary.per_request = 1e-7;
        account
    };
    let accounts = ["a", "b", "c"].map(endless).to_vec();
    let mut world = World::new(SimConfig { accounts, ..config }).with_env("CMA_LOG", "info");
    // `CMA_WORKERS=2` measures the other runtime; a build that counts what it runs writes that down where
    // `LLVM_PROFILE_FILE` says.
    for name in ["CMA_WORKERS", "LLVM_PROFILE_FILE"] {
        if let Ok(value) = std::env::var(name) {
            world = world.with_env(name, &value);
        }
    }
    world
}

/// The machine under measurement.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) direct: u16,
    pub(crate) yardstick: Option<yardstick::Yardstick>,
    pub(crate) cmad: u16,
    pub(crate) key: String,
    pub(crate) rounds: usize,
    pub(crate) cpus: place::Cpus,
    upstream: Child,
}

impl Bench {
    fn start() -> Self {
        let own = std::env::current_exe().expect("own path");
        let mut upstream = Command::new(own)
            .arg("--upstream")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the upstream starts");
        let direct = upstream::announced_port(upstream.stdout.take().expect("its pipe"));
        let backend = format!("http://127.0.0.1:{direct}/backend-api");
        let world = world(SimConfig::default()).with_env("CMA_UPSTREAM_BACKEND", &backend);
        world.import_all();
        let launch = world.launch();
        let base = launch["base_url"].as_str().expect("a base address");
        let cmad = base.rsplit(':').next().and_then(|rest| rest.split('/').next()?.parse().ok());
        let rounds = std::env::var("CMA_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok());
        let login: serde_json::Value =
            serde_json::from_str(&world.sim().auth_json("a")).expect("a login");
        let token = login["tokens"]["access_token"].as_str().expect("its token").to_owned();
        Self {
            yardstick: yardstick::Yardstick::start(direct, &token),
            cmad: cmad.expect("the daemon's port"),
            key: launch["client_key"].as_str().expect("a key").to_owned(),
            rounds: rounds.unwrap_or(5),
            cpus: place::Cpus::own(),
            world,
            direct,
            upstream,
        }
    }

    /// Name and port of each way to the upstream.
    pub(crate) fn ways(&self) -> Vec<(&'static str, u16)> {
        let mut ways = vec![("direct", self.direct)];
        ways.extend(self.yardstick.as_ref().map(|it| (it.name, it.port)));
        ways.push(("cmad", self.cmad));
        ways
    }

    /// Puts client, upstream and proxies there.
    pub(crate) fn place(&self, place: place::Place) {
        place.put(&self.cpus, &[std::process::id(), self.upstream.id()], &self.proxies());
    }

    /// The processes behind [`Self::ways`], but for the direct one.
    pub(crate) fn proxies(&self) -> Vec<u32> {
        let yardstick = self.yardstick.as_ref().map(yardstick::Yardstick::pid);
        yardstick.into_iter().chain([self.pid()]).collect()
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.world.daemon_pid().expect("the daemon runs")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.world.end_daemon();
        let _ended_already = self.upstream.kill();
        let _reaped = self.upstream.wait();
    }
}

type Part = (&'static str, fn(&Bench));

const PARTS: [Part; 10] = [
    ("start", parts::start),
    ("memory", parts::memory),
    ("ttfb", parts::ttfb),
    ("large", parts::large),
    ("rate", parts::rate),
    ("tls", tls::rates),
    ("streams", parts::streams),
    ("deltas", parts::deltas),
    ("preamble", parts::preamble),
    ("sockets", parts::sockets),
];

fn main() {
    // cargo passes `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "--upstream") {
        upstream::serve();
        return;
    }
    if let [flag, upstream, token] = args.as_slice()
        && flag == "--bare"
    {
        bare::serve(upstream.parse().expect("a port"), token.parse().expect("a length"));
        return;
    }
    for (name, part) in PARTS {
        if args.is_empty() || args.iter().any(|arg| arg == name) {
            println!("\n== {name}");
            // A daemon of its own for each part: what one leaves behind is not the next one's.
            part(&Bench::start());
        }
    }
}
