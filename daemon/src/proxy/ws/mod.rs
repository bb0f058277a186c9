//! Responses over a WebSocket: the CLI's default transport, both legs.
//!
//! Messages are relayed one by one and never as a byte tunnel: a client's socket lives for a whole
//! session, and each of its turns may need another account. So the two legs are two connections of
//! their own. The lease is a turn's and not the socket's: it is taken at a `response.create` and given
//! back with the final event.
//!
//! - [`session`]: a client's socket, from its upgrade to its end. Pings are answered on each leg.
//! - [`turn`]: which account, on which connection, and what is done when that fails.
//! - [`flow`]: one attempt's events on their way down. What comes before the answer is held back, so
//!   that a failure until then is nobody's business but ours. Whoever reads slowly makes upstream
//!   wait: nothing is read that can't be written.
//! - [`link`]: the connection to upstream; [`bridge`] and [`sse`]: the way over HTTP where there is
//!   none; [`breaker`]: which of both.
//! - [`socket`]: one end, with the library behind it; [`ahead`] and [`outbox`]: the bytes below, where
//!   most of an answer passes the library by.
//! - [`frame`]: what the messages say. [`again`]: what goes on with a turn that is sent once more;
//!   [`refusal`]: handshakes that fail; [`listen`]: waiting for a client that may have gone.
//!
//! What a response builds on (`previous_response_id`) is known on its connection only. When that is
//! gone, the CLI is told `previous_response_not_found`, on which it opens another socket and sends
//! everything, without a word (0.169.0, observed). A frame that has everything already is simply sent
//! elsewhere.
//!
//! Frames are those of tokio-websockets, without its handshake: bounded, strict, and payloads as
//! `Bytes` that go from one socket's buffer to the other socket. tungstenite, more widely used, fills
//! its read buffer with zeros at each look at a socket and copies messages on their way out: a third of
//! the instructions of a turn (docs/performance.md). The handshakes are ours, over the connections that
//! HTTP uses.
//! permessage-deflate is declined: on loopback it only costs, and upstream isn't offered it.

mod again;
mod ahead;
mod breaker;
mod bridge;
mod doubt;
mod flow;
mod frame;
mod link;
mod listen;
mod outbox;
mod refusal;
mod session;
mod socket;
mod sse;
mod turn;

use super::{Proxy, headers, keys::Launch, relay::Answer, respond};
use crate::{app::Tasks, clock};
use breaker::Breakers;
use cma_core::identity::AccountId;
use cma_proto::error::ErrorCode;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use session::Session;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Semaphore;

/// Clients' sockets at once: as many as connections.
const MAX_SOCKETS: usize = super::MAX_CONNECTIONS;
/// Turn states remembered; one lives as long as a turn, so that these are more than are in use.
const MAX_STATES: usize = 4096;

/// What all sockets share.
#[derive(Debug)]
pub(crate) struct Sockets {
    tasks: Tasks,
    permits: Arc<Semaphore>,
    breakers: Breakers,
    bridged: refusal::Bridged,
    states: Mutex<VecDeque<(Box<str>, AccountId)>>,
    again: again::Again,
    serial: AtomicU64,
}

impl Sockets {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self {
            tasks,
            permits: Arc::new(Semaphore::new(MAX_SOCKETS)),
            breakers: Breakers::default(),
            bridged: refusal::Bridged::default(),
            states: Mutex::default(),
            again: again::Again::default(),
            serial: AtomicU64::new(1),
        }
    }

    /// Remembers whose a turn state is: the CLI shows it again after a reconnect, too.
    fn note_state(&self, state: &str, account: &AccountId) {
        let mut states = self.states.lock();
        if states.iter().any(|(known, owner)| **known == *state && owner == account) {
            return;
        }
        if states.len() >= MAX_STATES {
            states.pop_front();
        }
        states.push_back((state.into(), account.clone()));
    }

    /// Whether that account gave this turn state; `None` when nobody is known to have given it.
    fn gave_state(&self, state: &str, account: &AccountId) -> Option<bool> {
        let states = self.states.lock();
        let mut owners = states.iter().rev().filter(|(known, _)| **known == *state).peekable();
        owners.peek()?;
        Some(owners.any(|(_, owner)| owner == account))
    }
}

/// Takes an upgrade of a launch that may come in.
pub(crate) fn serve(proxy: &Arc<Proxy>, launch: &Launch, request: Request<Incoming>) -> Answer {
    let sockets = &proxy.sockets;
    if !proxy.config.websocket || sockets.breakers.has_none() {
        return super::upgrade_required();
    }
    let Some(accept) = accepted(&request) else {
        return respond::error(
            StatusCode::BAD_REQUEST,
            ErrorCode::BadRequest,
            "this is no WebSocket handshake of version 13",
        );
    };
    let Ok(permit) = Arc::clone(&sockets.permits).try_acquire_owned() else {
        return respond::error(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::TooLarge,
            "too many sockets are open",
        );
    };
    let mut request = request;
    let upgrade = hyper::upgrade::on(&mut request);
    let head = request.into_parts().0.headers;
    let session = Session::new(Arc::clone(proxy), launch, upwards(head, &proxy.host));
    let open = Arc::clone(proxy);
    sockets.tasks.spawn("websocket", async move {
        if let Ok(upgraded) = upgrade.await {
            open.traces.counters.connections.fetch_add(1, Ordering::Relaxed);
            clock::Stopped(Box::pin(session.run(upgraded))).await;
            open.traces.counters.connections.fetch_sub(1, Ordering::Relaxed);
        }
        drop(permit);
        if open.sockets.permits.available_permits() == MAX_SOCKETS {
            // The last one: what they had is the system's again.
            crate::sys::release_memory();
        }
    });
    let mut answer = Response::new(super::relay::Out::Whole(bytes::Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

/// The answer to a handshake's key, if it is a handshake (RFC 6455, section 4.2.1).
fn accepted(request: &Request<Incoming>) -> Option<HeaderValue> {
    let headers = request.headers();
    let names = |name: header::HeaderName, wanted: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(wanted)))
    };
    let shakes = request.version() == Version::HTTP_11
        && names(header::CONNECTION, "upgrade")
        && names(header::UPGRADE, "websocket")
        && names(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.as_bytes();
    // Sixteen bytes in base64.
    let key = Some(key).filter(|key| shakes && key.len() == 24 && key.ends_with(b"=="))?;
    HeaderValue::try_from(link::accept(key)).ok()
}

/// The client's headers made ready for upstream's handshake, which has a key of its own and no
/// extension.
fn upwards(head: HeaderMap, host: &HeaderValue) -> HeaderMap {
    let mut head = headers::upwards(head, host);
    for name in [
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_PROTOCOL,
    ] {
        head.remove(name);
    }
    head
}
