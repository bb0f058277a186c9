//! Eight processes at once against one root, while tokens expire every few seconds.
//!
//! `CMA_EIGHT_SECONDS` says for how long (15 by default; the promise is kept for 60). What a command
//! acknowledged by its exit status has to be there at the end; the issuer counts no token twice.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Consent, Sim, SimConfig, Window},
    world::{World, eventually},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// A token is renewed when it has five seconds left: each lives three.
const LIFE: Duration = Duration::from_secs(8);

/// A setting that one process changes: what was acknowledged last, and what was tried since.
#[derive(Debug)]
struct Setting {
    sure: Value,
    tried: Vec<Value>,
    done: u64,
}

impl Setting {
    fn new(sure: Value) -> Self {
        Self { sure, tried: Vec::new(), done: 0 }
    }

    /// Runs a command that sets it. A failure may have come after the change.
    fn set(&mut self, world: &World, words: &str, to: Value) {
        if world.ctl(words).code == 0 {
            self.sure = to;
            self.tried.clear();
            self.done += 1;
        } else {
            self.tried.push(to);
        }
    }

    #[track_caller]
    fn assert(&self, what: &str, is: &Value) {
        assert!(*is == self.sure || self.tried.contains(is), "{what} is {is}: {self:?}");
        assert!(self.done > 0, "{what} was never set");
    }
}

