//! Requests by hand: a blocking HTTP/1.1 client that sends exactly the bytes it is told.
//!
//! It has no manners of its own, so that a test can be rude: no header is added that wasn't asked
//! for, nothing is retried, and an answer that was cut is an error.

use crate::{sim::DEFAULT_CANARY, world::World};
use serde_json::{Value, json};
use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// How long a silent peer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// A piece of a body is no larger.
const PIECE: usize = 64 * 1024;

/// The proxy of a world and a key that opens it.
#[derive(Debug, Clone)]
pub struct Door {
    /// Where it listens.
    pub addr: SocketAddr,
    /// A client key.
    pub key: String,
}

impl Door {
    /// With a key for any account.
    ///
    /// # Panics
    /// When no plan is to be had.
    #[track_caller]
    pub fn of(world: &World) -> Self {
        let plan = world.launch();
        let text = |name: &str| plan[name].as_str().expect("a text").to_owned();
        let base = text("base_url");
        let authority = base.trim_start_matches("http://").split('/').next().unwrap_or_default();
        Self { addr: authority.parse().expect("an address"), key: text("client_key") }
    }

    /// With a key that allows the account of that name only.
    ///
    /// # Panics
    /// When no plan is to be had.
    #[track_caller]
    pub fn of_account(world: &World, name: &str) -> Self {
        let config = world.codex_home().join("config.toml");
        let bound = format!("forced_chatgpt_workspace_id = \"acct-{name}\"\n");
        std::fs::write(&config, bound).expect("a configuration");
        let door = Self::of(world);
        std::fs::remove_file(&config).expect("removed");
        door
    }

    /// A request with the host and the key that the proxy wants.
    pub fn ask(&self, method: &str, path: &str) -> Ask {
        Ask::new(method, path)
            .header("host", &self.addr.to_string())
            .header("authorization", &format!("Bearer {}", self.key))
    }

    /// A turn as the CLI sends it, uncompressed.
    pub fn turn(&self) -> Ask {
        self.turn_in("01900000-0000-7000-8000-000000000000")
    }

    /// The same within a session of that name.
    pub fn turn_in(&self, session: &str) -> Ask {
        self.ask("POST", "/codex/responses")
            .header("accept", "text/event-stream")
            .header("content-type", "application/json")
            .header("session-id", session)
            .header("x-codex-routing-hint", "model=gpt-5.5")
            .body(turn_body(0))
    }

    /// Sends a request on a connection of its own and reads the whole answer.
    ///
    /// # Errors
    /// Of the connection, and when the answer is cut.
    pub fn send(&self, ask: &Ask) -> io::Result<Answer> {
        let mut line = Line::open(self.addr)?;
        line.write(&ask.bytes())?;
        line.answer()
    }

    /// `GET` with the key.
    ///
    /// # Errors
    /// As [`Door::send`].
    pub fn get(&self, path: &str) -> io::Result<Answer> {
        self.send(&self.ask("GET", path))
    }
}

/// The body of a turn with at least this many bytes.
pub fn turn_body(bytes: usize) -> Vec<u8> {
    let text = "x".repeat(bytes);
    let input = json!([{
        "type": "message", "role": "user",
        "content": [{ "type": "input_text", "text": format!("hi{text}") }],
    }]);
    let body = json!({
        "model": "gpt-5.5", "instructions": "", "input": input, "tools": [],
        "store": false, "stream": true,
    });
    body.to_string().into_bytes()
}

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    start: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Ask {
    /// With no header at all.
    pub fn new(method: &str, path: &str) -> Self {
        Self { start: format!("{method} {path} HTTP/1.1"), headers: Vec::new(), body: None }
    }

    /// With one more header, whether or not there is one of that name.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without any header of that name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// With a header of that name in place of those there were.
    #[must_use]
    pub fn with(self, name: &str, value: &str) -> Self {
        self.without(name).header(name, value)
    }

    /// With a body and its length.
    #[must_use]
    pub fn body(mut self, body: Vec<u8>) -> Self {
        self = self.with("content-length", &body.len().to_string());
        self.body = Some(body);
        self
    }

    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.start).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body, without the chunks' frames.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// Whether it is a turn that was told to its end.
    pub fn is_complete(&self) -> bool {
        self.status == 200 && self.text().contains("event: response.completed")
    }
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Known(usize),
    Chunked,
    ToTheEnd,
}

