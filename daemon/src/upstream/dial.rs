//! One connection, from a name to a stream: look up, connect, pass the proxy, agree on TLS.
//!
//! Addresses of both families are tried a moment apart, the first that answers is taken (RFC 8305).
//! A proxy gets the host's name and port and nothing else of a request. Dead peers are noticed by the
//! kernel's own probes: after a VPN flip nothing else would tell.

use crate::{
    fault,
    gather::Gather,
    names::Names,
    network::{Manner, Network, Proxy},
    sys,
};
use rustls::pki_types::ServerName;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::Poll,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Before the next address is tried beside the last one (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 8;
/// The head of a proxy's answer.
const MAX_PROXY_HEAD: usize = 16 * 1024;

/// Any stream of bytes.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What a connection is made of.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// TLS within a proxy's TLS.
    Nested(Box<TlsStream<Box<dyn Io>>>),
}

impl Wire {
    /// Whether TLS agreed on HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        let protocol = match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Nested(stream) => stream.get_ref().1.alpn_protocol(),
        };
        protocol == Some(b"h2".as_slice())
    }

    /// One type for all of them.
    pub(crate) fn boxed(self) -> Box<dyn Io> {
        match self {
            Self::Plain(stream) => Box::new(Gather::new(stream)),
            Self::Tls(stream) => stream,
            Self::Nested(stream) => stream,
        }
    }
}

/// Where to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Host as a URL names it.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

/// Connects; `tls` agrees with the host itself, behind any proxy.
pub(crate) async fn dial(
    network: &Network,
    names: &Names,
    target: Target<'_>,
    tls: Option<&TlsConnector>,
) -> io::Result<Wire> {
    let Some(proxy) = network.proxy_to(target.host) else {
        let stream = connect(names, target.host, target.port).await?;
        return match tls {
            None => Ok(Wire::Plain(stream)),
            Some(tls) => Ok(Wire::Tls(Box::new(agree(tls, target.host, stream).await?))),
        };
    };
    let through = |error: io::Error| {
        io::Error::new(error.kind(), format!("through the proxy {}: {error}", proxy.shown))
    };
    let mut stream = connect(names, &proxy.host, proxy.port).await.map_err(through)?;
    match proxy.manner {
        Manner::Http => tunnel(&mut stream, proxy, target).await.map_err(through)?,
        Manner::Socks { names: theirs } => {
            let host = if theirs {
                target.host.to_owned()
            } else {
                let found = names.resolve(target.host).await?;
                found.first().map(ToString::to_string).unwrap_or_default()
            };
            socks(&mut stream, proxy, Target { host: &host, ..target }).await.map_err(through)?;
        },
        Manner::Https => {
            let own = TlsConnector::from(std::sync::Arc::new(network.tls().map_err(untrusting)?));
            let mut outer: Box<dyn Io> =
                Box::new(agree(&own, &proxy.host, stream).await.map_err(through)?);
            tunnel(&mut outer, proxy, target).await.map_err(through)?;
            let Some(tls) = tls else { return Err(io::ErrorKind::Unsupported.into()) };
            return Ok(Wire::Nested(Box::new(agree(tls, target.host, outer).await?)));
        },
    }
    match tls {
        None => Ok(Wire::Plain(stream)),
        Some(tls) => Ok(Wire::Tls(Box::new(agree(tls, target.host, stream).await?))),
    }
}

async fn agree<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsConnector,
    host: &str,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    tls.connect(name, stream).await.map_err(|error| {
        let hint = if error.to_string().contains("UnknownIssuer") {
            " (if your network has a certificate authority of its own, name its PEM file in \
             `CODEX_CA_CERTIFICATE` or `network.ca_file`)"
        } else {
            ""
        };
        let distrusts = error.get_ref().is_some_and(|inner| fault::is_distrust(inner));
        let kind = if distrusts { error.kind() } else { io::ErrorKind::Other };
        io::Error::new(kind, format!("TLS: {error}{hint}"))
    })
}

/// There is no trust to be had here: not by itself.
pub(super) fn untrusting(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.to_string())
}

async fn connect(names: &Names, host: &str, port: u16) -> io::Result<TcpStream> {
    let found = names.resolve(host).await?;
    let stream = race(&interleaved(&found), port).await.map_err(|error| match error.kind() {
        // The kernel's words for a route that is closed: a VPN opens it again.
        io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
            io::Error::other(error.to_string())
        },
        _ => error,
    })?;
    stream.set_nodelay(true)?;
    // A proxy of the person's own, mostly.
    if stream.peer_addr()?.ip().is_loopback() {
        sys::unpaced(&stream);
    }
    probe(&stream);
    Ok(stream)
}

