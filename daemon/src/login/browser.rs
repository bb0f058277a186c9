//! The listener for the browser's way back: loopback, two ports, four paths, one answer.
//!
//! The ports are those that the issuer sends browsers back to for this client id (Codex CLI
//! 0.169.0): 1455, else 1457. A holder of a port is named, never asked to go. Connections are served
//! side by side: browsers open some in advance and say nothing on them.

use super::{Logins, Session, Stage, callback, cancelled, exchange::Ending, page};
use crate::sys;
use bytes::Bytes;
use cma_proto::{error::ErrorCode, login::LoginEnd};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    task::JoinSet,
};

/// Where browsers are sent back to, best first.
pub(super) const PORTS: [u16; 2] = [1455, 1457];
/// How long the last page can be fetched after the end.
const LINGER: Duration = Duration::from_secs(10);
/// Longest life of a connection: that of an exchange, and some.
const CONNECTION: Duration = Duration::from_secs(60);
/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 16;

/// A port of ours.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) port: u16,
    listener: TcpListener,
}

/// What the connections of one listener share.
struct Desk {
    port: u16,
    logins: Arc<Logins>,
    session: Arc<Session>,
    /// The person has seen the last page.
    told: Notify,
}

/// Takes the first port that is free.
///
/// # Errors
/// [`LoginEnd::PortsTaken`] naming the holders.
pub(super) fn bind() -> Result<Bound, Box<Ending>> {
    let mut holders = Vec::new();
    for port in PORTS {
        match listen(port) {
            Ok(listener) => return Ok(Bound { port, listener }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = sys::port_holder(port).unwrap_or_else(|| "another program".to_owned());
                holders.push(format!("port {port} is taken by {holder}"));
            },
            Err(error) => holders.push(format!("port {port} can't be listened on: {error}")),
        }
    }
    let ending = Ending::new(
        LoginEnd::PortsTaken,
        ErrorCode::Config,
        format!("the browser can't come back: {}", holders.join(", ")),
        "end one of them, or run `cmactl login --device`",
    );
    Err(ending.into())
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Lets a port be bound again right after its last owner died. On Windows it would allow two
    // listeners, so it stays off there.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    socket.listen(16)
}

/// Serves until the sign-in has ended and its last page was fetched.
pub(super) async fn serve(bound: Bound, logins: Arc<Logins>, session: Arc<Session>) {
    let desk = Arc::new(Desk { port: bound.port, logins, session, told: Notify::new() });
    let mut lines = JoinSet::new();
    let over = async {
        desk.session.ended().await;
        // Where no browser has called there is nobody to tell.
        if desk.session.redeemer.lock().is_none() {
            drop(tokio::time::timeout(LINGER, desk.told.notified()).await);
        }
    };
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => break,
            accepted = bound.listener.accept(), if lines.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _peer)) => {
                    lines.spawn(converse(stream, Arc::clone(&desk)));
                },
                Err(_passing) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_ended) = lines.join_next() => {},
        }
    }
    drop(bound);
    // The answer that told the person is still on its way out.
    let rest = async { while lines.join_next().await.is_some() {} };
    drop(tokio::time::timeout(Duration::from_secs(1), rest).await);
}

async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, std::convert::Infallible>(desk.answer(&request).await) }
    });
    let serving = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // A browser that goes away is no news.
    drop(tokio::time::timeout(CONNECTION, serving).await);
}

impl Desk {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.is_ours(request) {
            return text(StatusCode::FORBIDDEN, "This address is for this machine only.\n");
        }
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "Only GET.\n");
        }
        match request.uri().path() {
            callback::PATH => self.callback(request.uri().query().unwrap_or_default()).await,
            "/success" => self.last_page(),
            "/cancel" if from_no_page(request) => {
                // The official CLI asks so before it takes the port (0.169.0).
                self.session.end(cancelled("another sign-in asked for its port"));
                text(StatusCode::OK, "Sign-in cancelled.\n")
            },
            _ => text(StatusCode::NOT_FOUND, "Nothing is here.\n"),
        }
    }

    /// The browser spoke to this very listener: a name that leads here by a trick of DNS is refused.
    fn is_ours(&self, request: &Request<Incoming>) -> bool {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let port = self.port;
        host.is_some_and(|host| {
            [format!("127.0.0.1:{port}"), format!("localhost:{port}")].iter().any(|own| own == host)
        })
    }

    async fn callback(&self, query: &str) -> Response<Full<Bytes>> {
        let accepted = callback::query(query)
            .and_then(|callback| self.logins.called_back(&self.session, callback));
        if let Err(why) = accepted {
            return html(StatusCode::BAD_REQUEST, &page::not_accepted(why));
        }
        self.session.ended().await;
        match &*self.session.stage.borrow() {
            Stage::Done(_) => {
                // The code goes out of the address bar.
                let mut response = html(StatusCode::FOUND, "");
                let to = HeaderValue::from_static("/success");
                response.headers_mut().insert(header::LOCATION, to);
                response
            },
            Stage::Person | Stage::Exchange | Stage::Ended(_) => self.last_page(),
        }
    }

    fn last_page(&self) -> Response<Full<Bytes>> {
        match &*self.session.stage.borrow() {
            Stage::Done(done) => {
                self.told.notify_one();
                html(StatusCode::OK, &page::success(done))
            },
            Stage::Ended(ending) => {
                self.told.notify_one();
                html(StatusCode::BAD_REQUEST, &page::failure(&ending.refusal))
            },
            Stage::Person | Stage::Exchange => text(StatusCode::NOT_FOUND, "Not signed in yet.\n"),
        }
    }
}

/// Whether no web page can have caused a request: browsers say where one comes from.
fn from_no_page(request: &Request<Incoming>) -> bool {
    request.headers().get("sec-fetch-site").is_none_or(|site| site.as_bytes() == b"none")
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn html(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/html; charset=utf-8", Bytes::copy_from_slice(body.as_bytes()))
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, page::POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
