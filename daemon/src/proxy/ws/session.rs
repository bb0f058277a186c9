//! A client's socket, from its upgrade to its end: frames in, turns one after another.

use super::{
    doubt::Doubts,
    frame::{self, Create},
    link::{Came, Link, MAX_REQUEST},
    listen::listening,
    socket::{CloseCode, Ended, Said, Socket, Text},
};
use crate::{
    app::Phase,
    clock,
    proxy::{Proxy, course::patience, headers, keys::Launch, surface::standing},
};
use cma_core::{
    event::{self, Kind},
    pool::Input,
};
use http::{HeaderMap, StatusCode};
use hyper::upgrade::Upgraded;
use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A socket without a turn for this long is closed; its CLI opens another at its next turn. A person
/// comes back to a thread after a day's meetings, so it is longer than that.
const IDLE: Duration = Duration::from_secs(12 * 3600);
/// A client that doesn't take a short frame within this has gone.
const SAY: Duration = Duration::from_secs(30);
/// A client hangs up within this once it has read why the socket is closed.
const GOODBYE: Duration = Duration::from_secs(1);

/// A prewarm that was answered here: its turn gets this input in front.
#[derive(Debug)]
pub(super) struct Warm {
    pub(super) id: String,
    pub(super) input: String,
    /// Why it was.
    pub(super) doubts: Doubts,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) proxy: Arc<Proxy>,
    /// The handshake's headers, ready to be signed.
    pub(super) head: HeaderMap,
    /// What opened it.
    pub(super) launch: Launch,
    pub(super) name: Option<Arc<str>>,
    pub(super) link: Option<Link>,
    pub(super) warm: Option<Warm>,
    /// Whether the client's last frame began no turn: what upstream answers to that is the client's.
    asked: bool,
    /// A frame that came during the turn before.
    pub(super) next: Option<Text>,
    /// One timer for all attempts: most end long before it is due.
    pub(super) wake: Pin<Box<Sleep>>,
}

/// How a client's socket ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leave {
    /// The client has gone, or it broke the protocol beyond words.
    Gone,
    /// With a code and a word.
    Close(CloseCode, &'static str),
}

/// Upstream broke off within an answer: so does the client's socket, and the CLI begins again.
pub(super) const BROKEN: Leave =
    Leave::Close(CloseCode::INTERNAL_SERVER_ERROR, "upstream broke off");
/// A client that doesn't know `previous_response_not_found` opens another socket on a close, and sends
/// everything there (0.128.0, observed).
pub(super) const ANEW: Leave = Leave::Close(CloseCode::SERVICE_OVERLOAD, "send all of it again");
/// The oldest official CLI that is known to understand that error; 0.128.0 stops on it (observed).
const KNOWS_PREVIOUS: (u32, u32) = (0, 149);
/// A client that speaks another language.
const BINARY: Leave = Leave::Close(CloseCode::UNSUPPORTED_DATA, "frames are text");
const LONG_IDLE: Leave = Leave::Close(CloseCode::GOING_AWAY, "idle for too long");
/// The CLI opens another socket, to the daemon that comes next.
const RESTART: Leave = Leave::Close(CloseCode::SERVICE_RESTART, "the daemon restarts");

impl Session {
    pub(super) fn new(proxy: Arc<Proxy>, launch: &Launch, head: HeaderMap) -> Self {
        let (name, launch) = (headers::session(&head), launch.clone());
        let wake = Box::pin(tokio::time::sleep(IDLE));
        let (link, warm, next) = (None, None, None);
        Self { proxy, head, launch, name, link, warm, asked: false, next, wake }
    }

