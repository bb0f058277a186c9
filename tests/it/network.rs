//! Ways to the upstream: proxies, roots, HTTP/2, IPv6, names. What goes wrong there is no account's
//! fault, and is told.

use cma_tests::{
    http::Door,
    sim::{AccountSpec, Fault, Route, Seen, SimConfig, tls::Authority},
    world::{World, eventually},
};
use parking_lot::Mutex;
use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

const BACKEND: &str = "backend.cma-test.invalid";
const ISSUER: &str = "issuer.cma-test.invalid";
const BEST: &[&str] = &["h2", "http/1.1"];

fn config(names: &[&str]) -> SimConfig {
    let accounts = names.iter().map(|name| AccountSpec::new(name)).collect();
    SimConfig { accounts, ..SimConfig::default() }
}

/// A world whose upstream speaks TLS; its authority's certificate stands in `tmp/ca.pem`, which
/// nobody was told yet.
fn secured(protocols: &[&str]) -> World {
    let authority = Authority::new();
    let names = ["localhost", BACKEND, ISSUER];
    let world = World::new(SimConfig {
        tls: Some(authority.server(&names, protocols)),
        names: names.map(str::to_owned).to_vec(),
        ..config(&["a", "b"])
    });
    fs::write(world.path("tmp/ca.pem"), authority.pem()).unwrap();
    world
}

/// The same, trusted.
fn trusting(protocols: &[&str]) -> World {
    let world = secured(protocols);
    let roots = world.path("tmp/ca.pem");
    world.with_env("CODEX_CA_CERTIFICATE", roots.to_str().unwrap())
}

/// Names both hosts in `config.toml`, since the environment may name loopback only, and adds to it.
fn named(world: World, more: &str) -> World {
    let port = world.sim().addr().port();
    let text = format!(
        "{more}\n[upstream]\nbackend = 'https://{BACKEND}:{port}/backend-api'\n\
         issuer = 'https://{ISSUER}:{port}'\n"
    );
    fs::create_dir_all(world.root()).unwrap();
    fs::write(world.root().join("config.toml"), text).unwrap();
    // Empty counts as unset.
    world.with_env("CMA_UPSTREAM_BACKEND", "").with_env("CMA_UPSTREAM_ISSUER", "")
}

#[track_caller]
fn serves(door: &Door) {
    let answer = door.send(&door.turn()).unwrap();
    assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
}

/// The same over a WebSocket, two turns on one connection.
#[track_caller]
fn serves_frames(door: &Door) {
    let mut socket = door.socket("thread-1").unwrap_or_else(|answer| panic!("{answer:?}"));
    let first = socket.say("hello");
    assert!(first.is_complete(), "{:?}", first.0);
    let next = socket.go_on(&first.id(), "more");
    assert!(next.is_complete(), "{:?}", next.0);
}

/// Nobody rests or needs a login.
#[track_caller]
fn nobody_is_to_blame(world: &World) {
    let status = world.status();
    for account in status["accounts"].as_array().unwrap() {
        assert!(account["state"] == "ready", "{account}");
    }
}

/// How the turns that arrived were sent.
fn versions(world: &World) -> Vec<bool> {
    let posts = |seen: &Seen| seen.method == "POST" && seen.path.ends_with("/responses");
    let turns = world.sim().seen().into_iter().filter(posts);
    turns.map(|seen| seen.header(":version") == Some("HTTP/2")).collect()
}

/// A proxy that takes `CONNECT`, for one user, and finds every name on this machine.
struct Tunnels {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    /// The client's ends of those that are open.
    open: Arc<Mutex<Vec<TcpStream>>>,
    stopped: Arc<AtomicBool>,
}

impl Tunnels {
    /// `login` as it stands behind `Basic`.
    fn start(login: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (asked, stopped) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (known, over) = (Arc::clone(&asked), Arc::clone(&stopped));
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let ends = Arc::clone(&open);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let known = Arc::clone(&known);
                ends.lock().extend(stream.as_ref().ok().and_then(|it| it.try_clone().ok()));
                // A client that goes away ends its tunnel.
                thread::spawn(move || drop(tunnel(stream.unwrap(), login, &known)));
            }
        });
        Self { addr, asked, open, stopped }
    }

    /// Ends all that are open.
    fn cut(&self) {
        for end in self.open.lock().drain(..) {
            drop(end.shutdown(Shutdown::Both));
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.addr));
    }
}

