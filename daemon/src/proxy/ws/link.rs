//! The upstream leg: one WebSocket, of one account, for one client's socket.

use super::{
    ahead::Ahead,
    socket::{CloseCode, Ended, Said, Socket, Text},
};
use crate::{
    clock,
    proxy::{body::UpBody, error_body},
    upstream::{Alpn, Failure, Upstream},
    vault::{Pass, Way},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use cma_core::{
    identity::AccountId,
    time::{Span, Wall},
    token::Generation,
};
use http::{HeaderMap, HeaderValue, Request, Uri, header, response};
use hyper::{client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use ring::digest;
use std::{
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

/// A message from a client: its whole input at the first turn, pictures in base64 included. The same
/// as an HTTP request may have for a second attempt, four times over.
pub(super) const MAX_REQUEST: usize = 64 * 1024 * 1024;
/// A message from upstream: the final one repeats the whole answer, megabytes at worst.
pub(super) const MAX_EVENT: usize = 16 * 1024 * 1024;
/// Upstream ends a connection after 60 minutes, in the middle of a turn if there is one (0.169.0's
/// error code for it says so). A connection this old is replaced between two turns.
const MAX_AGE: Duration = Duration::from_secs(55 * 60);
/// Time that passed by the wall clock only: the machine slept, and the connection is dead.
const SLEPT: Span = Span::from_secs(30);
/// A head of an answer is a few kilobytes.
const MAX_HEAD: usize = 256 * 1024;
/// A close frame is a courtesy: nobody waits longer for it to leave.
const CLOSE: Duration = Duration::from_secs(1);
/// What the answer to a key is made with (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A connection to upstream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) account: AccountId,
    /// The way that the account's workspace wanted then.
    pub(super) way: Way,
    /// Of the token that it was opened with.
    pub(super) generation: Generation,
    socket: Socket<Ahead>,
    since: (Instant, Wall),
    /// When a response was last completed on it: the next one may go on from there.
    pub(super) answered: Option<Instant>,
}

/// Why no connection came about.
#[derive(Debug)]
pub(super) enum NoLink {
    /// Before an answer.
    Failed(Failure),
    /// No answer in time.
    TimedOut,
    /// With an answer that is no upgrade.
    Refused(Box<response::Parts>, Bytes),
}

/// What comes from upstream.
#[derive(Debug)]
pub(super) enum Came {
    Text(Text),
    /// A ping or pong; answered already.
    Nothing,
    /// The end, in words for the trace.
    End(&'static str),
}

impl Link {
    /// Opens one. `headers` are the client's own, ready to be sent and signed.
    pub(super) async fn open(
        upstream: &Upstream,
        uri: &Uri,
        (account, generation, pass): (&AccountId, Generation, &Pass),
        headers: &HeaderMap,
        limit: Duration,
    ) -> Result<Self, NoLink> {
        let host = pass.way.host.as_ref();
        let stream = upstream.connect(account, Alpn::Http1, host).await.map_err(NoLink::Failed)?;
        let shake = shake(stream, uri, headers, pass);
        let upgraded =
            tokio::time::timeout(limit, shake).await.map_err(|_elapsed| NoLink::TimedOut)??;
        Ok(Self {
            account: account.clone(),
            way: pass.way.clone(),
            generation,
            socket: Socket::<Ahead>::upstream(upgraded, MAX_EVENT),
            since: (Instant::now(), clock::wall()),
            answered: None,
        })
    }

    /// Whether a turn may still begin on it.
    pub(super) fn is_fresh(&self) -> bool {
        is_fresh_since(self.since)
    }

    /// Sends a turn's frame.
    pub(super) async fn send(&mut self, frame: Text) -> Result<(), Ended> {
        self.socket.send(frame).await
    }

    /// The next message.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Came> {
        self.socket.poll_said(context).map(|said| match said {
            Ok(Said::Text(text)) => Came::Text(text),
            Ok(Said::Sign) => Came::Nothing,
            Ok(Said::Binary) => Came::End("a binary message came"),
            Ok(Said::Close) => Came::End("upstream closed the connection"),
            Err(Ended::Cut) => Came::End("the connection ended"),
            Err(Ended::TooLarge) => Came::End("a message was too large"),
            Err(Ended::NotText | Ended::NoFrame) => {
                Came::End("what came is not a WebSocket message")
            },
        })
    }

    /// Gives the client those messages that come next of which `is_one` holds, as
    /// [`Socket::poll_pass`].
    pub(super) fn poll_pass(
        &mut self,
        to: &mut Socket,
        is_one: impl Fn(&str) -> bool,
        context: &mut Context<'_>,
    ) -> Poll<bool> {
        self.socket.poll_pass(to, is_one, context)
    }

    /// Says goodbye.
    pub(super) async fn close(mut self) {
        let _gone =
            tokio::time::timeout(CLOSE, self.socket.close(CloseCode::NORMAL_CLOSURE, "")).await;
    }
}

/// Whether a connection of then has neither lived its time nor been slept over.
fn is_fresh_since((mono, wall): (Instant, Wall)) -> bool {
    let lived = clock::since(mono);
    let by_wall = clock::wall().since(wall);
    let lived_ms = u64::try_from(lived.as_millis()).unwrap_or(u64::MAX);
    lived < MAX_AGE && by_wall.millis().saturating_sub(lived_ms) < SLEPT.millis()
}

/// The handshake over a stream that nothing was said on.
async fn shake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
    headers: &HeaderMap,
    pass: &Pass,
) -> Result<Upgraded, NoLink> {
    let cut = |_error: hyper::Error| NoLink::Failed(Failure::Cut);
    let key = key();
    let mut request = Request::new(UpBody::Whole(Bytes::new()));
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers.clone();
    let ours = request.headers_mut();
    ours.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    ours.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    ours.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    let written = HeaderValue::try_from(key.as_str()).map_err(|_never| NoLink::TimedOut)?;
    ours.insert(header::SEC_WEBSOCKET_KEY, written);
    super::super::headers::sign(ours, pass);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(cut)?;
    let mut driver = std::pin::pin!(connection.with_upgrades());
    let mut answer = std::pin::pin!(sender.send_request(request));
    let mut ended = false;
    let sent = std::future::poll_fn(|context| {
        if let Poll::Ready(sent) = answer.as_mut().poll(context) {
            return Poll::Ready(sent);
        }
        if !ended && driver.as_mut().poll(context).is_ready() {
            ended = true;
        }
        answer.as_mut().poll(context)
    });
    let response = sent.await.map_err(|error| {
        let garbage = error.is_parse() || error.is_parse_too_large();
        NoLink::Failed(if garbage { Failure::Garbage } else { Failure::Cut })
    })?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let (parts, mut body) = response.into_parts();
        let mut body = std::pin::pin!(error_body::read(&mut body));
        let (bytes, _whole) = std::future::poll_fn(|context| {
            if let Poll::Ready(bytes) = body.as_mut().poll(context) {
                return Poll::Ready(bytes);
            }
            if !ended && driver.as_mut().poll(context).is_ready() {
                ended = true;
            }
            body.as_mut().poll(context)
        })
        .await;
        return Err(NoLink::Refused(Box::new(parts), bytes));
    }
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    let plain = !response.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
    if accepted != Some(accept(key.as_bytes()).as_bytes()) || !plain {
        return Err(NoLink::Failed(Failure::Garbage));
    }
    if !ended {
        driver.await.map_err(cut)?;
    }
    hyper::upgrade::on(response).await.map_err(cut)
}

/// Sixteen bytes that no cache has seen (RFC 6455, section 4.1).
fn key() -> String {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // It guards against caches, not against anybody: any number will do.
        bytes[..8].copy_from_slice(&clock::wall().millis().to_be_bytes());
    }
    BASE64_STANDARD.encode(bytes)
}

/// What proves that a key was understood.
pub(super) fn accept(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    BASE64_STANDARD.encode(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_replaced_before_upstream_ends_it() {
        let since = (Instant::now(), clock::wall());
        tokio::time::advance(Duration::from_secs(54 * 60)).await;
        assert!(is_fresh_since(since));
        tokio::time::advance(Duration::from_secs(2 * 60)).await;
        assert!(!is_fresh_since(since), "at 60 minutes it would be cut within a turn");
    }

    #[test]
    fn a_key_is_answered_as_the_protocol_says() {
        // The example of RFC 6455, section 1.3.
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(key(), key());
        assert_eq!(key().len(), 24);
    }
}
