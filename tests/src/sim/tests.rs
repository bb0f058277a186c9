//! The simulated upstream against its own rules, over real sockets.

mod around;
mod backend;
mod faults;
mod issuer;
mod programs;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::config::CLIENT_ID;
use super::drive::{DriveConfig, drive};
use super::{AccountSpec, Cut, Fault, Outcome, Route, Sim, SimConfig, Window};

/// An answer as it was read until the connection ended.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sends one request over a connection of its own. `None`: no head came.
fn send(sim: &Sim, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Got> {
    let mut stream = TcpStream::connect(sim.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut head = format!("{target} HTTP/1.1\r\nhost: {}\r\n", sim.addr());
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    write!(head, "content-length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    read(&mut stream)
}

fn read(stream: &mut TcpStream) -> Option<Got> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
        }
        let text = String::from_utf8_lossy(&all);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = match length {
            Some(length) => body.len() >= length.parse::<usize>().unwrap(),
            None => body.ends_with("0\r\n\r\n"),
        };
        if whole || head.contains(" 304 ") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&all);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Got { status, head: head.to_owned(), body: body.to_owned() })
}

fn login(sim: &Sim, account: &str) -> Value {
    serde_json::from_str(&sim.auth_json(account)).unwrap()
}

fn token<'v>(login: &'v Value, which: &str) -> &'v str {
    login.pointer(&format!("/tokens/{which}")).unwrap().as_str().unwrap()
}

fn refresh(sim: &Sim, token: &str) -> Option<Got> {
    let body = json!({
        "client_id": CLIENT_ID,
        "grant_type": "refresh_token",
        "refresh_token": token,
        "refresh_reason": "proactive_expiry",
    });
    let headers = [("content-type", "application/json")];
    send(sim, "POST /oauth/token", &headers, body.to_string().as_bytes())
}

fn turn_with(sim: &Sim, access: &str, extra: &[(&str, &str)], body: &Value) -> Option<Got> {
    let bearer = format!("Bearer {access}");
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("accept", "text/event-stream"),
        ("content-type", "application/json"),
        ("originator", "codex_exec"),
    ];
    headers.extend_from_slice(extra);
    let body = body.to_string();
    send(sim, "POST /backend-api/codex/responses", &headers, body.as_bytes())
}

fn turn(sim: &Sim, access: &str) -> Option<Got> {
    turn_with(sim, access, &[], &question())
}

fn question() -> Value {
    json!({ "model": "gpt-5.5", "stream": true, "store": false, "input": [] })
}

fn get(sim: &Sim, access: &str, path: &str) -> Got {
    let bearer = format!("Bearer {access}");
    send(sim, &format!("GET /backend-api{path}"), &[("authorization", &bearer)], b"").unwrap()
}

fn start() -> Sim {
    Sim::start(SimConfig::default()).unwrap()
}

fn start_with(primary: Window) -> Sim {
    let accounts = vec![AccountSpec::new("a").primary(primary)];
    Sim::start(SimConfig { accounts, ..SimConfig::default() }).unwrap()
}

fn assert_clean(sim: &Sim) {
    assert_eq!(sim.violations(), Vec::<String>::new());
}

/// Waits for something that is about to become true.
fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never became true");
}