fn tunnel(mut client: TcpStream, login: &str, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().push(head.clone());
    let knows = head.lines().filter_map(|line| line.split_once(": ")).any(|(name, value)| {
        name.eq_ignore_ascii_case("proxy-authorization") && value == format!("Basic {login}")
    });
    if !knows {
        return client.write_all(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n");
    }
    let port: u16 = target.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
    let host = TcpStream::connect(("127.0.0.1", port))?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    pipe(client, host)
}

/// Both ways, until one end closes.
fn pipe(client: TcpStream, mut host: TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = (client.try_clone()?, client);
    let mut to_host = host.try_clone()?;
    let up = thread::spawn(move || {
        drop(io::copy(&mut from_client, &mut to_host));
        drop(to_host.shutdown(Shutdown::Write));
    });
    drop(io::copy(&mut host, &mut to_client));
    drop(to_client.shutdown(Shutdown::Both));
    drop(up.join());
    Ok(())
}

/// `me:secret-of-a-proxy`
const LOGIN: &str = "bWU6c2VjcmV0LW9mLWEtcHJveHk=";

/// A world behind a proxy that wants [`LOGIN`].
fn behind(proxy: &Tunnels, protocols: &[&str]) -> World {
    let world = named(trusting(protocols), "")
        .with_env("HTTPS_PROXY", &format!("http://me:secret-of-a-proxy@{}", proxy.addr));
    world.import_all();
    world
}

#[test]
fn a_proxy_with_a_login_carries_turns_and_renewals() {
    let proxy = Tunnels::start(LOGIN);
    for protocols in [BEST, &["http/1.1"]] {
        let world = behind(&proxy, protocols);
        let door = Door::of_account(&world, "a");
        serves(&door);
        world.sim().expire_access("a");
        serves(&door);
        assert_eq!(world.account("a")["generation"], 2);
        serves_frames(&door);
        assert_eq!(world.sim().stats().frames, 2, "no turn went over HTTP instead");
        assert!(versions(&world).iter().all(|two| *two == (protocols == BEST)));
        let port = world.sim().addr().port();
        for host in [BACKEND, ISSUER] {
            let start = format!("CONNECT {host}:{port} HTTP/1.1\r\n");
            assert!(proxy.asked().iter().any(|head| head.starts_with(&start)), "{host}");
        }
        let status = world.status();
        let environment = status["daemon"]["environment"].to_string();
        assert!(environment.contains("HTTPS_PROXY") && environment.contains("***@"));
        let all = status.to_string() + &world.ctl("logs").stdout;
        assert!(!all.contains("secret-of-a-proxy"), "{all}");
        // The tunnel's end sees TLS alone.
        assert!(proxy.asked().iter().all(|head| !head.contains(&world.sim().canary())));
        world.assert_clean();
    }
}

/// SOCKS 5 for one user, or for anybody; every name is found on this machine.
fn socks(
    login: Option<(&'static str, &'static str)>,
    asked: Arc<Mutex<Vec<String>>>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = move |mut client: TcpStream, asked: &Mutex<Vec<String>>| -> io::Result<()> {
        let some = |client: &mut TcpStream, n: usize| {
            let mut bytes = vec![0; n];
            client.read_exact(&mut bytes).map(|()| bytes)
        };
        let methods = some(&mut client, 2)?[1];
        let methods = some(&mut client, usize::from(methods))?;
        let wanted = if login.is_some() { 2 } else { 0 };
        assert!(methods.contains(&wanted), "{methods:?}");
        client.write_all(&[5, wanted])?;
        if let Some((user, password)) = login {
            for (part, known) in [user, password].into_iter().enumerate() {
                let length = some(&mut client, if part == 0 { 2 } else { 1 })?;
                let said = some(&mut client, usize::from(*length.last().unwrap()))?;
                assert_eq!(said, known.as_bytes());
            }
            client.write_all(&[1, 0])?;
        }
        let kind = some(&mut client, 4)?[3];
        let name = match kind {
            3 => {
                let length = some(&mut client, 1)?[0];
                String::from_utf8(some(&mut client, usize::from(length))?).unwrap()
            },
            _ => format!("{:?}", some(&mut client, if kind == 1 { 4 } else { 16 })?),
        };
        let port = some(&mut client, 2)?;
        asked.lock().push(name);
        let host = TcpStream::connect(("127.0.0.1", u16::from_be_bytes([port[0], port[1]])))?;
        client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])?;
        pipe(client, host)
    };
    // It ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let asked = Arc::clone(&asked);
            thread::spawn(move || drop(serve(stream.unwrap(), &asked)));
        }
    });
    addr
}

