//! The bytes between a handler and the socket: bodies, answers, and the ways a
//! connection can end badly.
//!
//! hyper closes a connection whose service fails, without a word. That is how a
//! request stays unanswered; whether the close is a reset or has last words is
//! noted on the [`Line`], which the socket looks at when it is dropped.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::faults::Fault;
use super::record::{Open, Outcome};
use super::state::Shared;

/// How long a hang lasts when neither side gives up.
const HANG: Duration = Duration::from_secs(3600);

pub(super) type SimBody = UnsyncBoxBody<Bytes, io::Error>;

/// A response, or a connection that ends without one.
pub(super) type Answer = Result<Response<SimBody>, Gone>;

/// The connection ends here.
#[derive(Debug)]
pub(super) struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection ends without an answer")
    }
}

impl std::error::Error for Gone {}

/// A request read whole, with everything needed to answer it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) line: Arc<Line>,
    pub(super) open: Open,
    pub(super) head: Parts,
    pub(super) body: Payload,
}

/// A body as it was understood.
#[derive(Debug, Default)]
pub(super) struct Payload {
    /// Decompressed.
    pub(super) bytes: Bytes,
    pub(super) json: Option<Value>,
    /// Why it could not be decompressed.
    pub(super) broken: Option<String>,
}

/// How a connection is to end.
#[derive(Debug, Default)]
pub(super) struct Line {
    reset: AtomicBool,
    /// HTTP/2: the stream is refused, nothing was done with it.
    pub(super) refused: AtomicBool,
    last_words: Mutex<Option<Bytes>>,
    later: Mutex<Later>,
}

/// What goes on with a connection once it is no more HTTP.
#[derive(Default)]
pub(super) struct Later(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Later").field(&self.0.is_some()).finish()
    }
}

impl Line {
    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Goes on with this when HTTP is over.
    pub(super) fn go_on(&self, later: impl Future<Output = ()> + Send + 'static) {
        self.later.lock().0 = Some(Box::pin(later));
    }

    /// What to go on with.
    pub(super) fn later(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        self.later.lock().0.take()
    }

    fn say(&self, words: &'static [u8]) {
        *self.last_words.lock() = Some(Bytes::from_static(words));
    }
}

/// A socket that ends as its [`Line`] says.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    line: Arc<Line>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, line: Arc<Line>) -> Self {
        Self { stream, line }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(words) = self.line.last_words.lock().take() {
            // A few bytes into an empty socket buffer; a failure means that
            // the client is gone, which ends it as well.
            self.stream.try_write(&words).ok();
        }
        if self.line.reset.load(Ordering::Relaxed) {
            self.stream.set_zero_linger().ok();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer with a whole body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn json(code: u16, body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { code, headers, body: body.to_string() }
    }

    pub(super) fn with(mut self, headers: Vec<(String, String)>) -> Self {
        self.headers.extend(headers);
        self
    }

    /// Answers a call with this and settles its record.
    pub(super) fn send(self, open: &mut Open) -> Response<SimBody> {
        open.settle(Some(self.code), Outcome::Answered);
        self.into_response()
    }

    pub(super) fn into_response(self) -> Response<SimBody> {
        let body = Full::new(Bytes::from(self.body)).map_err(|never| match never {});
        respond(self.code, self.headers, UnsyncBoxBody::new(body))
    }
}

/// A response; headers that HTTP does not allow are left out.
pub(super) fn respond(
    code: u16,
    headers: Vec<(String, String)>,
    body: SimBody,
) -> Response<SimBody> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        let name = HeaderName::try_from(name);
        let value = HeaderValue::try_from(value);
        if let (Ok(name), Ok(value)) = (name, value) {
            response.headers_mut().append(name, value);
        }
    }
    if !response.headers().contains_key(CONTENT_TYPE) {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
    }
    response
}

/// The value of a header as text, if it is there and is text.
pub(super) fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What a fault leaves to do before anything asked for happens.
#[derive(Debug)]
pub(super) enum Early {
    /// Do it; the fault, if still there, damages the answer.
    Pass(Option<Fault>),
    /// Answer this instead.
    Instead(Reply),
}

impl Call {
    /// Applies the part of a fault that precedes what was asked for.
    pub(super) async fn early(&mut self, fault: Option<Fault>) -> Result<Early, Gone> {
        match fault {
            Some(Fault::Status { code, headers, body }) => {
                return Ok(Early::Instead(Reply { code, headers, body }));
            },
            Some(Fault::SlowHead(wait)) => {
                tokio::time::sleep(wait).await;
                return Ok(Early::Pass(None));
            },
            Some(Fault::HangHead | Fault::HangBeforeCommit) => tokio::time::sleep(HANG).await,
            Some(Fault::ResetBeforeHead) => self.line.reset(),
            Some(Fault::CloseBeforeHead) => {},
            Some(Fault::RefuseStream) => self.line.refused.store(true, Ordering::Relaxed),
            Some(Fault::GarbageHead) => self.line.say(b"\x16\x03\x01 this is not HTTP\r\n\r\n"),
            other => return Ok(Early::Pass(other)),
        }
        Err(self.drop_unanswered())
    }

    /// Applies the part of a fault between what was asked for and the answer.
    pub(super) async fn late(&mut self, fault: Option<Fault>) -> Result<Option<Fault>, Gone> {
        match fault {
            Some(Fault::DelayAnswer(wait)) => {
                tokio::time::sleep(wait).await;
                return Ok(None);
            },
            Some(Fault::HangAfterCommit) => tokio::time::sleep(HANG).await,
            Some(Fault::CloseAfterCommit) => {},
            Some(Fault::ResetAfterCommit) => self.line.reset(),
            other => return Ok(other),
        }
        Err(self.drop_unanswered())
    }

    /// Ends the connection and notes that nothing was answered.
    pub(super) fn drop_unanswered(&mut self) -> Gone {
        self.open.settle(None, Outcome::Dropped);
        Gone
    }
}
