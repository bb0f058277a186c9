//! Connections to the backend: a pool for each account, HTTP/2 where TLS agrees on it, else HTTP/1.1.
//!
//! No connection ever serves two accounts, nor does a TLS session: nothing about one can be told from
//! another's. No redirect is followed, nothing is decoded. Nagle is off on every socket: an
//! answer's head and first event are two small writes, and waiting for an acknowledgement between
//! them costs 40 ms.
//!
//! This module tells how far an attempt got (nothing sent, sent and cut, not HTTP), because only
//! that decides whether it may be repeated. It never decides itself, but for two cases: a kept
//! connection that the host closed while it was idle is replaced without a word, and so is a stream
//! that the host says it did nothing with.
//!
//! The network is no account's fault. When the machine has slept or a connection can't be made, what
//! was kept is not trusted any more; nothing lives for ever, so that a host that moved is found.

mod connection;
mod dial;
mod joined;

use crate::{
    app::Tasks, clock, config::Endpoint, fault, gather::Gather, names::Names, network::Network,
    proxy::body::UpBody,
};
use cma_core::{
    identity::AccountId,
    time::{Span, Wall},
};
use connection::{Lost, Shared};
use dial::{Target, Wire};
use http::{HeaderValue, header};
use hyper::{Request, Response};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Mutex as Turn, time::Instant};
use tokio_rustls::TlsConnector;

pub(crate) use connection::{Connection, Driven};
pub(crate) use dial::Io;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Hosts close idle connections after a minute or more; ours go before that.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept for one account.
const KEPT: usize = 64;
/// A connection that is older takes no new request: names are looked up anew at the next one.
const MAX_AGE: Duration = Duration::from_secs(600);
/// The wall clock went on for this much more than the other one: the machine slept, or the clock
/// was set. What was open before a sleep of hours is dead without a word.
const SLEPT: Span = Span::from_secs(5);
/// A request that is given up after this time without a head makes its shared connection suspect.
const SUSPECT: Duration = Duration::from_secs(5);
/// TLS sessions kept for one account, for the next handshake.
const SESSIONS: usize = 4;
/// Hosts beside the backend's own that requests may name.
const ELSEWHERE: usize = 16;
/// How often the host may say that it did nothing with a request.
const MAX_UNSENT: u32 = 4;

/// A request on its way up. Boxed: it goes through half a dozen futures, each of which would copy it.
pub(crate) type Outbound = Box<Request<UpBody>>;

/// How an attempt failed before a head came.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing was sent, or the host says that it did nothing with it.
    Connect(String),
    /// Nothing was sent, and that won't change by itself: a certificate that isn't trusted, a proxy that
    /// wants another login.
    Barred(String),
    /// The connection ended.
    Cut,
    /// What came is not HTTP.
    Garbage,
    /// The client's own body ended early; not upstream's fault.
    ClientBody,
}

/// What a stream of bytes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// HTTP/2 if the host agrees.
    Best,
    /// HTTP/1.1 alone, as a WebSocket's handshake needs it.
    Http1,
}

/// The backend, and the connections to it.
pub(crate) struct Upstream {
    pub(crate) endpoint: Endpoint,
    /// Other hosts that requests may name, by what stands in their `Host` header.
    elsewhere: RwLock<BTreeMap<String, Arc<Self>>>,
    /// It is one of those.
    other: bool,
    network: Network,
    names: Names,
    tls: Mutex<Option<rustls::ClientConfig>>,
    pools: Mutex<BTreeMap<AccountId, Pool>>,
    /// Both clocks at the last look.
    clocks: Mutex<(Instant, Wall)>,
    /// The host speaks HTTP/1.1 only, as of the last handshake.
    http1_only: AtomicBool,
    sweeping: AtomicBool,
    tasks: Tasks,
}

/// One account's.
#[derive(Default)]
struct Pool {
    idle: Vec<Idle>,
    shared: Vec<Arc<Shared>>,
    /// Held while one connects: those beside it may find a seat on what it brings.
    connecting: Arc<Turn<()>>,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    best: TlsConnector,
    http1: TlsConnector,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Idle {
    fn is_fresh(&self) -> bool {
        clock::since(self.since) < IDLE && clock::since(self.connection.born) < MAX_AGE
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("base", &self.endpoint.base).finish_non_exhaustive()
    }
}

impl Upstream {
    pub(crate) fn new(endpoint: Endpoint, network: Network, tasks: Tasks) -> Arc<Self> {
        Self::of(endpoint, network, tasks, false)
    }