#[test]
fn socks_proxies_carry_turns_and_renewals_too() {
    for (scheme, login) in [("socks5h", Some(("me", "secret-of-a-proxy"))), ("socks5", None)] {
        let asked = Arc::default();
        let addr = socks(login, Arc::clone(&asked));
        let world = trusting(BEST);
        let hosts = world.path("tmp/hosts");
        fs::write(&hosts, format!("127.0.0.1 {BACKEND} {ISSUER}\n")).unwrap();
        let more = match scheme {
            "socks5" => format!("[network]\nhosts_file = '{}'", hosts.display()),
            _ => String::new(),
        };
        let user = login.map(|(user, word)| format!("{user}:{word}@")).unwrap_or_default();
        let world = named(world, &more).with_env("all_proxy", &format!("{scheme}://{user}{addr}"));
        world.import_all();
        let door = Door::of_account(&world, "a");
        serves(&door);
        world.sim().expire_access("a");
        serves(&door);
        assert_eq!(world.account("a")["generation"], 2);
        serves_frames(&door);
        assert_eq!(world.sim().stats().frames, 2, "no turn went over HTTP instead");
        let names = match scheme {
            "socks5h" => vec![BACKEND.to_owned(), ISSUER.to_owned()],
            _ => vec!["[127, 0, 0, 1]".to_owned()],
        };
        let seen: Vec<String> = asked.lock().clone();
        assert!(names.iter().all(|name| seen.contains(name)), "{scheme}: {seen:?}");
        assert!(seen.iter().all(|name| names.contains(name)), "{scheme}: {seen:?}");
        world.assert_clean();
    }
}

#[test]
fn a_proxy_that_refuses_is_named_and_costs_no_account() {
    let proxy = Tunnels::start("b3RoZXI6b3RoZXI=");
    let world = named(trusting(BEST), "")
        .with_env("ALL_PROXY", &format!("http://me:secret-of-a-proxy@{}", proxy.addr));
    world.import_all();
    let door = Door::of(&world);
    thread::scope(|scope| {
        let turn = scope.spawn(|| door.send(&door.turn()).unwrap());
        eventually("status says why", || world.status()["notes"].to_string().contains("407"));
        nobody_is_to_blame(&world);
        let answer = turn.join().unwrap();
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("407") && answer.text().contains("***@"));
        assert!(!answer.text().contains("secret-of-a-proxy"));
    });
    assert_eq!(world.sim().stats().requests, 0);
    world.assert_clean();
}

#[test]
fn hosts_that_are_named_so_go_past_the_proxy() {
    let proxy = Tunnels::start("-");
    let world = secured(BEST);
    let hosts = world.path("tmp/hosts");
    fs::write(&hosts, format!("127.0.0.1 {BACKEND} {ISSUER}\n")).unwrap();
    let more = format!(
        "[network]\nproxy = 'http://{}'\nno_proxy = '.cma-test.invalid'\nca_file = '{}'\n\
         hosts_file = '{}'",
        proxy.addr,
        world.path("tmp/ca.pem").display(),
        hosts.display()
    );
    let world = named(world, &more).with_env("NO_PROXY", "elsewhere.test");
    world.import_all();
    serves(&Door::of(&world));
    assert_eq!(proxy.asked(), Vec::<String>::new());
    world.assert_clean();
}

#[test]
fn a_proxy_of_an_unknown_kind_is_refused_at_the_start() {
    let world = World::new(config(&["a"])).with_env("HTTPS_PROXY", "socks4://me:hush@127.0.0.1:1");
    for command in ["daemon start", "status"] {
        let refused = world.ctl(command);
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        assert!(refused.stderr.contains("`HTTPS_PROXY`"), "{}", refused.stderr);
        assert!(refused.stderr.contains("socks5h") && !refused.stderr.contains("hush"));
    }
}

