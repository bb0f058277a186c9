//! A client that sends turns as the CLI does, for demonstrations and load.
//!
//! It looks like the CLI on the wire (headers, compressed body, one connection
//! per session) and never retries: what went wrong is what it reports.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// The version the client pretends to be.
const VERSION: &str = "0.169.0";

/// What to send where.
#[derive(Debug, Clone)]
pub struct DriveConfig {
    /// The base URL of the provider; turns go to `BASE/responses`.
    pub base_url: String,
    /// Sent as the bearer.
    pub key: String,
    /// How many turns in all.
    pub requests: u64,
    /// How many sessions at once.
    pub concurrency: u64,
    /// The pause of a session between two turns.
    pub gap: Duration,
    /// The longest a turn may take.
    pub timeout: Duration,
}

/// What became of one turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Driven {
    /// Counts from 1 in the order of sending.
    pub n: u64,
    /// Whether it ended with `response.completed`.
    pub ok: bool,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// How long it took.
    pub ms: u64,
    /// The text of the answer.
    pub text: String,
    /// What went wrong.
    pub error: Option<String>,
}

/// How the turns went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DriveSummary {
    /// How many were sent.
    pub requests: u64,
    /// How many of them were completed.
    pub ok: u64,
    /// How many were not.
    pub failed: u64,
    /// How long all took.
    pub ms: u64,
}

/// Sends the turns; writes one JSON line for each as it ends, then one with
/// the summary under `summary`.
pub fn drive(config: DriveConfig, out: &mut dyn Write) -> io::Result<DriveSummary> {
    let target = Target::parse(&config.base_url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(Arc::new(config), Arc::new(target), out))
}

async fn run(
    config: Arc<DriveConfig>,
    target: Arc<Target>,
    out: &mut dyn Write,
) -> io::Result<DriveSummary> {
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(1));
    let (sender, mut results) = channel(64);
    let mut sessions = JoinSet::new();
    for _ in 0..config.concurrency.clamp(1, config.requests.max(1)) {
        let session = Session {
            config: Arc::clone(&config),
            target: Arc::clone(&target),
            id: uuid_v7(),
            line: None,
        };
        sessions.spawn(session.run(Arc::clone(&next), sender.clone()));
    }
    drop(sender);
    let mut summary = DriveSummary { requests: 0, ok: 0, failed: 0, ms: 0 };
    while let Some(driven) = results.recv().await {
        summary.requests += 1;
        if driven.ok {
            summary.ok += 1;
        } else {
            summary.failed += 1;
        }
        writeln!(out, "{}", serde_json::to_string(&driven)?)?;
        out.flush()?;
    }
    summary.ms = millis(begun);
    writeln!(out, "{}", json!({ "summary": summary }))?;
    out.flush()?;
    Ok(summary)
}

#[derive(Debug)]
struct Target {
    authority: String,
    path: String,
}

impl Target {
    fn parse(base_url: &str) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let uri: Uri = base_url.parse().map_err(|error| invalid(format!("base URL: {error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(invalid("base URL: only `http://` is spoken".to_owned()));
        }
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let port = uri.port_u16().unwrap_or(80);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let path = format!("{}/responses", uri.path().trim_end_matches('/'));
        Ok(Self { authority: format!("{host}:{port}"), path })
    }
}

#[derive(Debug)]
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Drives the connection; dropped with it.
    _io: JoinSet<()>,
}

#[derive(Debug)]
struct Session {
    config: Arc<DriveConfig>,
    target: Arc<Target>,
    id: String,
    line: Option<Line>,
}

/// What a turn said before it ended.
#[derive(Debug, Default)]
struct Heard {
    status: Option<u16>,
    text: String,
    completed: bool,
}

