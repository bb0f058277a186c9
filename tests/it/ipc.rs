//! Who may speak on the control socket, and what a rude client can do there: nothing to others.

use cma_proto::{
    client::Client,
    codec::Codec,
    endpoint::Root,
    frame::{Frame, Kind, MAX_HELLO},
    hello::ClientHello,
    message::{Change, Reply, Request},
};
use cma_tests::{
    http::Door,
    sim::{AccountSpec, SimConfig},
    world::{World, bin_dir, copy_program},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::Path,
    time::{Duration, Instant},
};

/// Nobody, on every Linux.
const OTHER: u32 = 65_534;

fn world() -> World {
    let accounts = vec![AccountSpec::new("a"), AccountSpec::new("b")];
    World::with_accounts(SimConfig { accounts, ..SimConfig::default() })
}

fn root(world: &World) -> Root {
    Root::at(&world.root())
}

fn client(world: &World, codec: Codec) -> Client {
    Client::connect(&root(world), "test", codec).unwrap()
}

fn dial(world: &World) -> UnixStream {
    let stream = UnixStream::connect(root(world).socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn frame(kind: Kind, stream: u32, payload: Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame::new(kind, stream, payload).encode(&mut bytes).unwrap();
    bytes
}

/// All that comes until the other side hangs up.
fn until_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _cut = stream.read_to_end(&mut bytes);
    bytes
}

fn hello_in(bytes: Vec<u8>) -> Value {
    let mut bytes = bytes;
    let frame = Frame::decode(&mut bytes).unwrap().expect("a whole frame");
    assert_eq!(frame.kind, Kind::Hello);
    serde_json::from_slice(&frame.payload).unwrap()
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Says what the daemon tells a stranger. Run as another user by the next test.
#[test]
fn child_of_another_user() {
    let Some(socket) = std::env::var_os("CMA_TEST_SOCKET") else { return };
    let mut stream = UnixStream::connect(socket).unwrap();
    // It may be refused before it has said anything.
    let mut hello = serde_json::to_value(ClientHello::new("stranger", Codec::Json)).unwrap();
    hello["client_key"] = std::env::var("CMA_TEST_KEY").unwrap().into();
    let hello = hello.to_string().into_bytes();
    let _refused = stream.write_all(&frame(Kind::Hello, 0, hello));
    let _refused = stream.write_all(&frame(Kind::Request, 1, b"\"status\"".to_vec()));
    println!("\nheard {}", String::from_utf8_lossy(&until_end(&mut stream)));
}

#[test]
fn another_user_is_denied() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run a process as another user");
        return;
    }
    let world = world();
    let socket = root(&world).socket();
    // Every door that the file system keeps shut is opened: the kernel's word has to do.
    for part in socket.ancestors().take_while(|part| part.starts_with(world.path(""))) {
        open_to_all(part);
    }
    // The test's programs may lie where that user can't go.
    let programs = world.path("programs");
    fs::create_dir(&programs).unwrap();
    open_to_all(&programs);
    let copy = |from: &Path, name: &str| {
        copy_program(from, &programs.join(name));
        programs.join(name)
    };
    let cmactl = copy(&bin_dir().join("cmactl"), "cmactl");
    copy(&bin_dir().join("cmad"), "cmad");
    let own = copy(&std::env::current_exe().unwrap(), "it");

    let mut command = world.command(cmactl);
    command.args(["status", "--json", "--root"]).arg(world.root()).uid(OTHER).gid(OTHER);
    let ran = world.finish(command);
    assert_eq!(ran.code, 6, "{}{}", ran.stdout, ran.stderr);
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["code"], "denied", "{error}");
    assert!(ran.stdout.is_empty());

    let mut command = world.command(own);
    command
        .args(["ipc::child_of_another_user", "--exact", "--nocapture"])
        .env("CMA_TEST_SOCKET", &socket)
        // What opens the proxy opens nothing here.
        .env("CMA_TEST_KEY", Door::of(&world).key)
        .uid(OTHER)
        .gid(OTHER);
    let ran = world.finish(command);
    let heard = ran.stdout.split("heard ").nth(1).unwrap_or_else(|| panic!("{ran:?}"));
    assert!(heard.contains("\"denied\"") && heard.contains("another user"), "{heard}");
    assert!(!heard.contains("welcome") && !heard.contains("@example.test"), "{heard}");
    assert_eq!(world.status()["accounts"].as_array().unwrap().len(), 2);
    // The copy of this test has the canary in it.
    fs::remove_dir_all(&programs).unwrap();
    world.assert_clean();
}