    fn of(endpoint: Endpoint, network: Network, tasks: Tasks, other: bool) -> Arc<Self> {
        Arc::new(Self {
            elsewhere: RwLock::new(BTreeMap::new()),
            other,
            // Without TLS nobody can agree on anything else.
            http1_only: AtomicBool::new(!endpoint.tls || network.http1_only),
            names: Names::new(network.hosts_file.clone()),
            endpoint,
            network,
            tls: Mutex::new(None),
            pools: Mutex::new(BTreeMap::new()),
            clocks: Mutex::new((Instant::now(), clock::wall())),
            sweeping: AtomicBool::new(false),
            tasks,
        })
    }

    /// Lets requests name this host. A handful at most: an account's workspace has one.
    pub(crate) fn admit(&self, endpoint: Endpoint) {
        let mut elsewhere = self.elsewhere.write();
        if elsewhere.len() < ELSEWHERE && !elsewhere.contains_key(&endpoint.authority) {
            let name = endpoint.authority.clone();
            let other = Self::of(endpoint, self.network.clone(), self.tasks.clone(), true);
            elsewhere.insert(name, other);
        }
    }

    /// The other host that a request names, if it does.
    fn named(&self, host: Option<&HeaderValue>) -> Option<Arc<Self>> {
        let host = host.filter(|host| host.as_bytes() != self.endpoint.authority.as_bytes())?;
        self.elsewhere.read().get(host.to_str().ok()?).cloned()
    }

    /// Sends a request on a connection of that account and waits for the head.
    ///
    /// `again` makes the request once more, when a kept connection turns out to have been closed by
    /// the host (`false`: it may have been delivered) or when the host says that it did nothing with it
    /// (`true`); it gives `None` when it can't be sent twice.
    pub(crate) async fn send(
        self: &Arc<Self>,
        account: &AccountId,
        request: Outbound,
        again: impl FnOnce(bool) -> Option<Outbound>,
    ) -> Result<Response<Driven>, Failure> {
        let other = self.named(request.headers().get(header::HOST));
        other.as_ref().unwrap_or(self).send_here(account, request, again).await
    }

    async fn send_here(
        self: &Arc<Self>,
        account: &AccountId,
        request: Outbound,
        again: impl FnOnce(bool) -> Option<Outbound>,
    ) -> Result<Response<Driven>, Failure> {
        let (mut request, mut again) = (request, Some(again));
        let (mut kept_ones, mut unsent) = (true, 0);
        loop {
            let (mut connection, kept) = match self.kept(account).filter(|_| kept_ones) {
                Some(connection) => (connection, true),
                // Boxed: what a handshake needs would otherwise be moved with every request.
                None => (Box::pin(self.open(account)).await?, false),
            };
            if kept && !connection.is_ready() {
                continue;
            }
            let mut waiting = Waiting::on(&connection);
            let exchanged = connection.exchange(request, &self.endpoint).await;
            if let Some(waiting) = &mut waiting {
                waiting.over = true;
            }
            match exchanged {
                Ok(response) => {
                    connection.other = self.other;
                    return Ok(connection.answered(response));
                },
                Err(Lost::Unsent(back)) if kept || unsent < MAX_UNSENT => {
                    request = back;
                    unsent += 1;
                },
                Err(Lost::Unsent(_)) => {
                    return Err(Failure::Connect("the host closes connections at once".to_owned()));
                },
                Err(Lost::Refused) => {
                    let repeated = again.take().and_then(|again| again(true));
                    request = repeated.ok_or_else(|| {
                        Failure::Connect("the host refused the request's stream".to_owned())
                    })?;
                },
                Err(Lost::Failed(error)) => {
                    let failure = failure(&error);
                    // A shared one that died took all its requests along; a reset is of the request alone.
                    let died = kept && !(connection.is_shared() && connection::is_reset(&error));
                    if !died || !matches!(failure, Failure::Cut) {
                        return Err(failure);
                    }
                    let Some(repeated) = again.take().and_then(|again| again(false)) else {
                        return Err(failure);
                    };
                    request = repeated;
                    kept_ones = false;
                },
            }
        }
    }