/// The families in turn, beginning with that of the first address: the system put them in order.
fn interleaved(found: &[IpAddr]) -> Vec<IpAddr> {
    let six = found.first().is_some_and(IpAddr::is_ipv6);
    let mut first = found.iter().filter(|address| address.is_ipv6() == six);
    let mut second = found.iter().filter(|address| address.is_ipv6() != six);
    let mut all = Vec::new();
    loop {
        let pair = (first.next(), second.next());
        all.extend(pair.0);
        all.extend(pair.1);
        if pair == (None, None) || all.len() >= MAX_ADDRESSES {
            return all;
        }
    }
}

async fn race(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    type Attempt = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;
    let mut waiting = addresses.iter();
    let mut running: Vec<Attempt> = Vec::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => {
                running.push(Box::pin(TcpStream::connect(SocketAddr::new(*address, port))));
            },
            None if running.is_empty() => return Err(last),
            None => {},
        }
        let ended = std::future::poll_fn(|context| {
            for at in 0..running.len() {
                let Some(attempt) = running.get_mut(at) else { break };
                if let Poll::Ready(ended) = attempt.as_mut().poll(context) {
                    drop(running.swap_remove(at));
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        });
        let ended = if waiting.len() > 0 {
            tokio::time::timeout(STAGGER, ended).await.ok()
        } else {
            Some(ended.await)
        };
        match ended {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => last = error,
            None => {},
        }
    }
}

/// In milliseconds.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: u32 = 40_000;

/// The kernel looks after a silent peer from 15 s on, and gives it up after three looks more.
#[cfg(unix)]
fn probe(stream: &TcpStream) {
    use rustix::net::sockopt;
    // Where one is not to be had the others still help.
    let _kept = sockopt::set_socket_keepalive(stream, true);
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        let _idle = sockopt::set_tcp_keepidle(stream, Duration::from_secs(15));
        let _interval = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5));
        let _count = sockopt::set_tcp_keepcnt(stream, 3);
    }
    // The same for a peer that stops acknowledging what was sent, which no probe finds.
    #[cfg(target_os = "linux")]
    let _unacknowledged = sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED);
}

#[cfg(windows)]
fn probe(_stream: &TcpStream) {}

/// `CONNECT`; the stream is the host's own afterwards.
async fn tunnel(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin + ?Sized),
    proxy: &Proxy,
    target: Target<'_>,
) -> io::Result<()> {
    let Target { host, port } = target;
    let mut ask = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(login) = proxy.authorization() {
        ask.extend_from_slice(b"Proxy-Authorization: ");
        ask.extend_from_slice(login.as_bytes());
        ask.extend_from_slice(b"\r\n");
    }
    ask.extend_from_slice(b"\r\n");
    stream.write_all(&ask).await?;
    stream.flush().await?;
    let mut head = Vec::with_capacity(256);
    // Byte by byte: what follows the head is the host's. A head is short and comes once.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_PROXY_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    let status = std::str::from_utf8(&head)
        .ok()
        .and_then(|head| head.strip_prefix("HTTP/1."))
        .and_then(|head| head.get(2..5))
        .and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=299) => Ok(()),
        Some(407) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it wants another user or password (407)",
        )),
        Some(status) => {
            // A refusal, as against one that can't now.
            let refuses = (400..500).contains(&status) && ![408, 429].contains(&status);
            let kind = if refuses { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
            Err(io::Error::new(kind, format!("it answered {status}")))
        },
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is not HTTP")),
    }
}

