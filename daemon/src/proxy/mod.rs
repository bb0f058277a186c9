//! The loopback proxy: gate → route → select → send → judge → deliver, each a plain function.
//!
//! Bare hyper, no framework between us and the bytes. Nothing on a request's way touches a file or
//! a database; everything that wants to be remembered is told after the first byte has left.

pub(crate) mod ask_model;
mod asked;
pub(crate) mod aux;
pub(crate) mod body;
pub(crate) mod books;
mod busy;
mod course;
mod error_body;
#[cfg(test)]
#[path = "../../../tests/fixtures/streams.rs"]
mod fixtures;
mod gate;
mod headers;
mod held;
pub(crate) mod host;
pub(crate) mod keys;
mod metrics;
pub(crate) mod moved;
pub(crate) mod own;
pub(crate) mod probe;
pub(crate) mod relay;
mod respond;
mod shown;
mod stated;
pub(crate) mod surface;
pub(crate) mod trace;
mod turn;
pub(crate) mod ws;

use crate::{
    actor::Handle,
    app::{App, Phase, Phases, Tasks},
    choosing::Choosing,
    clock,
    config::Config,
    gather::Gather,
    head_timer::HeadTimer,
    roster::Roster,
    upstream::{Outbound, Upstream},
    vault::Vault,
};
use body::UpBody;
use busy::{Caller, Outgoing};
use cma_proto::error::ErrorCode;
use gate::Route;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header, request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use keys::{Keys, Shown};
use relay::Answer;
use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use trace::Traces;

/// Client connections at once. More wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// A head larger than this is refused with 431, and so is one of more than a hundred headers: that
/// bound is hyper's own, and setting another one costs each request two pieces of memory of 4 KiB.
const MAX_HEAD: usize = 64 * 1024;
/// A head that takes longer is no CLI.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What an idle connection gets after a hand-over: a client that goes from one request to the next
/// comes back within milliseconds, one that rests longer looks before it sends.
const LINGER: Duration = Duration::from_secs(1);

/// What the pipeline works with.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) config: Arc<Config>,
    pub(crate) actor: Handle,
    pub(crate) roster: Arc<Roster>,
    pub(crate) choosing: Arc<Choosing>,
    pub(crate) vault: Arc<Vault>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) keys: Keys,
    pub(crate) lent: own::Lent,
    pub(crate) traces: Traces,
    pub(crate) health: host::Host,
    pub(crate) sockets: ws::Sockets,
    pub(crate) surface: surface::Surface,
    pub(crate) phases: Phases,
    pub(crate) port: u16,
    pub(crate) host: HeaderValue,
    /// Where most requests go, made once.
    pub(crate) responses: Uri,
    /// Answers that were delivered whole. One entry at most for each client connection.
    pub(crate) ended: mpsc::UnboundedSender<Box<relay::Ending>>,
}

impl Proxy {
    /// Where upstream has what the client asked for: Responses live under `<backend>/codex`, the
    /// rest under `<backend>`.
    fn upstream_uri(&self, uri: &Uri) -> Uri {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        if path == "/codex/responses" {
            return self.responses.clone();
        }
        let path = path.strip_prefix("/backend-api").unwrap_or(path);
        joined(&self.upstream.endpoint.path, path)
    }

    /// A request for upstream as the client made it, with these headers: to be signed.
    fn outbound(&self, asked: &request::Parts, headers: HeaderMap, body: UpBody) -> Outbound {
        let mut request = Box::new(Request::new(body));
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = self.upstream_uri(&asked.uri);
        *request.headers_mut() = headers;
        request
    }
}

/// A path under the backend's own.
pub(crate) fn joined(base: &str, path: &str) -> Uri {
    // Both halves are valid paths, so their join is one.
    Uri::try_from(format!("{base}{path}")).unwrap_or_default()
}

/// Accepts until `phases` says that the listener may close, or until somebody else accepts.
pub(crate) async fn serve(proxy: Arc<Proxy>, listener: TcpListener, tasks: Tasks, app: Arc<App>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        if !app.doors.open().await {
            return;
        }
        let accepted = tokio::select! {
            biased;
            () = proxy.phases.reached(Phase::Flushing) => return,
            () = app.doors.shut() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => {
                let proxy = Arc::clone(&proxy);
                tasks.spawn("connection", async move {
                    connection(proxy, stream).await;
                    drop(permit);
                });
            },
            Err(error) => {
                // Out of files or the peer went: neither is cured by trying faster.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            },
        }
    }
}