    /// Whether the client goes on when it is told that a response is not known; what isn't an official
    /// CLI of before is taken to do what the newest does.
    pub(super) fn knows_previous(&self) -> bool {
        let version = self.head.get("version").and_then(|value| value.to_str().ok());
        let mut numbers = version.unwrap_or_default().split('.').map(|part| part.parse().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) => (major, minor) >= KNOWS_PREVIOUS,
            _ => true,
        }
    }

    /// Serves turns until either side has had enough.
    pub(super) async fn run(mut self, upgraded: Upgraded) {
        let mut local = Socket::local(upgraded, MAX_REQUEST);
        // Made once for all pauses: there is one before each turn.
        let phases = self.proxy.phases.clone();
        let mut drains = pin!(phases.reached(Phase::Draining));
        let mut over = pin!(tokio::time::sleep(IDLE));
        let leave = loop {
            let frame = match self.next.take() {
                Some(frame) => frame,
                None => match self.idle(&mut local, drains.as_mut(), over.as_mut()).await {
                    Ok(frame) => frame,
                    Err(leave) => break leave,
                },
            };
            if let Err(leave) = self.frame(&mut local, frame).await {
                break leave;
            }
            if self.next.is_none() && self.proxy.phases.now() >= Phase::Draining {
                break RESTART;
            }
        };
        if let Leave::Close(code, reason) = leave {
            tracing::debug!(code = u16::from(code), reason, "websocket closed");
            let _gone = tokio::time::timeout(SAY, local.close(code, reason)).await;
            if code != CloseCode::SERVICE_RESTART {
                // What the client still sends would make the system reset the connection, and the
                // reason would be lost.
                let mut rest = tokio::io::sink();
                let read = tokio::io::copy(local.bytes(), &mut rest);
                let _its_end = tokio::time::timeout(GOODBYE, read).await;
            }
        }
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Waits for a frame between two turns. `over` is a timer that may be due too early.
    async fn idle(
        &mut self,
        local: &mut Socket,
        mut drains: Pin<&mut impl Future<Output = ()>>,
        mut over: Pin<&mut Sleep>,
    ) -> Result<Text, Leave> {
        let due = clock::mono() + IDLE;
        loop {
            let came = std::future::poll_fn(|context| {
                if let Poll::Ready(said) = local.poll_said(context) {
                    return Poll::Ready(Idle::Client(said));
                }
                if let Some(link) = &mut self.link
                    && let Poll::Ready(came) = link.poll(context)
                {
                    return Poll::Ready(Idle::Upstream(came));
                }
                if drains.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Idle::Over(RESTART));
                }
                while over.as_mut().poll(context).is_ready() {
                    if Instant::now() >= due {
                        return Poll::Ready(Idle::Over(LONG_IDLE));
                    }
                    over.as_mut().reset(due);
                }
                Poll::Pending
            })
            .await;
            match came {
                Idle::Client(Ok(Said::Text(text))) => return Ok(text),
                Idle::Client(Ok(Said::Sign)) => {},
                Idle::Client(Ok(Said::Binary)) => return Err(BINARY),
                Idle::Client(Ok(Said::Close)) => return Err(Leave::Gone),
                Idle::Client(Err(ended)) => return Err(leave(ended)),
                Idle::Upstream(came) => self.between(local, came).await?,
                Idle::Over(leave) => return Err(leave),
            }
        }
    }

    /// What upstream says between two turns: limits are learned and passed on like everything else,
    /// an end is ours alone.
    async fn between(&mut self, local: &mut Socket, came: Came) -> Result<(), Leave> {
        let Some(link) = &self.link else { return Ok(()) };
        match came {
            Came::Nothing => Ok(()),
            Came::Text(text) => {
                let asked = std::mem::take(&mut self.asked);
                let kind = Kind::of(text.as_bytes());
                if kind.is_final() {
                    tracing::debug!(account = %link.account, "upstream ended an idle websocket");
                    self.link = None;
                    return if asked { say(local, text).await } else { Ok(()) };
                }
                if kind == Kind::Limits {
                    let windows = event::limits(text.as_bytes(), clock::wall());
                    let account = link.account.clone();
                    self.proxy.actor.tell(Input::QuotaSeen(account.clone(), windows));
                    let standing = standing::of(&self.proxy, &self.launch).await;
                    let pools = standing.in_event(&account, &text).map(Text::from);
                    return say(local, pools.unwrap_or(text)).await;
                }
                say(local, text).await
            },
            Came::End(why) => {
                tracing::debug!(account = %link.account, why, "idle websocket to upstream ended");
                self.link = None;
                Ok(())
            },
        }
    }

    /// Serves one frame of the client's.
    async fn frame(&mut self, local: &mut Socket, text: Text) -> Result<(), Leave> {
        match Create::read(&text) {
            // Not boxed: to take that much memory and to move it there would be a thirtieth of a turn.
            Some(create) if create.is_turn() => {
                self.asked = false;
                self.turn(local, text, create).await
            },
            Some(create) => {
                tracing::debug!(kind = &*create.kind, "a frame that begins no turn");
                let Some(link) = &mut self.link else { return Ok(()) };
                let limit = patience(self.proxy.config.head_timeout, text.len());
                let send = tokio::time::timeout(limit, link.send(text));
                match listening(local, &mut self.next, send).await {
                    None => return Err(Leave::Gone),
                    Some(Ok(Ok(()))) => self.asked = true,
                    Some(Ok(Err(_)) | Err(_)) => self.link = None,
                }
                Ok(())
            },
            None => {
                let status = StatusCode::BAD_REQUEST.as_u16();
                let body = b"the frame is no JSON object with a type";
                say(local, frame::wrap(status, &HeaderMap::new(), body)).await
            },
        }
    }
}

/// What happens between two turns.
enum Idle {
    Client(Result<Said, Ended>),
    Upstream(Came),
    Over(Leave),
}

/// How a socket ends on which that came in a frame's place.
const fn leave(ended: Ended) -> Leave {
    match ended {
        Ended::TooLarge => Leave::Close(CloseCode::MESSAGE_TOO_BIG, "the frame is too large"),
        Ended::NotText => {
            Leave::Close(CloseCode::INVALID_FRAME_PAYLOAD_DATA, "the frame is not text")
        },
        Ended::NoFrame => Leave::Close(CloseCode::PROTOCOL_ERROR, "not a frame"),
        Ended::Cut => Leave::Gone,
    }
}

/// Sends a frame of our own.
pub(super) async fn say(local: &mut Socket, text: Text) -> Result<(), Leave> {
    match tokio::time::timeout(SAY, local.send(&text)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Leave::Gone),
    }
}
