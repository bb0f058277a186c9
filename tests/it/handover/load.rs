//! Clients that ask without a pause while the daemon is restarted again and again, over HTTP and over WebSockets.

use super::{NAMES, WHILE, Whole, lives, restart, world};
use cma_tests::{
    http::{Door, Line},
    world::{World, eventually},
    ws::{End, Socket, Told, said},
};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

/// Clients that never rest, each for an account.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// The responses that arrived: each is a client's alone.
    numbers: Mutex<BTreeSet<u64>>,
    /// Restarts that have begun, and those that are over.
    restarts: [AtomicUsize; 2],
    /// Turns that ran while one began and until it was over.
    across: AtomicUsize,
    /// Sockets that were closed for a restart.
    closed: AtomicUsize,
}

/// Ends a load, also when what it is there for fails.
struct Ends<'a>(&'a Load);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

impl Load {
    fn failed(&self, what: String) {
        self.failures.lock().push(what);
        // What goes wrong once may do so as fast as it can be asked for.
        thread::sleep(Duration::from_millis(50));
    }

    /// A turn that arrived, with its number if it is whole.
    fn arrived(&self, number: Option<u64>, what: impl FnOnce() -> String) {
        match number {
            Some(number) if self.numbers.lock().insert(number) => {
                self.done.fetch_add(1, Ordering::SeqCst);
            },
            Some(number) => self.failed(format!("response {number} arrived twice: {}", what())),
            None => self.failed(what()),
        }
    }

    /// Turns over HTTP, each on a connection of its own unless it `keeps` the one it has.
    fn run(&self, door: &Door, (whole, name): (&Whole, &str), keeps: bool) {
        let mut kept: Option<Line> = None;
        while !self.over.load(Ordering::SeqCst) {
            let reused = kept.is_some();
            let asked = || {
                let mut line = match kept.take() {
                    Some(line) => line,
                    None => Line::open(door.addr)?,
                };
                line.write(&door.turn().bytes())?;
                let answer = line.answer()?;
                Ok::<_, std::io::Error>((line, answer))
            };
            match { asked }() {
                Ok((line, answer)) => {
                    self.arrived(whole.number(&answer, name), || {
                        format!("{name}: {} {}", answer.status, answer.text())
                    });
                    let closes = answer.header("connection") == Some("close");
                    kept = (keeps && !closes).then_some(line);
                },
                Err(error) => self.failed(format!("{name}, reused {reused}: {error}")),
            }
        }
    }

    /// A session over WebSockets, whose turns go on from each other while its socket is there.
    fn talk(&self, door: &Door, (whole, name): (&Whole, &str), session: &str) {
        let mut open = None;
        while !self.over.load(Ordering::SeqCst) {
            match self.turn(door, session, &mut open) {
                Ok(events) => self.arrived(whole.number_told(&events, name), || {
                    format!("{session}: {}", Value::from(events.as_slice()))
                }),
                Err(why) => self.failed(format!("{session}: {why}")),
            }
        }
    }

    /// One turn. After a close for a restart it is sent with everything on another socket, as the CLI
    /// does (0.169.0, observed); a turn that has begun is never closed.
    fn turn(
        &self,
        door: &Door,
        session: &str,
        open: &mut Option<(Socket, String)>,
    ) -> Result<Vec<Value>, String> {
        for _socket in 0..5 {
            let (mut socket, last) = match open.take() {
                Some(open) => open,
                None => {
                    let opened = door.socket(session);
                    (opened.map_err(|answer| format!("{answer:?}"))?, String::new())
                },
            };
            let mut frame = socket.create(&[said("go on")]);
            if !last.is_empty() {
                frame["previous_response_id"] = last.into();
            }
            let before = self.restarts[0].load(Ordering::SeqCst);
            // One that was closed meanwhile says so when it is read.
            let _closed = socket.send_message(Message::text(frame.to_string()));
            let (events, end) = to_its_end(&mut socket);
            match end {
                None => {
                    if self.restarts[1].load(Ordering::SeqCst) > before {
                        self.across.fetch_add(1, Ordering::SeqCst);
                    }
                    let told = Told(events);
                    *open = Some((socket, told.id()));
                    return Ok(told.0);
                },
                Some(End::Closed(1012)) if events.is_empty() => {
                    self.closed.fetch_add(1, Ordering::SeqCst);
                },
                Some(end) => return Err(format!("{end:?} after {} events", events.len())),
            }
        }
        Err("five sockets in a row were closed".to_owned())
    }

    /// A restart that those who run it are told of.
    #[track_caller]
    fn restart(&self, world: &World) -> u32 {
        self.restarts[0].fetch_add(1, Ordering::SeqCst);
        let pid = restart(world);
        self.restarts[1].fetch_add(1, Ordering::SeqCst);
        pid
    }