/// One connection.
#[derive(Debug)]
pub struct Line {
    stream: BufReader<TcpStream>,
    length: Length,
}

impl Line {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::with_capacity(PIECE, stream), length: Length::Known(0) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Of the connection.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The connection itself, when nothing more has been read from it.
    ///
    /// # Errors
    /// When there has.
    pub fn into_stream(self) -> io::Result<TcpStream> {
        if self.stream.buffer().is_empty() {
            Ok(self.stream.into_inner())
        } else {
            Err(broken("more came than was asked for"))
        }
    }

    /// Reads the head of an answer; its body is still empty.
    ///
    /// # Errors
    /// Of the connection, and when what comes is no answer.
    pub fn head(&mut self) -> io::Result<Answer> {
        let first = self.text_line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| broken("no status line"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.text_line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| broken("no header"))?;
            headers.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
        let answer = Answer { status, headers, body: Vec::new() };
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        let known = answer.header("content-length").and_then(|length| length.parse().ok());
        self.length = match known {
            _ if chunked => Length::Chunked,
            Some(length) => Length::Known(length),
            None if matches!(status, 101 | 204 | 304) => Length::Known(0),
            None => Length::ToTheEnd,
        };
        Ok(answer)
    }

    /// The next piece of the body as it arrives; none at its end.
    ///
    /// # Errors
    /// Of the connection, and when the body is cut.
    pub fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.length {
            Length::Known(0) => Ok(None),
            Length::Known(left) => {
                let piece = self.some(left)?;
                if piece.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.length = Length::Known(left - piece.len());
                Ok(Some(piece))
            },
            Length::Chunked => {
                let size = self.text_line()?;
                let size = usize::from_str_radix(&size, 16).map_err(|_size| broken("no chunk"))?;
                let mut piece = vec![0; size];
                self.stream.read_exact(&mut piece)?;
                self.text_line()?;
                if size == 0 {
                    self.length = Length::Known(0);
                }
                Ok((size > 0).then_some(piece))
            },
            Length::ToTheEnd => {
                let piece = self.some(PIECE)?;
                Ok((!piece.is_empty()).then_some(piece))
            },
        }
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// As [`Line::piece`].
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece()? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// A whole answer.
    ///
    /// # Errors
    /// As [`Line::head`] and [`Line::piece`].
    ///
    /// # Panics
    /// When a token is in it: none leaves the daemon.
    #[track_caller]
    pub fn answer(&mut self) -> io::Result<Answer> {
        let answer = self.answer_with_token()?;
        let canary = DEFAULT_CANARY.as_bytes();
        let has = |bytes: &[u8]| bytes.windows(canary.len()).any(|part| part == canary);
        let leaks =
            has(&answer.body) || answer.headers.iter().any(|(_, value)| has(value.as_bytes()));
        assert!(!leaks, "a token in an answer of status {}", answer.status);
        Ok(answer)
    }

    /// As [`Line::answer`], of the endpoint that is there to hand a token out.
    ///
    /// # Errors
    /// As [`Line::answer`].
    pub fn answer_with_token(&mut self) -> io::Result<Answer> {
        let mut answer = self.head()?;
        answer.body = self.rest()?;
        Ok(answer)
    }

    fn some(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; limit.min(PIECE)];
        let n = self.stream.read(&mut piece)?;
        piece.truncate(n);
        Ok(piece)
    }

    fn text_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