#[test]
fn roots_come_from_the_file_and_a_bad_one_is_one_clear_error() {
    let world = secured(BEST);
    world.import_all();
    let door = Door::of(&world);
    thread::scope(|scope| {
        let turn = scope.spawn(|| door.send(&door.turn()).unwrap());
        eventually("status says what to do", || {
            let notes = world.status()["notes"].to_string();
            notes.contains("UnknownIssuer") && notes.contains("CODEX_CA_CERTIFICATE")
        });
        nobody_is_to_blame(&world);
        let answer = turn.join().unwrap();
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains("CODEX_CA_CERTIFICATE"), "{}", answer.text());
    });
    assert_eq!(world.sim().stats().requests, 0);
    world.ctl("daemon stop").ok();
    let good = world.path("tmp/ca.pem");
    let (empty, missing) = (world.path("tmp/empty.pem"), world.path("tmp/missing.pem"));
    fs::write(&empty, "nothing").unwrap();
    let mut world = world;
    for bad in [&empty, &missing] {
        world = world.with_env("CODEX_CA_CERTIFICATE", bad.to_str().unwrap());
        for command in ["daemon start", "status"] {
            let refused = world.ctl(command);
            assert_eq!(refused.code, 3, "{}", refused.stderr);
            let says = ["`CODEX_CA_CERTIFICATE`", bad.to_str().unwrap()];
            assert!(says.iter().all(|part| refused.stderr.contains(part)), "{}", refused.stderr);
        }
    }
    // The CLI's own variable beats the general one.
    let world = world
        .with_env("CODEX_CA_CERTIFICATE", good.to_str().unwrap())
        .with_env("SSL_CERT_FILE", missing.to_str().unwrap());
    world.ctl("daemon start").ok();
    serves(&door);
    let environment = world.status()["daemon"]["environment"].to_string();
    assert!(environment.contains("CODEX_CA_CERTIFICATE"), "{environment}");
    world.assert_clean();
}

#[test]
fn streams_share_one_connection_and_accounts_none() {
    let world = trusting(BEST);
    world.import_all();
    world.sim().set_event_gap(Duration::from_millis(20));
    let doors = ["a", "b"].map(|name| Door::of_account(&world, name));
    let before = world.sim().stats().connections;
    thread::scope(|scope| {
        for n in 0..40 {
            let door = &doors[n % 2];
            scope.spawn(move || serves(door));
        }
    });
    assert_eq!(world.sim().stats().connections, before + 2);
    assert!(versions(&world).iter().all(|two| *two) && versions(&world).len() == 40);
    let stats = world.sim().stats().accounts;
    assert!(stats["a"].responses_at_once > 1 && stats["a"].completed == 20, "{stats:?}");
    world.assert_clean();
}

#[test]
fn a_host_that_sends_us_away_or_refuses_is_obeyed_unseen() {
    let world = trusting(BEST);
    world.import_all();
    let door = Door::of_account(&world, "a");
    world.sim().set_event_gap(Duration::from_millis(100));
    thread::scope(|scope| {
        let running = scope.spawn(|| serves(&door));
        eventually("it runs", || {
            world.sim().stats().accounts.get("a").is_some_and(|a| a.served == 1)
        });
        let before = world.sim().stats().connections;
        world.sim().go_away();
        // What was sent before it heard of that is still served there.
        eventually("it goes elsewhere", || {
            serves(&door);
            world.sim().stats().connections == before + 1
        });
        running.join().unwrap();
    });
    for _ in 0..3 {
        world.sim().go_away();
        serves(&door);
    }
    let served = world.sim().stats().accounts["a"].served;
    world.sim().fault(Some("a"), Route::Responses, Fault::RefuseStream, Some(1));
    serves(&door);
    // Once more than the one repetition that nobody sees: the turn's own.
    world.sim().fault(Some("a"), Route::Responses, Fault::RefuseStream, Some(2));
    serves(&door);
    assert_eq!(world.sim().stats().accounts["a"].served, served + 2);
    nobody_is_to_blame(&world);
    // A stream that is reset in the middle is cut for the client too.
    let cut = Fault::CutMidStream { after: 2, by: cma_tests::sim::Cut::Reset };
    world.sim().fault(Some("a"), Route::Responses, cut, Some(1));
    assert!(door.send(&door.turn()).is_err(), "a cut stream must not look whole");
    serves(&door);
    world.assert_clean();
}

