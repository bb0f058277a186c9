//! Who may come in: keys, hosts, web pages, limits, and ten thousand bad requests.

use cma_proto::{
    client::Client,
    codec::Codec,
    endpoint::Root,
    message::{Launch, LaunchRequest, Reply, Request},
};
use cma_tests::{
    http::{Ask, Door, Line},
    sim::SimConfig,
    world::{World, eventually},
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

const WHOAMI: &str = "/api/accounts/v1/user-auth-credential/whoami";

fn world() -> (World, Door) {
    let world = World::with_accounts(SimConfig::default());
    let door = Door::of(&world);
    (world, door)
}

fn status(door: &Door, ask: &Ask) -> u16 {
    door.send(ask).unwrap_or_else(|error| panic!("{error}: {ask:?}")).status
}

#[test]
fn only_a_good_key_opens_and_only_the_clis_routes() {
    let (world, door) = world();
    let seen = world.sim().seen().len();
    let (half, mac) = door.key.split_once('.').unwrap();
    let turned: String = mac.chars().rev().collect();
    for key in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer at-cma-",
        "Bearer at-cma-AAAA.AAAA",
        "Bearer sk-something",
        &format!("Basic {}", door.key),
        &format!("bearer{}", door.key),
        &format!("Bearer {half}"),
        &format!("Bearer {half}.{turned}"),
        &format!("Bearer {}x", door.key),
        &format!("Bearer {}", "at-cma-".to_owned() + &"A".repeat(10_000)),
    ] {
        for ask in [door.turn(), door.ask("GET", WHOAMI), door.ask("GET", "/codex/models")] {
            assert_eq!(status(&door, &ask.with("authorization", key)), 401, "{key}");
        }
    }
    assert_eq!(status(&door, &door.turn().without("authorization")), 401);
    let twice = door.turn().header("authorization", "Bearer x");
    assert_eq!(status(&door, &twice), 401);
    // Tool servers: the CLI asks without a key on loopback, and a 401 would make it log in.
    for ask in [door.ask("POST", "/backend-api/ps/mcp"), door.ask("GET", "/backend-api/ps/mcp")] {
        assert_eq!(status(&door, &ask.clone().without("authorization")), 404);
        assert_eq!(status(&door, &ask), 404);
    }
    for (method, path) in [
        ("GET", "/"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/codex/responses/../../wham/usage"),
        ("POST", "/backend-api/codex/responses"),
        ("DELETE", "/codex/responses"),
        ("GET", "/backend-api/ps/plugins/../../oauth/token"),
        ("GET", "/backend-api/accounts"),
        ("POST", "/oauth/token"),
        ("GET", "/__sim/stats"),
    ] {
        assert_eq!(status(&door, &door.ask(method, path)), 404, "{method} {path}");
    }
    assert_eq!(world.sim().seen().len(), seen, "something reached upstream");
    let told = door.send(&door.turn().without("authorization")).unwrap();
    assert_eq!(told.header("x-cma-error"), Some("denied"));
    assert!(told.text().contains("cmactl launch --print"), "{}", told.text());
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}

#[test]
fn web_pages_and_foreign_hosts_are_refused() {
    let (world, door) = world();
    let seen = world.sim().seen().len();
    let port = door.addr.port();
    for host in [
        "evil.test".to_owned(),
        format!("evil.test:{port}"),
        format!("127.0.0.1.evil.test:{port}"),
        format!("127.0.0.1:{}", port ^ 1),
        "127.0.0.1".to_owned(),
        String::new(),
    ] {
        for ask in [door.turn(), door.ask("GET", WHOAMI), door.ask("POST", "/backend-api/ps/mcp")] {
            assert_eq!(status(&door, &ask.with("host", &host)), 403, "{host}");
        }
    }
    assert_eq!(status(&door, &door.turn().without("host")), 403);
    assert_eq!(status(&door, &door.turn().header("host", "evil.test")), 403);
    assert_eq!(status(&door, &door.turn().header("host", &door.addr.to_string())), 403);
    let upgrade = |ask: Ask| {
        ask.header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    for origin in ["null", "", "https://chatgpt.com", &format!("http://127.0.0.1:{port}")] {
        for ask in [
            door.turn(),
            door.ask("GET", WHOAMI),
            door.ask("OPTIONS", "/codex/responses"),
            upgrade(door.ask("GET", "/codex/responses")),
        ] {
            assert_eq!(status(&door, &ask.header("origin", origin)), 403, "{origin}");
        }
    }
    assert_eq!(status(&door, &upgrade(door.ask("GET", "/codex/responses"))), 101);
    assert_eq!(
        status(&door, &door.ask("GET", WHOAMI).with("host", &format!("localhost:{port}"))),
        200
    );
    assert_eq!(world.sim().seen().len(), seen, "something reached upstream");
    world.assert_clean();
}

/// Prints a key of its own process, then lives until its stdin ends. Run by the next test.
#[test]
fn child_with_a_key() {
    let Some(root) = std::env::var_os("CMA_TEST_ROOT") else { return };
    let mut client = Client::connect(&Root::at(Path::new(&root)), "test", Codec::Json).unwrap();
    let here = std::env::current_dir().unwrap().display().to_string();
    let request = LaunchRequest {
        printed: false,
        codex_version: "0.169.0".to_owned(),
        codex_home: here.clone(),
        cwd: here,
        overrides: Vec::new(),
        profile: None,
        interactive: false,
        no_proxy: String::new(),
        ignore_user_config: false,
    };
    let Reply::Launch(launch) = client.call(&Request::Launch(request)).unwrap() else { panic!() };
    let Launch::Through(plan) = *launch else { panic!("{launch:?}") };
    println!("\nkey {}", plan.client_key);
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_key_ends_with_its_process() {
    let (world, door) = world();
    let mut command = world.command(std::env::current_exe().unwrap());
    command
        .args(["gate::child_with_a_key", "--exact", "--nocapture"])
        .env("CMA_TEST_ROOT", world.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let key = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("key ").map(str::to_owned))
        .expect("the child prints its key");
    let theirs = Door { key, ..door };
    assert!(theirs.send(&theirs.turn()).unwrap().is_complete());
    // A daemon that was killed has forgotten nothing that the key needs.
    world.kill_daemon();
    world.ctl("daemon start").ok();
    assert_eq!(theirs.get(WHOAMI).unwrap().status, 200);
    drop(child.stdin.take());
    child.wait().unwrap();
    eventually("the key of an ended process is refused", || {
        theirs.get(WHOAMI).unwrap().status == 401
    });
    world.assert_clean();
}

#[test]
fn heads_and_bodies_are_bounded() {
    let (world, door) = world();
    let large = door.ask("GET", WHOAMI).header("x-large", &"x".repeat(300 * 1024));
    assert_eq!(status(&door, &large), 431);
    let many = (0..200).fold(door.ask("GET", WHOAMI), |ask, n| ask.header(&format!("x-{n}"), "1"));
    assert_eq!(status(&door, &many), 431);
    // A head without an end is cut off long before its sender is through.
    let mut line = Line::open(door.addr).unwrap();
    line.write(b"GET / HTTP/1.1\r\n").unwrap();
    let mut sent = 0;
    while sent < (8 << 20) && line.write(&b"x-filler: 0123456789abcdef\r\n".repeat(256)).is_ok() {
        sent += 256 * 28;
    }
    assert!(sent < (8 << 20), "a head of {sent} bytes was read");
    // A length over the limit is refused unread.
    let begun = Instant::now();
    let body = door.turn().with("content-length", &(300_u64 << 20).to_string());
    let mut bytes = body.bytes();
    bytes.truncate(bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4);
    let mut line = Line::open(door.addr).unwrap();
    line.write(&bytes).unwrap();
    let answer = line.answer().unwrap();
    assert_eq!((answer.status, answer.header("x-cma-error")), (413, Some("too_large")));
    assert!(begun.elapsed() < Duration::from_secs(1));
    let analytics = door.ask("POST", "/backend-api/codex/analytics-events/events");
    assert_eq!(status(&door, &analytics.body(vec![b' '; 5 << 20])), 413);
    // Silent ones don't keep others out.
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(door.addr).unwrap()).collect();
    for mut stream in &silent {
        stream.write_all(b"POST /codex/responses HTTP/1.1\r\nhost:").unwrap();
    }
    assert!(door.send(&door.turn()).unwrap().is_complete());
    drop(silent);
    assert_eq!(world.sim().stats().accounts["a"].served, 1);
    world.assert_clean();
}

/// Those over the bound wait in the kernel's queue, and the next turn is answered once they have gone.
#[test]
fn connections_have_a_bound() {
    let (world, door) = world();
    let pid = world.daemon_pid().unwrap();
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let idle = open();
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    // The queue holds some beyond the bound; a connect that is left waiting is one too many.
    let connect = |_| TcpStream::connect_timeout(&door.addr, Duration::from_secs(2)).ok();
    let silent: Vec<TcpStream> = (0..4300).map_while(connect).collect();
    assert!(silent.len() >= 4096, "{} connections", silent.len());
    eventually("all it takes are taken", || open() >= idle + 4090);
    let taken = open() - idle;
    assert!(taken <= 4096 + 8, "{taken} connections were taken");
    drop(silent);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}

/// What follows a refused head on the connection is its body, never a request.
#[test]
fn the_body_of_a_refused_request_is_not_the_next_one() {
    let (world, door) = world();
    let hidden = door.turn().bytes();
    for refused in [
        door.turn().with("authorization", "Bearer wrong"),
        door.turn().header("origin", "null"),
        door.turn().with("host", "evil.test"),
        door.ask("POST", "/nowhere"),
        door.ask("GET", WHOAMI),
        door.ask("POST", "/backend-api/ps/mcp"),
    ] {
        let mut line = Line::open(door.addr).unwrap();
        line.write(&refused.body(hidden.clone()).bytes()).unwrap();
        line.answer().unwrap();
        // Either it hangs up, or what comes next is the answer to what is asked next.
        let asked = line.write(&door.ask("GET", "/nowhere/at/all").bytes());
        if let Ok(answer) = asked.and_then(|()| line.answer()) {
            assert_eq!(answer.status, 404, "{}", answer.text());
        }
    }
    assert!(world.sim().stats().accounts.get("a").is_none_or(|stats| stats.served == 0));
    world.assert_clean();
}

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One bad request of a random kind.
fn malformed(door: &Door, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut noise =
        |most: usize| -> Vec<u8> { (0..rng.usize(1..most)).map(|_| rng.u8(..)).collect() };
    let bytes = noise(2000);
    let cut = usize::from(bytes[0]) + 1;
    match bytes.len() % 9 {
        0 => bytes,
        1 => door.turn().bytes().into_iter().take(cut).collect(),
        2 => {
            let ask = door.turn().without("content-length").with("authorization", "Bearer wrong");
            let mut chunked = ask.header("transfer-encoding", "chunked").bytes();
            chunked.extend_from_slice(b"zz\r\nnot a chunk\r\n");
            chunked
        },
        3 => door.ask("BREW", "/codex/responses").bytes(),
        4 => door.turn().with("authorization", &format!("Bearer at-cma-{cut}.{cut}")).bytes(),
        5 => door.turn().with("host", "evil.test").header("content-length", "7").bytes(),
        6 => door.ask("GET", &format!("/{}", "../".repeat(cut))).header("origin", "null").bytes(),
        7 => {
            let mut ask = b"GET / HTTP/9.9\r\n".to_vec();
            ask.extend_from_slice(&bytes);
            ask.extend_from_slice(b"\r\n\r\n");
            ask
        },
        _ => door
            .ask("GET", WHOAMI)
            .with("authorization", "x")
            .header("x-y", &"z".repeat(cut * 300))
            .bytes(),
    }
}

/// Sends it and takes whatever comes.
fn throw(door: &Door, bytes: &[u8]) {
    let mut stream = TcpStream::connect(door.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // It may have hung up already.
    let _cut = stream.write_all(bytes);
    let _gone = stream.shutdown(Shutdown::Write);
    let _cut = stream.read_to_end(&mut Vec::new());
}

#[test]
fn ten_thousand_malformed_requests_change_nothing() {
    let (world, door) = world();
    let seed = std::env::var("CMA_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("CMA_SIM_SEED={seed}");
    let volley = |from: u64, many: u64| {
        std::thread::scope(|scope| {
            for n in 0..4 {
                let door = &door;
                let mut rng = fastrand::Rng::with_seed(seed ^ from ^ n);
                scope.spawn(move || {
                    (0..many / 4).for_each(|_| throw(door, &malformed(door, &mut rng)));
                });
            }
        });
    };
    // What every first request costs once is not what is measured.
    volley(1000, 400);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    std::thread::sleep(Duration::from_millis(500));
    let pid = world.daemon_pid().unwrap();
    let (before, accounts) = (rss_kib(pid), world.status()["accounts"].clone());
    volley(2000, 10_000);
    std::thread::sleep(Duration::from_secs(1));
    let after = rss_kib(pid);
    eprintln!("resident: {before} KiB before, {after} KiB after");
    assert!(after <= before + 4096, "{before} KiB before, {after} KiB after");
    assert_eq!(world.status()["accounts"], accounts);
    assert_eq!(world.daemon_pid(), Some(pid));
    assert!(door.send(&door.turn()).unwrap().is_complete());
    assert_eq!(world.sim().stats().accounts["a"].served, 2);
    world.assert_clean();
}