async fn connection(proxy: Arc<Proxy>, stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    proxy.traces.counters.connections.fetch_add(1, Ordering::Relaxed);
    let caller = Arc::new(Caller::new(Arc::clone(&proxy)));
    let served = Arc::clone(&caller);
    let service = service_fn(move |request| {
        let caller = Arc::clone(&served);
        async move {
            let busy = caller.begin();
            let mut answer = handle(&caller.proxy, &caller.shown, request).await;
            // A handshake's answer says `upgrade` there, without which it is none.
            let shakes = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
            if caller.proxy.phases.now() >= Phase::Draining && !shakes {
                let last = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, last);
            }
            Ok::<_, Infallible>(answer.map(|body| Outgoing { body, _busy: busy }))
        }
    });
    let mut connection = clock::Stopped(std::pin::pin!(
        http1::Builder::new()
            .timer(HeadTimer::default())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .writev(false)
            .keep_alive(proxy.phases.now() < Phase::Draining)
            .serve_connection(TokioIo::new(Gather::new(stream)), service)
            .with_upgrades()
    ));
    // While draining, a new connection is for `whoami` (or for being told to try again): it gets its
    // answer first.
    let last =
        if proxy.phases.now() >= Phase::Draining { Phase::Flushing } else { Phase::Draining };
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = proxy.phases.reached(last) => {
            tokio::select! {
                biased;
                ended = &mut connection => ended,
                () = lingered(&caller) => {
                    connection.0.as_mut().graceful_shutdown();
                    connection.await
                },
            }
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
    proxy.traces.counters.connections.fetch_sub(1, Ordering::Relaxed);
}

/// Resolves at once while draining. After a hand-over, when the client has been quiet for a moment: a
/// connection that is closed between two requests could meet the next one on its way.
async fn lingered(caller: &Caller) {
    let mut before = None;
    while caller.proxy.phases.handed_over() {
        let now = caller.idle_after();
        if now.is_some() && now == before {
            return;
        }
        before = now;
        tokio::time::sleep(LINGER).await;
    }
}

async fn handle(proxy: &Arc<Proxy>, shown: &Shown, request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    let refuse = |refusal: gate::Refusal| {
        proxy.traces.counters.refused.fetch_add(1, Ordering::Relaxed);
        respond::error(refusal.status, ErrorCode::Denied, refusal.message)
    };
    if let Err(refusal) = gate::origin(headers, proxy.port) {
        return refuse(refusal);
    }
    let route = gate::route(request.method(), request.uri().path(), headers);
    if route == Route::Mcp {
        return respond::not_here();
    }
    if route == Route::Unknown && own::is_own(request.uri().path()) {
        return Box::pin(own::serve(Arc::clone(proxy), request)).await;
    }
    if route == Route::Unknown && request.uri().path() == "/metrics" {
        return Box::pin(metrics::serve(proxy, headers, request.uri().query())).await;
    }
    let launch = match gate::key(headers, &proxy.keys, shown) {
        Ok(launch) => launch,
        Err(refusal) => return refuse(refusal),
    };
    dispatch(proxy, &launch, route, request).await
}

/// Serves a request of a launch that may come in.
async fn dispatch(
    proxy: &Arc<Proxy>,
    launch: &keys::Launch,
    route: Route,
    request: Request<Incoming>,
) -> Answer {
    match route {
        Route::Whoami => aux::whoami(proxy, launch),
        Route::AccountsCheck => surface::accounts_check(proxy, launch),
        _ if proxy.phases.refuses() => respond::draining(),
        // Boxed, each: what one of them needs would otherwise be moved with every request.
        Route::Responses => {
            let mut answer = turn::serve(Arc::clone(proxy), launch, request).await;
            surface::after_turn(proxy, launch, answer.headers_mut());
            answer
        },
        Route::Upgrade => ws::serve(proxy, launch, request),
        Route::Surface(call) => {
            Box::pin(surface::serve(Arc::clone(proxy), launch, call, request)).await
        },
        Route::Mcp | Route::Unknown => {
            proxy.traces.counters.refused.fetch_add(1, Ordering::Relaxed);
            respond::not_here()
        },
    }
}

/// On a 426 the CLI goes over to HTTP for its session, without a word to the person.
fn upgrade_required() -> Answer {
    let mut answer = respond::error(
        StatusCode::UPGRADE_REQUIRED,
        ErrorCode::BadRequest,
        "WebSocket is not offered; use HTTP",
    );
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
    answer
}