#[test]
fn a_protocol_from_the_future_is_refused_with_ranges() {
    let world = world();
    let mut stream = dial(&world);
    let hello = br#"{"min":99,"max":99,"program":"next","version":"9.9","colour":"red"}"#;
    stream.write_all(&frame(Kind::Hello, 0, hello.to_vec())).unwrap();
    let refused = hello_in(until_end(&mut stream));
    assert_eq!(refused["hello"], "refused", "{refused}");
    assert_eq!(refused["code"], "incompatible");
    assert_eq!((&refused["min"], &refused["max"]), (&1.into(), &1.into()));
    assert!(refused["hint"].as_str().unwrap().contains("cmactl daemon restart"), "{refused}");
    // One that also speaks ours is understood, whatever else it says.
    let mut stream = dial(&world);
    let hello = br#"{"min":1,"max":99,"program":"next","version":"9.9","codecs":["json","x"]}"#;
    stream.write_all(&frame(Kind::Hello, 0, hello.to_vec())).unwrap();
    let mut buffer = vec![0; 4096];
    let n = stream.read(&mut buffer).unwrap();
    let welcome = hello_in(buffer[..n].to_vec());
    assert_eq!((&welcome["hello"], &welcome["protocol"]), (&"welcome".into(), &1.into()));
    world.assert_clean();
}

/// What listens where the daemon does, and answers each hello with these bytes.
fn listener(world: &World, answer: Vec<u8>) {
    let socket = root(world).socket();
    let folder = socket.parent().unwrap();
    fs::create_dir_all(folder).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _heard = stream.read(&mut [0; 4096]);
            let _gone = stream.write_all(&answer);
        }
    });
}

#[test]
fn a_daemon_from_the_future_is_told_in_a_line_and_its_hint() {
    let refused = json!({
        "hello": "refused", "code": "incompatible", "min": 99, "max": 99,
        "message": "this daemon speaks protocol 99", "hint": "run `cmactl daemon restart`",
    });
    let welcome = json!({
        "hello": "welcome", "protocol": 99, "codec": "json", "version": "9.9", "instance": "i",
        "root": "/elsewhere", "pid": 1, "colour": "red",
    });
    for answer in [
        frame(Kind::Hello, 0, refused.to_string().into_bytes()),
        frame(Kind::Hello, 0, welcome.to_string().into_bytes()),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ] {
        let world = World::new(SimConfig::default());
        listener(&world, answer);
        let ran = world.ctl("list");
        assert_eq!(ran.code, 5, "{ran:?}");
        assert!(ran.stdout.is_empty(), "{ran:?}");
        let [line, hint] = ran.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{ran:?}") };
        assert!(line.starts_with("error:") && hint.contains("cmactl daemon restart"), "{ran:?}");
        world.assert_clean();
    }
}

#[test]
fn garbage_and_silence_are_hung_up_on() {
    let world = world();
    let oversized = [u32::MAX.to_be_bytes().as_slice(), &[Kind::Hello as u8], &[0; 64]].concat();
    let just_over = u32::try_from(MAX_HELLO + 6).unwrap().to_be_bytes();
    for (what, bytes) in [
        ("text", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("a frame of 4 GiB", oversized),
        ("a hello over its limit", [just_over.as_slice(), &[Kind::Hello as u8], &[0; 8]].concat()),
        ("a request before the hello", frame(Kind::Request, 1, b"\"status\"".to_vec())),
        ("a hello that is none", frame(Kind::Hello, 0, b"{]".to_vec())),
    ] {
        let begun = Instant::now();
        let mut stream = dial(&world);
        stream.write_all(&bytes).unwrap();
        assert!(until_end(&mut stream).is_empty(), "{what} was answered");
        assert!(begun.elapsed() < Duration::from_secs(1), "{what}: {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    assert!(until_end(&mut dial(&world)).is_empty());
    let waited = begun.elapsed();
    assert!((1500..3500).contains(&waited.as_millis()), "silence was borne for {waited:?}");
    // An unreadable request after a good hello is refused, and the conversation goes on.
    let mut stream = dial(&world);
    let hello = serde_json::to_vec(&ClientHello::new("test", Codec::Json)).unwrap();
    stream.write_all(&frame(Kind::Hello, 0, hello)).unwrap();
    stream.write_all(&frame(Kind::Request, 1, b"{\"dance\":{}}".to_vec())).unwrap();
    stream.write_all(&frame(Kind::Request, 2, b"\"status\"".to_vec())).unwrap();
    stream.write_all(&frame(Kind::Reply, 3, Vec::new())).unwrap();
    let heard = String::from_utf8_lossy(&until_end(&mut stream)).into_owned();
    assert!(heard.contains("bad_request") && heard.contains("\"accounts\""), "{heard}");
    world.assert_clean();
}

#[test]
fn forty_clients_at_once_are_all_answered() {
    let world = world();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = client(&world, Codec::Bincode);
                    let reply = client.call(&Request::Status).unwrap();
                    std::thread::sleep(Duration::from_millis(100));
                    matches!(reply, Reply::Status(status) if status.accounts.len() == 2)
                })
            })
            .collect();
        assert!(asked.into_iter().all(|asked| asked.join().unwrap()));
    });
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    world.assert_clean();
}

