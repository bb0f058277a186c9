//! A WebSocket by hand: the handshake as the CLI sends it, then messages one by one, blocking.

use crate::http::{Answer, Door, Line};
use serde_json::{Value, json};
use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};
use tokio_tungstenite::tungstenite::{
    self, Message, WebSocket,
    protocol::{CloseFrame, Role},
};

/// How long a silent peer is waited for.
const PATIENCE: Duration = Duration::from_secs(45);

/// A client's end of a WebSocket.
#[derive(Debug)]
pub struct Socket {
    inner: WebSocket<TcpStream>,
    session: String,
}

/// What came instead of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A close frame with this code; 1005 for one without.
    Closed(u16),
    /// The connection ended without one.
    Cut,
}

impl Door {
    /// A handshake as the CLI 0.169.0 sends it.
    pub fn handshake(&self, session: &str) -> crate::http::Ask {
        self.ask("GET", "/codex/responses")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("chatgpt-account-id", "acct-of-the-client")
            .header("openai-beta", "responses_websockets=2026-02-06")
            .header("originator", "codex_exec")
            .header("session-id", session)
            .header("thread-id", session)
            .header("x-codex-routing-hint", "model=gpt-5.5")
            .header("sec-websocket-extensions", "permessage-deflate; client_max_window_bits")
    }

    /// Opens a WebSocket, or says what was answered instead.
    ///
    /// # Errors
    /// The answer, when it is no upgrade.
    ///
    /// # Panics
    /// When the connection fails.
    pub fn socket(&self, session: &str) -> Result<Socket, Answer> {
        self.shaken(session, &self.handshake(session).bytes())
    }

    /// The same for a CLI of that version.
    ///
    /// # Errors
    /// The answer, when it is no upgrade.
    ///
    /// # Panics
    /// When the connection fails.
    pub fn socket_of(&self, session: &str, version: &str) -> Result<Socket, Answer> {
        self.shaken(session, &self.handshake(session).header("version", version).bytes())
    }

    fn shaken(&self, session: &str, handshake: &[u8]) -> Result<Socket, Answer> {
        let mut line = Line::open(self.addr).expect("the proxy listens");
        line.write(handshake).expect("the handshake is sent");
        let head = line.head().expect("a head");
        if head.status != 101 {
            return Err(head);
        }
        // The answer to that very key, by RFC 6455, and no extension.
        assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(head.header("sec-websocket-extensions"), None);
        let connection = head.header("connection").unwrap_or_default();
        assert!(connection.eq_ignore_ascii_case("upgrade"), "{connection}");
        let stream = line.into_stream().expect("the daemon says nothing first");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let inner = WebSocket::from_raw_socket(stream, Role::Client, None);
        Ok(Socket { inner, session: session.to_owned() })
    }
}

/// An item that a person typed.
pub fn said(text: &str) -> Value {
    json!({
        "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }],
    })
}

impl Socket {
    /// A turn's frame with this input.
    pub fn create(&self, input: &[Value]) -> Value {
        json!({
            "type": "response.create", "model": "gpt-5.5", "stream": true, "input": input,
            "tools": [], "tool_choice": "auto", "store": false, "prompt_cache_key": self.session,
            "client_metadata": { "session_id": self.session, "thread_id": self.session },
        })
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// When the connection has ended.
    pub fn send(&mut self, frame: &Value) {
        self.inner.send(Message::text(frame.to_string())).expect("the frame is sent");
    }

    /// Sends any message, which may fail.
    ///
    /// # Errors
    /// Of the connection.
    pub fn send_message(&mut self, message: Message) -> Result<(), tungstenite::Error> {
        self.inner.send(message)
    }

    /// Sends bytes below the protocol.
    ///
    /// # Errors
    /// Of the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.get_mut().write_all(bytes)
    }

