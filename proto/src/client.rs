//! The blocking client: connect, greet, call, subscribe, and start the daemon when nobody listens.
//!
//! No runtime, no threads but one that watches a starting daemon's answer. Both sides check that
//! the other runs under the same user id; the client also checks that the daemon owns the root it
//! meant. The daemon started is the `cmad` beside this program's own real path, never one found on
//! `PATH`: a repository must not be able to bring its own.

use crate::{
    PROTOCOL, PROTOCOL_MIN, VERSION,
    choose::ChooseRequest,
    codec::Codec,
    endpoint::{Root, nobody_there},
    error::{ErrorCode, Refusal},
    frame::{Frame, Kind},
    hello::{self, ClientHello, ServerHello},
    message::{Event, Reply, Request, Status},
    owner::OwnerRequest,
    pools::PoolsRequest,
};
use interprocess::{
    ConnectWaitMode,
    local_socket::{ConnectOptions, GenericFilePath, Stream, prelude::*},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// How long a client waits for a daemon it started.
pub const START_DEADLINE: Duration = Duration::from_secs(3);
/// How long a client waits for a daemon to take over from another: renewals under way end first, and
/// the longest of these takes a minute.
pub const RESTART_DEADLINE: Duration = Duration::from_secs(150);
/// How long a client waits for the answer to a request.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// The same where the daemon asks upstream or the issuer, for account after account, before it answers:
/// a minute for each of ten.
const LONG_DEADLINE: Duration = Duration::from_secs(600);

/// Why a connection did not come about.
#[derive(Debug)]
pub enum ConnectError {
    /// Nobody listens there: the daemon may be started.
    NobodyThere,
    /// Somebody does, and it won't do.
    Refused(Refusal),
}

impl From<Refusal> for ConnectError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The daemon's one line to whoever started it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StartLine {
    /// It serves.
    Ready {
        /// Process id.
        pid: u32,
        /// The proxy's address.
        url: String,
    },
    /// It does not, and why.
    Failed(Refusal),
}

/// An open conversation with the daemon.
pub struct Client {
    stream: Stream,
    buffer: Vec<u8>,
    codec: Codec,
    next_stream: u32,
    /// Program version of the daemon.
    pub daemon_version: String,
    /// Process id of the daemon, for messages.
    pub daemon_pid: u32,
    /// The daemon's instance, changes at every start.
    pub instance: String,
    /// The other side closed the connection.
    hung_up: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("daemon_pid", &self.daemon_pid).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the daemon of `root` and greets it.
    ///
    /// # Errors
    /// [`ConnectError::NobodyThere`] when no daemon listens; otherwise the reason it won't do.
    pub fn connect(root: &Root, program: &str, codec: Codec) -> Result<Self, ConnectError> {
        let path = root.socket();
        let name = path
            .as_path()
            .to_fs_name::<GenericFilePath>()
            .map_err(|error| unreachable_at(&path.display().to_string(), &error))?;
        let stream = ConnectOptions::new()
            .name(name)
            .wait_mode(ConnectWaitMode::Timeout(hello::DEADLINE))
            .connect_sync()
            .map_err(|error| match nobody_there(&error) {
                true => ConnectError::NobodyThere,
                false => unreachable_at(&path.display().to_string(), &error).into(),
            })?;
        check_peer(&stream)?;
        set_deadline(&stream, hello::DEADLINE);
        let mut client = Self {
            stream,
            buffer: Vec::with_capacity(1024),
            codec: Codec::Json,
            next_stream: 1,
            daemon_version: String::new(),
            daemon_pid: 0,
            instance: String::new(),
            hung_up: false,
        };
        if let Err(refusal) = client.greet(root, program, codec) {
            // A daemon that dies while it is dialled is as good as none; one that won't speak says
            // so before it hangs up.
            return Err(match client.hung_up {
                true => ConnectError::NobodyThere,
                false => refusal.into(),
            });
        }
        set_deadline(&client.stream, CALL_DEADLINE);
        Ok(client)
    }