/// Connections that only stand there must not keep a person from asking.
#[test]
fn idle_clients_do_not_lock_others_out() {
    let world = world();
    let idle: Vec<Client> = (0..31).map(|_| client(&world, Codec::Bincode)).collect();
    assert_eq!(world.ctl("status --json").code, 0);
    let mute: Vec<UnixStream> = (0..64).map(|_| dial(&world)).collect();
    drop(mute);
    assert_eq!(world.ctl("status --json").code, 0);
    // One too many: a clear answer in time, not a hang.
    let more: Vec<UnixStream> = (0..2)
        .map(|_| {
            let mut stream = dial(&world);
            let hello = serde_json::to_vec(&ClientHello::new("idle", Codec::Json)).unwrap();
            stream.write_all(&frame(Kind::Hello, 0, hello)).unwrap();
            stream
        })
        .collect();
    let ran = world.ctl("status");
    assert!(ran.code == 4 || ran.code == 0, "{ran:?}");
    assert!(ran.took < Duration::from_secs(4) && ran.stderr.lines().count() <= 2, "{ran:?}");
    drop(more);
    drop(idle);
    assert_eq!(world.ctl("status --json").code, 0);
    world.assert_clean();
}

#[test]
fn both_codecs_say_the_same() {
    let world = world();
    let plain = world.status();
    let json = world.ctl("--wire json status --json").ok().json();
    for part in ["accounts", "upstream", "pin", "next"] {
        assert_eq!(plain[part], json[part]);
    }
    world.assert_clean();
}

#[test]
fn a_subscriber_sees_the_snapshot_and_every_change_after_it() {
    let world = world();
    let mut listener = client(&world, Codec::Json);
    let snapshot = listener.subscribe().unwrap();
    assert_eq!(snapshot.accounts.len(), 2);
    let ids: Vec<_> = ["b", "a"]
        .into_iter()
        .map(|name| world.ctl(&format!("switch {name} --json")).ok().json()["to"].clone())
        .collect();
    world.ctl("unpin").ok();
    let mut epoch = snapshot.epoch;
    let mut pins = Vec::new();
    while pins.len() < 3 {
        let event = listener.next_event().unwrap().unwrap();
        assert!(event.epoch >= epoch, "epoch {} after {epoch}", event.epoch);
        if let Change::Pin { account } = event.change {
            assert!(event.epoch > epoch, "a change without a new epoch");
            pins.push(Value::from(account));
        }
        epoch = event.epoch;
    }
    assert_eq!(pins.last(), Some(&Value::Null));
    assert!(pins[..2].iter().all(|pin| ids.contains(pin) || pin.is_null()), "{pins:?} {ids:?}");
    assert_eq!(epoch, world.status()["epoch"].as_u64().unwrap());
    // The end of the daemon is the end of the stream, not a failure.
    world.ctl("daemon stop").ok();
    while let Some(event) = listener.next_event().unwrap() {
        assert!(matches!(event.change, Change::Phase { .. }), "{event:?}");
    }
    world.assert_clean();
}

#[test]
fn a_subscriber_that_never_reads_hurts_nobody() {
    let world = world();
    let mut deaf = dial(&world);
    let hello = serde_json::to_vec(&ClientHello::new("deaf", Codec::Json)).unwrap();
    deaf.write_all(&frame(Kind::Hello, 0, hello)).unwrap();
    deaf.write_all(&frame(Kind::Request, 1, b"\"subscribe\"".to_vec())).unwrap();
    let mut listener = client(&world, Codec::Bincode);
    listener.subscribe().unwrap();
    let door = Door::of(&world);
    let served = std::thread::spawn(move || {
        let mut served = 0;
        while served < 1500 {
            match listener.next_event().unwrap().expect("the daemon lives").change {
                Change::Served { outcome, .. } => {
                    assert_eq!(outcome, "complete");
                    served += 1;
                },
                // It was itself too slow for a moment and is given the whole picture.
                Change::Snapshot { status } => served = served.max(status.proxy.served),
                _ => {},
            }
        }
    });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                (0..500).for_each(|_| assert!(door.send(&door.turn()).unwrap().is_complete()));
            });
        }
    });
    served.join().unwrap();
    let switched = world.ctl("switch b --json").ok();
    assert!(switched.took < Duration::from_millis(500), "{:?}", switched.took);
    // The deaf one delays no stop either.
    let begun = Instant::now();
    world.ctl("daemon stop").ok();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(deaf);
    world.assert_clean();
}