/// Starts three daemons at once. One wins and the others say who.
fn three_at_once(world: &World) {
    let started: Vec<_> = (0..3)
        .map(|_| {
            let mut command = world.command("cmad");
            command.arg("run").stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let mut living = Vec::new();
    for mut child in started {
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                let mut said = String::new();
                child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                assert_eq!(status.code(), Some(1), "{said}");
                assert!(said.contains("already runs") && said.contains("(pid "), "{said}");
                break;
            }
            // The losers ask for the lock for a tenth of a second.
            if begun.elapsed() > Duration::from_secs(1) {
                living.push(child);
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert!(living.len() <= 1, "{} daemons for one root", living.len());
    if let Some(mut child) = living.pop() {
        let holder = world.daemon_pid();
        assert_eq!(holder, Some(child.id()), "the one that lives has the root");
        // It is stopped by name like any other; here it only has to be reaped.
        std::thread::spawn(move || child.wait());
    }
}

/// What the official CLI does to its login: it owns a chain and renews it where it likes.
fn rotate(sim: &Sim, tokens: &Value) -> Option<Value> {
    let ask = json!({
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann", "grant_type": "refresh_token",
        "refresh_token": tokens["refresh_token"], "refresh_reason": "proactive_expiry",
    });
    let ask = ask.to_string();
    let mut stream = TcpStream::connect(sim.addr()).ok()?;
    write!(
        stream,
        "POST /oauth/token HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: \
         close\r\ncontent-length: {}\r\n\r\n{ask}",
        sim.addr(),
        ask.len()
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (_head, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(&body[body.find('{')?..=body.rfind('}')?]).ok()
}

/// Renews the CLI's own login and writes its file, as long as it is told to. Returns how often.
///
/// Not the program itself: with tokens that live for seconds and an issuer without a grace, 0.169.0
/// spends its own chain within its first second (several of its parts renew at once). What it does
/// with a chain that it shares with the pool is in `mirror`.
fn official_cli(world: &World, running: impl Fn() -> bool) -> u64 {
    let path = world.codex_home().join("auth.json");
    let mut file: Value = serde_json::from_str(&world.sim().auth_json("a")).unwrap();
    let mut times = 0;
    while running() {
        let new = rotate(world.sim(), &file["tokens"]).unwrap();
        for (name, token) in new.as_object().unwrap() {
            if file["tokens"].get(name).is_some() {
                file["tokens"][name] = token.clone();
            }
        }
        fs::write(&path, file.to_string()).unwrap();
        times += 1;
        std::thread::sleep(Duration::from_millis(150));
    }
    times
}

/// Signs in anew to an account of the pool, as often as there is time. Returns how often it came to
/// its end: a daemon that stops ends a sign-in, and the person begins again.
fn signs_in(world: &World, running: impl Fn() -> bool) -> u64 {
    let mut times = 0;
    while running() {
        let mut command = world.command("cmactl");
        command.args(["login", "--device", "--json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said: Value = lines
            .next()
            .and_then(|line| serde_json::from_str(&line.ok()?).ok())
            .unwrap_or_default();
        if let Some(code) = said["started"]["user_code"].as_str() {
            world.sim().decide_device(code, Consent::Agree("e".to_owned()));
        }
        lines.for_each(drop);
        times += u64::from(child.wait().unwrap().success());
    }
    times
}

/// Imports new logins of known accounts and of new ones. Returns the names of the new ones.
fn importer(world: &World, running: impl Fn() -> bool) -> Vec<String> {
    let mut new = Vec::new();
    let file = world.path("tmp/new.json");
    for round in 0.. {
        if !running() {
            break;
        }
        let fresh = format!("new{round}");
        // The pool is kept small: what is tested is the mixture.
        let name = if round % 5 == 0 && new.len() < 8 {
            world.sim().add_account(AccountSpec::new(&fresh));
            fresh.as_str()
        } else {
            "b"
        };
        fs::write(&file, world.sim().auth_json(name)).unwrap();
        let ran = world.ctl(&format!("import {} --label {name}", file.display()));
        if ran.code == 0 && name != "b" {
            new.push(name.to_owned());
        }
        std::thread::sleep(Duration::from_millis(60));
    }
    fs::remove_file(&file).ok();
    new
}

/// What came of the eight.
struct Turmoil {
    label: Setting,
    enabled: Setting,
    pin: Setting,
    /// Names of accounts that were new.
    new: Vec<String>,
    /// Renewals that the CLI made of its own login.
    rotated: u64,
    /// Sign-ins that came to their end.
    signed: u64,
    /// Turns told to their end.
    served: u64,
}

/// Runs one process after another in a place of its own, as long as it is told to.
fn again_and_again(running: impl Fn() -> bool, mut run: impl FnMut(u64)) {
    for n in 0.. {
        if !running() {
            break;
        }
        run(n);
    }
}

/// All of them at once: three daemons that start, an official CLI, imports, labels, switches and
/// pins; and turns through whichever daemon is there.
fn turmoil(world: &World, length: Duration) -> Turmoil {
    let ids = ["c", "d", "e"].map(|name| world.account(name)["id"].as_str().unwrap().to_owned());
    let [c, d, e] = &ids;
    let (over, served) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let running = || !over.load(Ordering::Relaxed);
    let (mut label, mut enabled, mut pin) =
        (Setting::new(json!("c")), Setting::new(json!(true)), Setting::new(Value::Null));
    let door = &Door::of(world);
    world.ctl("daemon stop").ok();
    eventually("the daemon is gone", || world.daemon_pid().is_none());
    three_at_once(world);
    let (rotated, new, signed) = std::thread::scope(|scope| {
        let cli = scope.spawn(move || official_cli(world, running));
        let imports = scope.spawn(move || importer(world, running));
        let login = scope.spawn(move || signs_in(world, running));
        let (label, enabled, pin) = (&mut label, &mut enabled, &mut pin);
        scope.spawn(move || {
            again_and_again(running, |n| {
                label.set(world, &format!("label {c} c{n}"), json!(format!("c{n}")));
            });
        });
        scope.spawn(move || {
            again_and_again(running, |n| {
                let on = n % 2 == 1;
                let verb = if on { "enable" } else { "disable" };
                enabled.set(world, &format!("{verb} {d}"), json!(on));
            });
        });
        scope.spawn(move || {
            again_and_again(running, |n| match n % 3 {
                2 => pin.set(world, "unpin", Value::Null),
                _ => pin.set(world, &format!("switch {e}"), json!(e)),
            });
        });
        for _ in 0..2 {
            scope.spawn(move || {
                again_and_again(running, |_n| {
                    // Between two daemons nobody answers.
                    if door.send(&door.turn()).is_ok_and(|answer| answer.is_complete()) {
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                });
            });
        }
        // Daemons come and go: in order, since what a kill does is the crash matrix's business.
        let begun = Instant::now();
        while begun.elapsed() < length {
            std::thread::sleep(Duration::from_millis(1500));
            drop(world.ctl("daemon stop --now"));
            three_at_once(world);
        }
        over.store(true, Ordering::Relaxed);
        (cli.join().unwrap(), imports.join().unwrap(), login.join().unwrap())
    });
    Turmoil { label, enabled, pin, new, rotated, signed, served: served.load(Ordering::Relaxed) }
}

#[test]
fn eight_processes_lose_nothing_and_spend_nothing_twice() {
    let seconds = std::env::var("CMA_EIGHT_SECONDS").ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(15));
    // Thousands of turns a minute must not use the quota up.
    let wide = Window::new(0.000_1, 300, Duration::from_secs(3 * 3600));
    let accounts = NAMES.map(|name| AccountSpec::new(name).primary(wide)).to_vec();
    let config = SimConfig { accounts, tokens_ttl: LIFE, ..SimConfig::default() };
    let world = &World::with_accounts(SimConfig { grace: Duration::ZERO, ..config });
    let came = turmoil(world, length);
    let status = world.status();
    let accounts = status["accounts"].as_array().unwrap();
    let account = |name: &str| {
        let workspace = format!("acct-{name}");
        accounts.iter().find(|account| account["workspace"] == workspace.as_str()).unwrap()
    };
    came.label.assert("the label", &account("c")["label"]);
    came.enabled.assert("the switch", &account("d")["enabled"]);
    came.pin.assert("the pin", &status["pin"]["account"]);
    let stats = world.sim().stats().accounts;
    let refreshed: u64 = stats.values().map(|account| account.refreshed).sum();
    eprintln!(
        "{} turns, {refreshed} renewals ({} of them by the CLI itself), {} sign-ins, {} new accounts, \
         {} labels, {} pins",
        came.served,
        came.rotated,
        came.signed,
        came.new.len(),
        came.label.done,
        came.pin.done
    );
    assert!(came.served > 100 && refreshed > came.rotated + 10 && came.rotated > 10);
    assert!(came.signed > 0, "no sign-in came to its end");
    for (name, stats) in &stats {
        assert_eq!((stats.reused, stats.replayed, stats.families_revoked), (0, 0, 0), "{name}");
    }
    assert!(!came.new.is_empty(), "no new account was imported");
    world.ctl("unpin").ok();
    world.ctl(&format!("enable {}", account("d")["id"].as_str().unwrap())).ok();
    for name in NAMES.into_iter().chain(came.new.iter().map(String::as_str)) {
        let known = account(name);
        assert!(known["state"] != "needs_login", "{known}");
        let door = Door::of_account(world, name);
        let answer = door.send(&door.turn()).unwrap();
        assert!(answer.is_complete(), "{name}: {} {}", answer.status, answer.text());
    }
    let file = fs::read_to_string(world.codex_home().join("auth.json")).unwrap();
    let own: Value = serde_json::from_str(&file).unwrap();
    assert!(rotate(world.sim(), &own["tokens"]).is_some(), "the CLI's own login still works");
    world.assert_clean();
}