impl Session {
    async fn run(mut self, next: Arc<AtomicU64>, results: Sender<Driven>) {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n > self.config.requests {
                return;
            }
            let begun = Instant::now();
            let mut heard = Heard::default();
            let limit = self.config.timeout;
            let error = match timeout(limit, self.turn(n, &mut heard)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(format!("nothing complete after {} s", limit.as_secs())),
            };
            if error.is_some() {
                self.line = None;
            }
            let ok = error.is_none() && heard.completed;
            let ms = millis(begun);
            let driven = Driven { n, ok, status: heard.status, ms, text: heard.text, error };
            if results.send(driven).await.is_err() {
                return;
            }
            tokio::time::sleep(self.config.gap).await;
        }
    }

    async fn turn(&mut self, n: u64, heard: &mut Heard) -> Result<(), String> {
        let request = self.request(n)?;
        let line = self.connected().await.map_err(|error| format!("connect: {error}"))?;
        let answer = line.sender.send_request(request).await;
        let mut answer = answer.map_err(|error| format!("send: {error}"))?;
        heard.status = Some(answer.status().as_u16());
        let mut buffer = Vec::new();
        while let Some(frame) = answer.body_mut().frame().await {
            let frame = frame.map_err(|error| format!("read: {error}"))?;
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            if heard.status == Some(200) {
                while let Some(at) = buffer.windows(2).position(|two| two == b"\n\n") {
                    let event: Vec<u8> = buffer.drain(..at + 2).collect();
                    heard.event(&String::from_utf8_lossy(&event))?;
                }
            }
            if buffer.len() > 1 << 20 {
                return Err("an event without an end".to_owned());
            }
        }
        if heard.completed {
            return Ok(());
        }
        let said: String = String::from_utf8_lossy(&buffer).chars().take(300).collect();
        match heard.status {
            Some(200) => Err("the stream ended before `response.completed`".to_owned()),
            _ => Err(said),
        }
    }

    async fn connected(&mut self) -> io::Result<&mut Line> {
        let usable = self.line.as_ref().is_some_and(|line| !line.sender.is_closed());
        if !usable {
            self.line = None;
        }
        let mut line = match self.line.take() {
            Some(line) => line,
            None => connect(&self.target.authority).await?,
        };
        line.sender.ready().await.map_err(io::Error::other)?;
        Ok(self.line.insert(line))
    }

    fn request(&self, n: u64) -> Result<Request<Full<Bytes>>, String> {
        let id = &self.id;
        let turn_id = uuid_v7();
        let metadata = json!({
            "session_id": id,
            "thread_id": id,
            "turn_id": turn_id,
            "window_id": format!("{id}:0"),
            "request_kind": "turn",
            "thread_source": "user",
            "model": "gpt-5.5",
        });
        let body = self.body(n, &metadata.to_string()).to_string();
        let body = zstd::encode_all(body.as_bytes(), 3).map_err(|error| error.to_string())?;
        Request::post(self.target.path.as_str())
            .header("version", VERSION)
            .header("x-codex-beta-features", "remote_compaction_v2")
            .header("x-codex-window-id", format!("{id}:0"))
            .header("x-codex-turn-metadata", metadata.to_string())
            .header("x-codex-routing-hint", "model=gpt-5.5")
            .header("x-client-request-id", id)
            .header("session-id", id)
            .header("thread-id", id)
            .header("accept", "text/event-stream")
            .header("content-encoding", "zstd")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.config.key))
            .header("originator", "codex_exec")
            .header("user-agent", format!("codex_exec/{VERSION} (Debian 12.0.0; x86_64) xterm"))
            .header("host", &self.target.authority)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())
    }

    fn body(&self, n: u64, metadata: &str) -> Value {
        let message = |role: &str, text: String| {
            json!({
                "type": "message",
                "role": role,
                "content": [{ "type": "input_text", "text": text }],
            })
        };
        let prompt = "You are a coding agent. ".repeat(100);
        json!({
            "model": "gpt-5.5",
            "stream": true,
            "input": [
                message("developer", prompt),
                message("user", format!("This is message {n}. Say hello.")),
            ],
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": true,
            "reasoning": { "effort": "medium", "summary": "auto" },
            "store": false,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": self.id,
            "text": { "verbosity": "low" },
            "client_metadata": {
                "session_id": self.id,
                "thread_id": self.id,
                "x-codex-turn-metadata": metadata,
            },
        })
    }
}

async fn connect(authority: &str) -> io::Result<Line> {
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let mut io = JoinSet::new();
    // Its errors arrive at the request that is under way.
    io.spawn(async move { connection.await.unwrap_or_default() });
    Ok(Line { sender, _io: io })
}

impl Heard {
    fn event(&mut self, event: &str) -> Result<(), String> {
        for line in event.lines() {
            let Some(data) = line.strip_prefix("data:") else { continue };
            let Ok(data) = serde_json::from_str::<Value>(data.trim_start()) else { continue };
            match data.get("type").and_then(Value::as_str) {
                Some("response.output_item.done") => {
                    let parts = data.pointer("/item/content").and_then(Value::as_array);
                    let texts = parts.into_iter().flatten().filter_map(|p| p.get("text")?.as_str());
                    self.text.extend(texts);
                },
                Some("response.completed") => self.completed = true,
                Some(kind @ ("response.failed" | "response.incomplete" | "error")) => {
                    let code = data.pointer("/response/error/code").and_then(Value::as_str);
                    return Err(format!("{kind}: {}", code.unwrap_or("no code")));
                },
                _ => {},
            }
        }
        Ok(())
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// In the form of the CLI's ids: a UUID that begins with the time.
fn uuid_v7() -> String {
    let ms = super::clock::UnixMs::now().0 & 0xffff_ffff_ffff;
    let (a, b) = (fastrand::u16(..) & 0x0fff, fastrand::u64(..));
    let high = (b >> 48) & 0x3fff | 0x8000;
    let low = b & 0xffff_ffff_ffff;
    format!("{:08x}-{:04x}-7{a:03x}-{high:04x}-{low:012x}", ms >> 16, ms & 0xffff)
}