/// A VPN flips: what ran on a connection that was kept is sent once more, with the same account.
#[test]
fn a_connection_that_dies_under_its_requests_moves_no_thread() {
    let proxy = Tunnels::start(LOGIN);
    for protocols in [BEST, &["http/1.1"]] {
        let world = behind(&proxy, protocols);
        let door = Door::of(&world);
        serves(&door);
        let turns = |seen: &Seen| seen.method == "POST" && seen.path.ends_with("/responses");
        let asked = || world.sim().seen().into_iter().filter(turns).count();
        world.sim().fault(
            None,
            Route::Responses,
            Fault::SlowHead(Duration::from_secs(20)),
            Some(1),
        );
        thread::scope(|scope| {
            let waiting = scope.spawn(|| serves(&door));
            eventually("it waits", || asked() == 2);
            proxy.cut();
            waiting.join().unwrap();
        });
        let served = world.sim().seen().into_iter().filter(turns);
        let served: Vec<_> = served.filter_map(|seen| seen.account).collect();
        assert_eq!(served, ["a", "a", "a"], "{protocols:?}");
        nobody_is_to_blame(&world);
        world.assert_clean();
    }
}

#[test]
fn http_1_is_used_where_that_is_all_there_is_or_wanted() {
    let settings = ["", "[network]\nhttp2 = 'off'\n"];
    for (protocols, settings) in [(["http/1.1"].as_slice(), settings[0]), (BEST, settings[1])] {
        let world = trusting(protocols);
        fs::create_dir_all(world.root()).unwrap();
        fs::write(world.root().join("config.toml"), settings).unwrap();
        world.import_all();
        let door = Door::of(&world);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| serves(&door));
            }
        });
        let before = world.sim().stats().connections;
        serves(&door);
        assert_eq!(world.sim().stats().connections, before, "a kept one is used");
        assert!(versions(&world).iter().all(|two| !*two));
        world.assert_clean();
    }
}

/// A WebSocket upstream is HTTP/1.1 whatever else its host speaks, in TLS as without, and a bad root
/// or a proxy that refuses is told on it in the same words.
#[test]
fn sockets_go_over_tls_and_say_why_when_they_cannot() {
    for protocols in [BEST, &["http/1.1"]] {
        let world = trusting(protocols);
        world.import_all();
        let door = Door::of_account(&world, "a");
        serves_frames(&door);
        // A turn by the host's best version in between has its own connection.
        serves(&door);
        serves_frames(&door);
        let stats = world.sim().stats();
        assert_eq!((stats.frames, stats.sockets), (4, 2), "no turn went over HTTP instead");
        assert_eq!(versions(&world).last(), Some(&(protocols == BEST)));
        nobody_is_to_blame(&world);
        world.assert_clean();
    }
    let world = secured(BEST);
    world.import_all();
    let mut socket = Door::of(&world).socket("thread-1").unwrap();
    thread::scope(|scope| {
        let turn = scope.spawn(|| socket.say("hello"));
        eventually("status says what to do", || {
            world.status()["notes"].to_string().contains("CODEX_CA_CERTIFICATE")
        });
        let told = turn.join().unwrap();
        assert!(told.last().to_string().contains("CODEX_CA_CERTIFICATE"), "{:?}", told.0);
    });
    nobody_is_to_blame(&world);
    assert_eq!(world.sim().stats().requests, 0);
    world.assert_clean();
}

#[test]
fn large_bodies_pass_both_ways_of_http() {
    for protocols in [BEST, &["http/1.1"]] {
        let world = trusting(protocols);
        world.import_all();
        let door = Door::of(&world);
        let turn = door.turn().body(cma_tests::http::turn_body(3 << 20));
        let answer = door.send(&turn).unwrap();
        assert!(answer.is_complete(), "{} {}", answer.status, answer.text());
        world.assert_clean();
    }
}

#[test]
fn an_upstream_of_ipv6_serves() {
    let listen = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    if TcpListener::bind(listen).is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "there is no IPv6 here");
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let world = World::with_accounts(SimConfig { listen, ..config(&["a"]) });
    let door = Door::of(&world);
    serves(&door);
    world.sim().expire_access("a");
    serves(&door);
    assert_eq!(world.account("a")["generation"], 2);
    serves_frames(&door);
    assert_eq!(world.sim().stats().frames, 2, "no turn went over HTTP instead");
    world.assert_clean();
}