    /// The next message of any kind.
    ///
    /// # Errors
    /// How the connection ended.
    pub fn message(&mut self) -> Result<Message, End> {
        match self.inner.read() {
            Ok(Message::Close(frame)) => {
                let code = frame.map_or(1005, |frame: CloseFrame| frame.code.into());
                // The goodbye that the protocol wants.
                self.inner.flush().ok();
                Err(End::Closed(code))
            },
            Ok(message) => Ok(message),
            Err(_ended) => Err(End::Cut),
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// How the connection ended.
    ///
    /// # Panics
    /// On a message that is no event.
    pub fn event(&mut self) -> Result<Value, End> {
        loop {
            match self.message()? {
                Message::Text(text) => {
                    return Ok(serde_json::from_str(&text).expect("events are JSON"));
                },
                Message::Ping(_) | Message::Pong(_) => {},
                other => panic!("not an event: {other}"),
            }
        }
    }

    /// The events up to and including one that ends a turn.
    ///
    /// # Errors
    /// How the connection ended before.
    pub fn events(&mut self) -> Result<Vec<Value>, End> {
        let mut events = Vec::new();
        loop {
            let event = self.event()?;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            events.push(event);
            let ends = ["response.completed", "response.failed", "response.incomplete", "error"];
            if ends.contains(&kind.as_str()) {
                return Ok(events);
            }
        }
    }

    /// Sends a frame and reads its answer to the end.
    ///
    /// # Panics
    /// When it doesn't come to its end.
    #[track_caller]
    pub fn ask(&mut self, frame: &Value) -> Told {
        self.send(frame);
        Told(self.events().unwrap_or_else(|end| panic!("{end:?} within an answer")))
    }

    /// The whole input as a turn.
    ///
    /// # Panics
    /// As [`Socket::ask`].
    #[track_caller]
    pub fn say(&mut self, text: &str) -> Told {
        let frame = self.create(&[said(text)]);
        self.ask(&frame)
    }

    /// A turn that goes on from a response.
    ///
    /// # Panics
    /// As [`Socket::ask`].
    #[track_caller]
    pub fn go_on(&mut self, from: &str, text: &str) -> Told {
        let mut frame = self.create(&[said(text)]);
        frame["previous_response_id"] = from.into();
        self.ask(&frame)
    }

    /// Ends the connection without a word.
    pub fn hang_up(self) {
        drop(self);
    }

    /// Stops reading: what comes from here on waits in the kernel, as much as fits there.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.inner.get_mut()
    }

    /// What is there to read, up to the end, without understanding it.
    pub fn drain(&mut self) -> usize {
        let (mut all, mut buffer) = (0, vec![0; 64 * 1024]);
        while let Ok(n @ 1..) = self.inner.get_mut().read(&mut buffer) {
            all += n;
        }
        all
    }
}

/// An answer's events.
#[derive(Debug, Clone)]
pub struct Told(pub Vec<Value>);

impl Told {
    /// The text it consists of.
    pub fn text(&self) -> String {
        let deltas = self.0.iter().filter(|event| event["type"] == "response.output_text.delta");
        deltas.filter_map(|event| event["delta"].as_str()).collect()
    }

    /// The response's name.
    pub fn id(&self) -> String {
        self.last()["response"]["id"].as_str().unwrap_or_default().to_owned()
    }

    /// The event that ended it.
    pub fn last(&self) -> &Value {
        self.0.last().unwrap_or(&Value::Null)
    }

    /// The kinds of the events, in order.
    pub fn kinds(&self) -> Vec<&str> {
        self.0.iter().filter_map(|event| event["type"].as_str()).collect()
    }

    /// Whether it was told to its end.
    pub fn is_complete(&self) -> bool {
        self.last()["type"] == "response.completed"
    }

    /// The sticky token it gave.
    pub fn turn_state(&self) -> Option<&str> {
        let metadata = self.0.iter().find(|event| event["type"] == "response.metadata")?;
        metadata["headers"]["x-codex-turn-state"].as_str()
    }
}