    /// A new stream to the backend, or to the other host named, for that account, through whatever is on
    /// the way: for a protocol of the caller's own. Nothing is kept of it.
    ///
    /// # Errors
    /// [`Failure::Connect`] with the reason; nothing was sent.
    pub(crate) async fn connect(
        &self,
        account: &AccountId,
        alpn: Alpn,
        host: Option<&HeaderValue>,
    ) -> Result<Box<dyn Io>, Failure> {
        match self.named(host) {
            None => self.dial(account, alpn).await,
            Some(other) => other.dial(account, alpn).await,
        }
        .map(Wire::boxed)
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn give_back(self: &Arc<Self>, connection: Connection) {
        // A seat is free by being dropped. Another host's is not kept: it would serve this one's requests.
        if !connection.is_open() || connection.other != self.other {
            return;
        }
        let mut pools = self.pools.lock();
        let idle = match pools.get_mut(&connection.account) {
            Some(pool) => &mut pool.idle,
            None => &mut pools.entry(connection.account.clone()).or_default().idle,
        };
        if idle.len() < KEPT {
            idle.push(Idle { connection, since: clock::mono() });
        }
        drop(pools);
        self.start_sweeping();
    }

    /// Closes all idle connections; the others take no new request.
    pub(crate) fn close_idle(&self) {
        for pool in self.pools.lock().values_mut() {
            pool.idle.clear();
            pool.shared.drain(..).for_each(|shared| shared.retire());
        }
        for other in self.elsewhere.read().values() {
            other.close_idle();
        }
    }

    fn start_sweeping(self: &Arc<Self>) {
        if !self.sweeping.swap(true, Ordering::AcqRel) {
            let upstream = Arc::clone(self);
            self.tasks.spawn_idle("upstream sweep", async move { upstream.sweep().await });
        }
    }

    /// A connection that is there and worth trying.
    fn kept(&self, account: &AccountId) -> Option<Connection> {
        if self.slept() {
            tracing::info!("the machine slept; kept connections are closed");
            self.close_idle();
            return None;
        }
        let mut pools = self.pools.lock();
        let pool = pools.get_mut(account)?;
        pool.shared.retain(|shared| shared.serves(MAX_AGE));
        if let Some(seat) = pool.shared.iter().find_map(Shared::seat) {
            return Some(Connection::seated(seat, account.clone()));
        }
        while let Some(idle) = pool.idle.pop() {
            if idle.is_fresh() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Whether the wall clock has jumped since the last look.
    fn slept(&self) -> bool {
        let now = (clock::mono(), clock::wall());
        let before = std::mem::replace(&mut *self.clocks.lock(), now);
        let mono = u64::try_from(now.0.saturating_duration_since(before.0).as_millis())
            .unwrap_or(u64::MAX);
        now.1.since(before.1).millis() > mono.saturating_add(SLEPT.millis())
    }

    /// Runs while there is anything idle, then ends: an idle daemon has no timer.
    async fn sweep(&self) {
        loop {
            tokio::time::sleep(IDLE / 2).await;
            let mut pools = self.pools.lock();
            for pool in pools.values_mut() {
                pool.idle.retain(Idle::is_fresh);
                pool.idle.shrink_to_fit();
                pool.shared.retain(|shared| shared.serves(MAX_AGE) && !shared.is_free_for(IDLE));
            }
            // TLS sessions stay: they are small, and the next handshake is shorter by them.
            if pools.values().all(|pool| pool.idle.is_empty() && pool.shared.is_empty()) {
                self.sweeping.store(false, Ordering::Release);
                drop(pools);
                crate::sys::release_memory();
                return;
            }
        }
    }

    /// A new connection, or a seat on one that came while this waited for its turn.
    async fn open(self: &Arc<Self>, account: &AccountId) -> Result<Connection, Failure> {
        if self.http1_only.load(Ordering::Relaxed) {
            let wire = self.dial(account, Alpn::Best).await?;
            return self.greet(wire, account).await;
        }
        let connecting = {
            let mut pools = self.pools.lock();
            Arc::clone(&pools.entry(account.clone()).or_default().connecting)
        };
        // Those in front may wait for a network that is gone: nobody waits for all of them.
        let turn = tokio::time::timeout(CONNECT_TIMEOUT, connecting.lock())
            .await
            .map_err(|_elapsed| Failure::Connect("no connection in time".to_owned()))?;
        // The one before may have brought a connection, or have learned that there is one for each.
        let seat = self.pools.lock().get(account).and_then(|pool| {
            let serving = pool.shared.iter().filter(|shared| shared.serves(MAX_AGE));
            serving.map(Shared::seat).find_map(|seat| seat)
        });
        if let Some(seat) = seat {
            return Ok(Connection::seated(seat, account.clone()));
        }
        let wire = if self.http1_only.load(Ordering::Relaxed) {
            drop(turn);
            self.dial(account, Alpn::Best).await?
        } else {
            // Its turn goes on until its connection can be found.
            let wire = self.dial(account, Alpn::Best).await?;
            let opened = self.greet(wire, account).await;
            drop(turn);
            return opened;
        };
        self.greet(wire, account).await
    }

    async fn greet(
        self: &Arc<Self>,
        wire: Wire,
        account: &AccountId,
    ) -> Result<Connection, Failure> {
        let shown = |error: hyper::Error| Failure::Connect(error.to_string());
        if !wire.is_http2() {
            // What one handshake told holds for the next, until one tells otherwise.
            self.http1_only.store(true, Ordering::Relaxed);
            let account = account.clone();
            return match wire {
                Wire::Plain(stream) => Connection::greet(Gather::new(stream), account).await,
                Wire::Tls(stream) => Connection::greet(stream, account).await,
                Wire::Nested(stream) => Connection::greet(stream, account).await,
            }
            .map_err(shown);
        }
        self.http1_only.store(false, Ordering::Relaxed);
        let shared = match wire {
            Wire::Tls(stream) => Shared::greet(stream, &self.tasks).await,
            other => Shared::greet(other.boxed(), &self.tasks).await,
        }
        .map_err(shown)?;
        let seat = {
            let mut pools = self.pools.lock();
            let seat = shared.seat();
            pools.entry(account.clone()).or_default().shared.push(shared);
            seat
        };
        self.start_sweeping();
        let seat = seat.ok_or_else(|| Failure::Connect("the host takes no requests".to_owned()))?;
        Ok(Connection::seated(seat, account.clone()))
    }

    async fn dial(&self, account: &AccountId, alpn: Alpn) -> Result<Wire, Failure> {
        let dialled = async {
            let tls = if self.endpoint.tls { Some(self.tls(account)?) } else { None };
            let tls = tls.as_ref().map(|tls| match alpn {
                Alpn::Best => &tls.best,
                Alpn::Http1 => &tls.http1,
            });
            let target = Target { host: &self.endpoint.host, port: self.endpoint.port };
            dial::dial(&self.network, &self.names, target, tls).await
        };
        let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dialled)
            .await
            .map_err(|_elapsed| Failure::Connect("no connection in time".to_owned()))
            .and_then(|dialled| dialled.map_err(|error| not_dialled(&error)));
        dialled.inspect_err(|_failure| {
            // The way is gone: what was kept goes by it too.
            self.close_idle();
        })
    }

    /// TLS is set up at the first use: roots cost memory that an idle daemon doesn't need.
    fn tls(&self, account: &AccountId) -> io::Result<Tls> {
        let mut pools = self.pools.lock();
        let pool = pools.entry(account.clone()).or_default();
        if let Some(tls) = &pool.tls {
            return Ok(tls.clone());
        }
        let mut base = self.tls.lock();
        let known = match &*base {
            Some(known) => known.clone(),
            None => self.network.tls().map_err(dial::untrusting)?,
        };
        *base = Some(known.clone());
        drop(base);
        let connector = |protocols: &[&str]| {
            let mut config = known.clone();
            config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS);
            config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        let http1 = connector(&["http/1.1"]);
        let best =
            if self.network.http1_only { http1.clone() } else { connector(&["h2", "http/1.1"]) };
        Ok(pool.tls.insert(Tls { best, http1 }).clone())
    }
}

fn not_dialled(error: &io::Error) -> Failure {
    if fault::is_barred(error) {
        Failure::Barred(error.to_string())
    } else {
        Failure::Connect(error.to_string())
    }
}

/// A wait for a head on a shared connection: given up late, it makes the connection suspect.
struct Waiting {
    begun: Instant,
    over: bool,
    shared: Arc<Shared>,
}

impl Waiting {
    fn on(connection: &Connection) -> Option<Self> {
        let shared = connection.shared()?;
        Some(Self { begun: Instant::now(), over: false, shared })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over && self.begun.elapsed() > SUSPECT {
            self.shared.retire();
        }
    }
}

fn failure(error: &hyper::Error) -> Failure {
    if error.is_parse() || error.is_parse_too_large() || connection::is_nonsense(error) {
        Failure::Garbage
    } else if error.is_user() {
        Failure::ClientBody
    } else {
        Failure::Cut
    }
}

#[cfg(test)]
mod tests;