    /// Nothing went wrong so far.
    #[track_caller]
    fn assert_fine(&self, when: &str) {
        assert_eq!(self.failures.lock().clone(), Vec::<String>::new(), "{when}");
    }
}

/// The events of a turn, and how the connection ended before its last one if it did.
fn to_its_end(socket: &mut Socket) -> (Vec<Value>, Option<End>) {
    let mut events = Vec::new();
    loop {
        match socket.event() {
            Ok(event) => events.push(event),
            Err(end) => return (events, Some(end)),
        }
        let kind = events.last().and_then(|event| event["type"].as_str());
        let ends = ["response.completed", "response.failed", "response.incomplete", "error"];
        if kind.is_some_and(|kind| ends.contains(&kind)) {
            return (events, None);
        }
    }
}

#[test]
fn twenty_restarts_under_fifty_streams_are_noticed_by_nobody() {
    let world = world();
    let whole = Whole::of(&world);
    let doors = NAMES.map(|name| Door::of_account(&world, name));
    world.sim().set_event_gap(Duration::from_secs(2) / u32::try_from(whole.events()).unwrap());
    let load = Load::default();
    let mut pids = BTreeSet::from([world.daemon_pid().unwrap()]);
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        let _ends = Ends(&load);
        for n in 0..50 {
            let (door, turn, load) = (&doors[n % 2], (&whole, NAMES[n % 2]), &load);
            // Half of them keep their connection.
            scope.spawn(move || load.run(door, turn, n % 4 < 2));
        }
        eventually("they run", || world.status()["proxy"]["active"].as_u64() >= Some(45));
        for n in 0..20 {
            let begun = Instant::now();
            pids.insert(load.restart(&world));
            slowest = slowest.max(begun.elapsed());
            load.assert_fine(&format!("restart {n}"));
            thread::sleep(Duration::from_millis(250));
        }
    });
    let done = load.done.load(Ordering::SeqCst);
    eprintln!("{done} streams over 20 restarts, the slowest {slowest:?}");
    load.assert_fine("at the end");
    assert_eq!(pids.len(), 21, "each time another process");
    assert!(done >= 100, "{done}");
    let last = world.daemon_pid().unwrap();
    eventually("the old ones are gone", || pids.iter().all(|pid| *pid == last || !lives(*pid)));
    let stats = world.sim().stats().accounts;
    assert!(stats.values().all(|account| account.refresh_requests == 0 && account.limited == 0));
    world.assert_clean();
}

/// A turn that runs is told to its end by the daemon it began at. Then its socket is closed with 1012,
/// as one that rests is at once, and the session goes on at the next daemon.
#[test]
fn turns_over_websockets_end_whole_and_their_sessions_go_on() {
    let (sessions, restarts) = (12, 5);
    let world = world();
    let whole = Whole::of(&world);
    let doors = NAMES.map(|name| Door::of_account(&world, name));
    // A turn takes about two seconds, longer than a restart.
    world.sim().set_event_gap(Duration::from_millis(100));
    let load = Load::default();
    let mut pids = BTreeSet::from([world.daemon_pid().unwrap()]);
    thread::scope(|scope| {
        let _ends = Ends(&load);
        for n in 0..sessions {
            let (door, turn, load) = (&doors[n % 2], (&whole, NAMES[n % 2]), &load);
            scope.spawn(move || load.talk(door, turn, &format!("session-{n}")));
        }
        eventually("all talk", || world.status()["proxy"]["active"] == sessions);
        for n in 0..restarts {
            let mut idle = doors[0].socket("idle").unwrap();
            pids.insert(load.restart(&world));
            assert_eq!(idle.message(), Err(End::Closed(1012)), "restart {n}");
            load.assert_fine(&format!("restart {n}"));
            thread::sleep(WHILE);
        }
    });
    let [done, across, closed] =
        [&load.done, &load.across, &load.closed].map(|count| count.load(Ordering::SeqCst));
    eprintln!(
        "{done} turns of {sessions} sessions over {restarts} restarts, {across} of them across one, \
         {closed} sockets closed"
    );
    load.assert_fine("at the end");
    assert_eq!(pids.len(), restarts + 1, "each time another process");
    assert!(across >= restarts, "{across} turns ran across a restart");
    assert!(closed >= sessions, "{closed} sockets were closed for a restart");
    // What upstream was asked for is what arrived: no turn was lost on its way, none was asked twice.
    let stats = world.sim().stats();
    assert_eq!((stats.frames, stats.accounts["a"].refresh_requests), (done as u64, 0));
    let last = world.daemon_pid().unwrap();
    eventually("the old ones are gone", || pids.iter().all(|pid| *pid == last || !lives(*pid)));
    eventually("no socket is left", || world.sim().stats().sockets_open == 0);
    world.assert_clean();
}