    /// Connects, and starts the daemon first when nobody listens.
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] or the daemon's own typed reason for not starting.
    pub fn connect_or_start(root: &Root, program: &str, codec: Codec) -> Result<Self, Refusal> {
        match Self::connect(root, program, codec) {
            Ok(client) => return Ok(client),
            Err(ConnectError::Refused(refusal)) => return Err(refusal),
            Err(ConnectError::NobodyThere) => {},
        }
        start(root)?;
        Self::connect(root, program, codec).map_err(|error| match error {
            ConnectError::Refused(refusal) => refusal,
            ConnectError::NobodyThere => Refusal::new(
                ErrorCode::Unreachable,
                "the daemon said it was ready and then was gone",
                "run `cmactl logs` to see why",
            ),
        })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The daemon's refusal, or [`ErrorCode::Unreachable`] when the connection failed.
    pub fn call(&mut self, request: &Request) -> Result<Reply, Refusal> {
        let stream = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(1).max(1);
        let payload = self.codec.encode(request).map_err(internal)?;
        let long = takes_long(request);
        if long {
            set_deadline(&self.stream, LONG_DEADLINE);
        }
        self.send(&Frame::new(Kind::Request, stream, payload))?;
        loop {
            let frame = self.receive()?;
            if frame.stream != stream {
                continue;
            }
            if long {
                set_deadline(&self.stream, CALL_DEADLINE);
            }
            match frame.kind {
                Kind::Reply => return self.read(&frame.payload),
                Kind::Error => return Err(self.read::<Refusal>(&frame.payload)?),
                Kind::Hello
                | Kind::Request
                | Kind::Event
                | Kind::End
                | Kind::Cancel
                | Kind::Ping
                | Kind::Pong => {},
            }
        }
    }

    /// Asks for a snapshot and all that follows; read on with [`Client::next_event`].
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn subscribe(&mut self) -> Result<Status, Refusal> {
        match self.call(&Request::Subscribe)? {
            Reply::Status(status) => {
                set_deadline(&self.stream, Duration::ZERO);
                Ok(*status)
            },
            _ => Err(internal("the daemon answered something else than a status")),
        }
    }

    /// Waits for the next event; `None` when the daemon ended the stream.
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] when the connection failed.
    pub fn next_event(&mut self) -> Result<Option<Event>, Refusal> {
        loop {
            let frame = self.receive()?;
            match frame.kind {
                Kind::Event => return self.read(&frame.payload).map(Some),
                Kind::End => return Ok(None),
                Kind::Hello
                | Kind::Request
                | Kind::Reply
                | Kind::Error
                | Kind::Cancel
                | Kind::Ping
                | Kind::Pong => {},
            }
        }
    }

    fn greet(&mut self, root: &Root, program: &str, codec: Codec) -> Result<(), Refusal> {
        let hello = serde_json::to_vec(&ClientHello::new(program, codec)).map_err(internal)?;
        // A refusal may be there to read although the other side takes no more.
        let sent = self.send(&Frame::new(Kind::Hello, 0, hello));
        let answer = self.receive().map_err(|lost| sent.err().unwrap_or(lost))?;
        let answer: ServerHello = serde_json::from_slice(&answer.payload).map_err(|error| {
            Refusal::new(
                ErrorCode::Incompatible,
                format!("what listens at the daemon's endpoint is not cmad ({error})"),
                "run `cmactl daemon restart`",
            )
        })?;
        match answer {
            ServerHello::Refused { code, message, hint, .. } => {
                Err(Refusal::new(code, message, hint))
            },
            ServerHello::Welcome {
                protocol, codec, version, instance, root: owned, pid, ..
            } => {
                if !(PROTOCOL_MIN..=PROTOCOL).contains(&protocol) {
                    return Err(Refusal::new(
                        ErrorCode::Incompatible,
                        format!(
                            "the daemon {version} chose protocol {protocol}, this program {VERSION} \
                             speaks {PROTOCOL_MIN} to {PROTOCOL}"
                        ),
                        "run `cmactl daemon restart`",
                    ));
                }
                if owned != root.path().to_string_lossy() {
                    return Err(Refusal::new(
                        ErrorCode::Denied,
                        format!("the daemon there owns `{owned}`, not `{}`", root.path().display()),
                        "set `CODEX_MULTI_AUTH_DIR` to the root you mean",
                    ));
                }
                self.codec = Codec::from_name(&codec)
                    .ok_or_else(|| internal(format!("the daemon chose codec `{codec}`")))?;
                (self.daemon_version, self.instance, self.daemon_pid) = (version, instance, pid);
                Ok(())
            },
        }
    }

    fn send(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).map_err(|error| {
            Refusal::new(ErrorCode::TooLarge, error.to_string(), "make the request smaller")
        })?;
        self.stream.write_all(&bytes).map_err(|error| self.lost(&error))
    }

    fn lost(&mut self, error: &io::Error) -> Refusal {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        self.hung_up = matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
        lost(error)
    }

    fn receive(&mut self) -> Result<Frame, Refusal> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match Frame::decode(&mut self.buffer) {
                Ok(Ok(frame)) => return Ok(frame),
                Ok(Err(_need)) => {},
                Err(error) => {
                    return Err(Refusal::new(
                        ErrorCode::Incompatible,
                        format!("the daemon sent something unreadable: {error}"),
                        "run `cmactl daemon restart`",
                    ));
                },
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.buffer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {},
                Err(error) => return Err(self.lost(&error)),
            }
        }
    }

    fn read<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T, Refusal> {
        self.codec.decode(payload).map_err(|error| {
            Refusal::new(
                ErrorCode::Incompatible,
                format!("the daemon's answer is unreadable: {error}"),
                "run `cmactl daemon restart`",
            )
        })
    }
}