/// Both families stand in the file; only one is served, and the order doesn't matter.
#[test]
fn a_name_is_found_again_when_it_resolves_and_a_dead_family_costs_nothing() {
    let world = trusting(BEST);
    let hosts = world.path("tmp/hosts");
    let more = format!("[network]\nhosts_file = '{}'", hosts.display());
    let world = named(world, &more);
    world.import("a", &world.sim().auth_json_expired("a")).ok();
    world.import("b", &world.sim().auth_json("b")).ok();
    let (a, b) = (Door::of_account(&world, "a"), Door::of_account(&world, "b"));
    thread::scope(|scope| {
        let turns = [scope.spawn(|| serves(&a)), scope.spawn(|| serves(&b))];
        eventually("status names both hosts", || {
            let notes = world.status()["notes"].to_string();
            notes.contains(BACKEND) && notes.contains(ISSUER)
        });
        assert_eq!(world.account("b")["state"], "ready");
        let text = format!("::1 {BACKEND} {ISSUER}\n127.0.0.1 {BACKEND} {ISSUER}\n");
        fs::write(&hosts, text).unwrap();
        for turn in turns {
            turn.join().unwrap();
        }
    });
    eventually("nothing is wrong any more", || world.status()["notes"] == serde_json::json!([]));
    nobody_is_to_blame(&world);
    let stats = world.sim().stats().accounts["a"].clone();
    assert_eq!((stats.refreshed, stats.replayed, stats.reused), (1, 0, 0));
    world.assert_clean();
}

/// Memory that the daemon has, in KiB.
fn resident(world: &World) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", world.daemon_pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What an open socket in the middle of a turn costs with TLS upstream. (docs/performance.md)
/// Has had the cache open before anything is measured: what sled then keeps for good are untouched pages in
/// a release build, and twenty megabytes in this one.
fn settle(world: &World) {
    world.ctl("daemon stop").ok();
    world.ctl("daemon start").ok();
}

#[test]
fn an_open_socket_over_tls_takes_at_most_48_kib() {
    const SOCKETS: usize = 200;
    let world = trusting(&["http/1.1"]);
    world.import_all();
    let door = Door::of_account(&world, "a");
    serves_frames(&door);
    settle(&world);
    serves_frames(&door);
    let before = resident(&world);
    let hang = Fault::StallMidStream { after: 5, pause: Duration::from_secs(30) };
    world.sim().fault(None, Route::Frame, hang, None);
    let mut sockets = Vec::new();
    for n in 0..SOCKETS {
        let mut socket = door.socket(&format!("thread-{n}")).unwrap();
        socket.send(&socket.create(&[cma_tests::ws::said("hello")]));
        sockets.push(socket);
    }
    eventually("each is in its turn", || world.sim().stats().frames == 4 + SOCKETS as u64);
    eventually("so it is here", || world.status()["proxy"]["active"] == SOCKETS);
    let each = (resident(&world) - before).div_ceil(SOCKETS as u64);
    eprintln!("{each} KiB for each of {SOCKETS} sockets");
    assert!(each <= 48, "{each} KiB");
    drop(sockets);
    eventually("all are let go", || world.status()["proxy"]["active"] == 0);
    eventually("upstream's too", || world.sim().stats().sockets_open == 0);
    nobody_is_to_blame(&world);
    world.assert_clean();
}

/// What an open stream costs with TLS upstream, by either version of HTTP. (docs/performance.md)
#[test]
fn an_open_stream_over_tls_takes_at_most_48_kib() {
    const STREAMS: usize = 400;
    for protocols in [BEST, &["http/1.1"]] {
        let world = trusting(protocols);
        world.import_all();
        let door = Door::of_account(&world, "a");
        serves(&door);
        settle(&world);
        serves(&door);
        let before = resident(&world);
        let pause = Duration::from_secs(30);
        let hang = Fault::StallMidStream { after: 2, pause };
        world.sim().fault(None, Route::Responses, hang, None);
        let mut lines = Vec::new();
        for _ in 0..STREAMS {
            let mut line = cma_tests::http::Line::open(door.addr).unwrap();
            line.write(&door.turn().bytes()).unwrap();
            assert_eq!(line.head().unwrap().status, 200);
            assert!(line.piece().unwrap().is_some());
            lines.push(line);
        }
        let each = (resident(&world) - before).div_ceil(STREAMS as u64);
        eprintln!("{protocols:?}: {each} KiB for each of {STREAMS} streams");
        assert!(each <= 48, "{protocols:?}: {each} KiB");
        drop(lines);
        eventually("all are let go", || world.status()["proxy"]["active"] == 0);
        nobody_is_to_blame(&world);
        world.assert_clean();
    }
}