/// SOCKS 5 (RFC 1928), with a user's password (RFC 1929) where one is set.
async fn socks(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    target: Target<'_>,
) -> io::Result<()> {
    use secrecy::ExposeSecret as _;
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let method = if proxy.login.is_some() { 2 } else { 0 };
    stream.write_all(&[5, 1, method]).await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    if chosen != [5, method] {
        let why = "it takes no such login";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if let Some((user, password)) = &proxy.login {
        let mut login = vec![1];
        for part in [user.as_str(), password.expose_secret()] {
            login.push(u8::try_from(part.len()).map_err(|_long| bad("its login is too long"))?);
            login.extend_from_slice(part.as_bytes());
        }
        stream.write_all(&login).await?;
        stream.read_exact(&mut chosen).await?;
        if chosen[1] != 0 {
            let why = "it wants another user or password";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
    }
    let mut ask = vec![5, 1, 0];
    match target.host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(address)) => {
            ask.push(1);
            ask.extend_from_slice(&address.octets());
        },
        Ok(IpAddr::V6(address)) => {
            ask.push(4);
            ask.extend_from_slice(&address.octets());
        },
        Err(_name) => {
            ask.push(3);
            ask.push(u8::try_from(target.host.len()).map_err(|_long| bad("a long name"))?);
            ask.extend_from_slice(target.host.as_bytes());
        },
    }
    ask.extend_from_slice(&target.port.to_be_bytes());
    stream.write_all(&ask).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    if head[1] != 0 {
        // Not allowed by its rules, as against what may pass.
        let kind =
            if head[1] == 2 { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
        return Err(io::Error::new(kind, format!("it answered {} (SOCKS)", head[1])));
    }
    let rest = match head[3] {
        1 => 4 + 2,
        4 => 16 + 2,
        3 => usize::from(stream.read_u8().await?) + 2,
        _ => return Err(bad("its answer is not SOCKS")),
    };
    let mut bound = vec![0; rest];
    stream.read_exact(&mut bound).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a proxy that says this leads to, and what of it was left for the host.
    fn told(login: bool, says: &[u8], ask: Ask) -> (io::Result<()>, Vec<u8>) {
        let login = if login { "me:word@" } else { "" };
        let url = format!("http://{login}127.0.0.1:1");
        let proxy = crate::network::proxy(Some(url)).unwrap().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, mut far) = tokio::io::duplex(64 * 1024);
            far.write_all(says).await.unwrap();
            far.shutdown().await.unwrap();
            let target = Target { host: "backend.test", port: 443 };
            let ended = match ask {
                Ask::Connect => tunnel(&mut near, &proxy, target).await,
                Ask::Socks => socks(&mut near, &proxy, target).await,
            };
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
            (ended, rest)
        })
    }

    #[derive(Debug, Clone, Copy)]
    enum Ask {
        Connect,
        Socks,
    }

    proptest! {
        /// Whatever a proxy answers ends in a stream or in an error, and what follows is the host's.
        #[test]
        fn what_a_proxy_says_is_an_error_or_a_way(
            noise in proptest::collection::vec(any::<u8>(), 0..400),
            after in proptest::collection::vec(any::<u8>(), 0..40),
            status in 0_u16..1000,
            login in any::<bool>(),
        ) {
            for ask in [Ask::Connect, Ask::Socks] {
                let _either_way = told(login, &noise, ask);
                let greeting: &[u8] = if login { &[5, 2, 1, 0] } else { &[5, 0] };
                let _broken_off = told(login, &[greeting, &noise].concat(), ask);
            }
            let head = format!("HTTP/1.1 {status:03} so\r\nVia: x\r\n\r\n");
            let (ended, rest) = told(login, &[head.as_bytes(), &after].concat(), Ask::Connect);
            prop_assert_eq!(ended.is_ok(), (200..300).contains(&status));
            prop_assert_eq!(&rest, &after);
            let greeting: &[u8] = if login { &[5, 2, 1, 0] } else { &[5, 0] };
            for bound in [&[5, 0, 0, 1, 1, 2, 3, 4, 0, 80][..], &[5, 0, 0, 3, 1, b'h', 0, 80]] {
                let says = [greeting, bound, &after].concat();
                let (ended, rest) = told(login, &says, Ask::Socks);
                prop_assert!(ended.is_ok());
                prop_assert_eq!(&rest, &after);
            }
        }
    }

    #[test]
    fn families_take_turns() {
        let list = |text: &str| {
            text.split(' ').map(|address| address.parse().unwrap()).collect::<Vec<IpAddr>>()
        };
        let found = list("::1 ::2 ::3 127.0.0.1 127.0.0.2");
        assert_eq!(interleaved(&found), list("::1 127.0.0.1 ::2 127.0.0.2 ::3"));
        let found = list("127.0.0.1 ::1");
        assert_eq!(interleaved(&found), found);
        assert!(interleaved(&[]).is_empty());
    }

    #[tokio::test]
    async fn an_address_that_is_dead_or_silent_costs_a_moment() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Refused at once, so that the next is tried at once.
        let begun = std::time::Instant::now();
        let addresses = ["::1".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        assert!(race(&addresses, port).await.is_ok());
        assert!(begun.elapsed() < STAGGER, "{:?}", begun.elapsed());
        assert!(race(&addresses[..1], port).await.is_err());
        assert!(race(&[], port).await.is_err());
        // A test network (RFC 5737): nobody answers, or the system says at once that there is none.
        let silent = ["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let begun = std::time::Instant::now();
        assert!(race(&silent, port).await.is_ok());
        assert!(begun.elapsed() < STAGGER * 4, "{:?}", begun.elapsed());
    }
}