/// Starts the `cmad` beside this program and waits until it serves the root or says why not.
///
/// Safe to call from many processes at once: `cmad start` takes the root's start lock, and answers
/// at once when a daemon is already there.
///
/// # Errors
/// The daemon's typed reason, or [`ErrorCode::Unreachable`].
pub fn start(root: &Root) -> Result<StartLine, Refusal> {
    launch(root, &["start"], START_DEADLINE)
}

/// As [`start`], in the place of the daemon that runs: it goes on until the new one has taken over, and
/// stays if that one can't. With `now` its running responses are cut then.
///
/// # Errors
/// As [`start`]; [`ErrorCode::BadRequest`] from a daemon or on a system that can't hand over,
/// [`ErrorCode::Draining`] from a daemon that is on its way out.
pub fn restart(root: &Root, now: bool) -> Result<StartLine, Refusal> {
    let words: &[&str] = if now { &["restart", "--now"] } else { &["restart"] };
    launch(root, words, RESTART_DEADLINE)
}

fn launch(root: &Root, words: &[&str], deadline: Duration) -> Result<StartLine, Refusal> {
    let program = daemon_program()?;
    let failed = |why: String| {
        Refusal::new(
            ErrorCode::Unreachable,
            format!("the daemon could not be started: {why}"),
            "run `cmactl daemon run` to see what it says",
        )
    };
    let mut child = Command::new(&program)
        .args(words)
        .env("CODEX_MULTI_AUTH_DIR", root.path())
        // They are sent with the one request that needs them; a process that stays must not carry them.
        .env_remove("CMA_IMPORT_PASSPHRASE")
        .env_remove("CMA_NEW_PASSPHRASE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("`{}`: {error}", program.display())))?;
    let stdout = child.stdout.take().ok_or_else(|| failed("no pipe to it".to_owned()))?;
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout.take(64 * 1024)).read_line(&mut line);
        // Nobody waits any more when the deadline has passed.
        drop(sender.send(read.map(|_| line)));
    });
    let line = receiver
        .recv_timeout(deadline)
        .map_err(|_timeout| failed(format!("no answer within {} s", deadline.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    // `cmad start` ends right after its line; it must not stay behind as a zombie of a long-lived
    // CLI that this process is about to become.
    drop(child.wait());
    match serde_json::from_str(&line) {
        Ok(StartLine::Failed(refusal)) => Err(refusal),
        Ok(ready) => Ok(ready),
        Err(_unreadable) => Err(failed("it ended without a word".to_owned())),
    }
}

/// The `cmad` beside this program's own real path.
///
/// # Errors
/// [`ErrorCode::Unreachable`] when there is none.
pub fn daemon_program() -> Result<PathBuf, Refusal> {
    let missing = |what: String| {
        Refusal::new(
            ErrorCode::Unreachable,
            format!("the daemon program is missing: {what}"),
            "install `cmad` in the same folder as `cmactl`",
        )
    };
    let own = std::env::current_exe()
        .and_then(std::fs::canonicalize)
        .map_err(|error| missing(format!("own path unknown ({error})")))?;
    let beside = own.with_file_name(format!("cmad{}", std::env::consts::EXE_SUFFIX));
    if beside.is_file() { Ok(beside) } else { Err(missing(format!("no `{}`", beside.display()))) }
}

#[cfg(unix)]
fn check_peer(stream: &Stream) -> Result<(), Refusal> {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_creds().map(|creds| creds.euid()) {
        Ok(Some(uid)) if uid == own => Ok(()),
        Ok(uid) => Err(Refusal::new(
            ErrorCode::Denied,
            format!("the daemon's endpoint belongs to user id {uid:?}, not to yours ({own})"),
            "set `CODEX_MULTI_AUTH_DIR` to a folder of your own",
        )),
        Err(error) => Err(Refusal::new(
            ErrorCode::Denied,
            format!("the daemon's user could not be told: {error}"),
            "run `cmactl daemon restart`",
        )),
    }
}

#[cfg(windows)]
fn check_peer(_stream: &Stream) -> Result<(), Refusal> {
    // The pipe's DACL admits its owner only; see the daemon's `ipc`.
    Ok(())
}

fn set_deadline(stream: &Stream, deadline: Duration) {
    let deadline = Some(deadline).filter(|deadline| !deadline.is_zero());
    // A platform without timeouts on its local sockets waits for ever instead; nothing is lost.
    drop(stream.set_recv_timeout(deadline));
    drop(stream.set_send_timeout(deadline));
}

fn unreachable_at(path: &str, error: &io::Error) -> Refusal {
    Refusal::new(
        ErrorCode::Unreachable,
        format!("the daemon's endpoint `{path}` can't be used: {error}"),
        "check that folder's owner and mode, then run `cmactl daemon restart`",
    )
}

/// Whether the daemon asks others before it answers: live news of all accounts, a trial of those set
/// aside, the end of a renewal under way.
const fn takes_long(request: &Request) -> bool {
    matches!(
        request,
        Request::Remove { .. }
            | Request::Owner(OwnerRequest::VerifyFlagged { .. } | OwnerRequest::Revoke { .. })
            | Request::Choose(ChooseRequest::Forecast { live: true, .. })
            | Request::Pools(PoolsRequest::Workspaces { live: true, .. })
    )
}

fn lost(error: &io::Error) -> Refusal {
    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        return Refusal::new(
            ErrorCode::Unreachable,
            "the daemon gave no answer in time",
            "run `cmactl logs` to see what it does",
        );
    }
    Refusal::new(
        ErrorCode::Unreachable,
        format!("the connection to the daemon was lost: {error}"),
        "run `cmactl daemon status`",
    )
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(ErrorCode::Internal, error.to_string(), "run `cmactl version` and report it")
}
