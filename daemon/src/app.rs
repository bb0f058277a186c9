//! Builds everything from a configuration, runs it, and takes it down in order.
//!
//! Phases: starting → serving → draining → flushing. Draining lets running turns end and answers
//! new ones with "try again"; flushing waits for renewals under way, because a token that the
//! issuer rotated and nobody saved is a lost login. Every task is spawned through [`Tasks`], so none
//! is forgotten.

use crate::{
    actor::{self, Actor, Handle},
    cache, clock,
    config::Config,
    fault::Fault,
    ipc,
    login::Logins,
    mirror::{self, Mirror},
    project::Projects,
    proxy::{
        self, Proxy,
        keys::Keys,
        own::Lent,
        relay::{self, Ending},
        trace::Traces,
    },
    renewal::Renewer,
    roster::Roster,
    store::{Store, keyring::Keyring},
    upstream::Upstream,
    vault::Vault,
};
use cma_core::{identity::AccountId, pool::Input};
use cma_proto::{endpoint::Root, error::ErrorCode};
use http::HeaderValue;
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
};
use tokio_util::task::TaskTracker;

/// Where the daemon is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Starting,
    Serving,
    Draining,
    Flushing,
}

impl Phase {
    /// As `status` shows it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Flushing => "flushing",
        }
    }
}

/// The current phase, and waiting for one.
#[derive(Debug, Clone)]
pub(crate) struct Phases(Arc<watch::Sender<Phase>>);

impl Phases {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Starting)))
    }

    pub(crate) fn now(&self) -> Phase {
        *self.0.borrow()
    }

    /// Phases only go forward.
    pub(crate) fn enter(&self, phase: Phase) {
        let entered = self.0.send_if_modified(|now| {
            let forward = *now < phase;
            if forward {
                *now = phase;
            }
            forward
        });
        if entered {
            tracing::info!(phase = phase.word(), "phase");
        }
    }

    /// Resolves when that phase or a later one is reached.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // The sender lives as long as `self`.
        drop(phases.wait_for(|now| *now >= phase).await);
    }

    /// Changes of the phase from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

/// Spawns tasks by name and waits for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    awaited: TaskTracker,
    idle: TaskTracker,
}

impl Tasks {
    /// A task that a stop waits for.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        tracing::trace!(name, "task");
        drop(self.awaited.spawn(task));
    }

    /// A task that holds nothing worth waiting for.
    pub(crate) fn spawn_idle(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        tracing::trace!(name, "idle task");
        drop(self.idle.spawn(task));
    }

    /// Resolves when all awaited tasks have ended.
    pub(crate) async fn ended(&self) {
        self.awaited.close();
        self.awaited.wait().await;
    }
}

/// How a stop was asked for.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    asked: Notify,
    now: Notify,
}

impl Stop {
    /// Let running turns end.
    pub(crate) fn drain(&self) {
        self.asked.notify_one();
    }

    /// Don't wait for running turns.
    pub(crate) fn cut(&self) {
        self.asked.notify_one();
        self.now.notify_one();
    }
}

/// What the daemon consists of, for the rooms that serve people.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) root: Root,
    pub(crate) config: Arc<Config>,
    pub(crate) actor: Handle,
    pub(crate) roster: Arc<Roster>,
    pub(crate) projects: Arc<Projects>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) logins: Arc<Logins>,
    pub(crate) renewer: Arc<Renewer>,
    pub(crate) mirror: Mirror,
    pub(crate) phases: Phases,
    pub(crate) stop: Stop,
    pub(crate) url: String,
    pub(crate) instance: String,
    pub(crate) started_at: u64,
}

/// Everything built and listening, not yet running.
pub(crate) struct Built {
    pub(crate) app: Arc<App>,
    actor: Actor,
    listener: TcpListener,
    ipc: ipc::Listener,
    settling: mpsc::UnboundedReceiver<Box<Ending>>,
    /// Connections and renewals: a stop waits for the first within limits, for the second always.
    connections: Tasks,
    renewals: Tasks,
}

/// Reads the root and binds both listeners.
///
/// # Errors
/// The typed reason why it can't: configuration, store, a taken port.
pub(crate) fn build(root: Root, config: Config) -> Result<Built, Fault> {
    let config = Arc::new(config);
    let store = Store::new(&root);
    open_seal(&store, &config)?;
    store.sweep()?;
    let secret = store.secret()?;
    let vault = Arc::new(Vault::default());
    let roster = Arc::new(Roster::load(store, Arc::clone(&config), Arc::clone(&vault))?);
    let projects = Arc::new(Projects::load(&root, roster.store().clone())?);
    let listener = crate::lifecycle::bind(&config, &roster)?;
    let at = listener
        .local_addr()
        .map_err(|error| Fault::internal(format!("own address unknown: {error}")))?;
    let ipc = ipc::Listener::bind(&root)?;
    let (connections, renewals) = (Tasks::default(), Tasks::default());
    let renewer =
        Arc::new(Renewer::new(Arc::clone(&roster), Arc::clone(&vault), Arc::clone(&config)));
    let (mut actor, handle) = Actor::new(actor::seed(), Arc::clone(&renewer), renewals.clone());
    actor.set_pace(config.pace);
    actor.prime(roster.all().iter().map(|record| Input::Upsert(roster.seed(record))));
    if let Some((pin, _since)) = roster.state().pin {
        actor.prime([Input::Pin(Some(AccountId::from_written(&pin)))]);
    }
    actor.prime(projects.all().iter().filter_map(|project| {
        let (pin, _since) = project.pin.as_ref()?;
        Some(Input::PinIn(project.key.as_str().into(), Some(AccountId::from_written(pin))))
    }));
    let phases = Phases::new();
    let instance = format!("{:08x}", actor::seed() & 0xffff_ffff);
    let host = HeaderValue::try_from(config.backend.authority.as_str())
        .map_err(|error| Fault::internal(error.to_string()))?;
    let (ended, settling) = mpsc::unbounded_channel();
    let proxy = Arc::new(Proxy {
        config: Arc::clone(&config),
        actor: handle.clone(),
        roster: Arc::clone(&roster),
        vault,
        upstream: Upstream::new(config.backend.clone(), connections.clone()),
        keys: Keys::new(&secret),
        lent: Lent::default(),
        health: proxy::host::Host::new(),
        traces: Traces::new(u16::from_str_radix(&instance[..4], 16).unwrap_or_default()),
        sockets: proxy::ws::Sockets::new(connections.clone()),
        phases: phases.clone(),
        port: at.port(),
        host,
        ended,
        responses: proxy::joined(&config.backend.path, "/codex/responses"),
    });
    let logins = Arc::new(Logins::new(
        Arc::clone(&config),
        Arc::clone(&roster),
        handle.clone(),
        renewals.clone(),
    ));
    let mirror = Mirror::load(&root, roster.store().clone())?;
    let app = Arc::new(App {
        root,
        config,
        actor: handle,
        roster,
        projects,
        proxy,
        logins,
        renewer,
        mirror,
        phases,
        stop: Stop::default(),
        url: format!("http://{at}"),
        instance,
        started_at: clock::unix(),
    });
    Ok(Built { app, actor, listener, ipc, settling, connections, renewals })
}

/// Opens a sealed root with what is at hand: `CMA_PASSPHRASE`, or the system's keyring. When neither
/// does it, the daemon starts locked and says so.
fn open_seal(store: &Store, config: &Config) -> Result<(), Fault> {
    store.look_for_seal()?;
    if !store.is_locked() {
        return Ok(());
    }
    let opened = match std::env::var("CMA_PASSPHRASE").ok().filter(|text| !text.is_empty()) {
        Some(passphrase) => store.unlock(&passphrase.into()),
        None if store.opens_by_keyring() => store.unlock_by(&Keyring::find(config)),
        None => return Ok(()),
    };
    match opened {
        Err(fault) if fault.code() == ErrorCode::Denied => {
            tracing::warn!(%fault, "the root stays locked");
            store.stays_locked(&fault.refusal.message);
            Ok(())
        },
        opened => opened,
    }
}

impl Built {
    /// The proxy's address.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until a stop is asked for, then goes down in order.
    pub(crate) async fn run(self) {
        let Self { app, actor, listener, ipc, settling, connections, renewals } = self;
        let stopped = Arc::new(Notify::new());
        let stop_actor = Arc::clone(&stopped);
        let background = Tasks::default();
        background.spawn("actor", async move { actor.run(stop_actor.notified()).await });
        let proxy = Arc::clone(&app.proxy);
        let accepting = connections.clone();
        background.spawn("proxy", proxy::serve(proxy, listener, accepting));
        background.spawn("settle", relay::settle(settling, app.phases.clone()));
        let cache = cache::keep(app.root.clone(), app.actor.clone(), app.phases.clone());
        let caching = Tasks::default();
        caching.spawn("cache", cache);
        background.spawn_idle("mirror", mirror::keep(Arc::clone(&app)));
        background.spawn_idle("ipc", ipc.serve(Arc::clone(&app), background.clone()));
        app.phases.enter(Phase::Serving);

        app.stop.asked.notified().await;
        app.phases.enter(Phase::Draining);
        tokio::select! {
            () = connections.ended() => {},
            () = tokio::time::sleep(app.config.drain_timeout) => {
                tracing::warn!("drain time is over; running responses are cut");
            },
            () = app.stop.now.notified() => {
                tracing::info!("running responses are cut on request");
            },
        }
        app.phases.enter(Phase::Flushing);
        app.actor.stop_renewing().await;
        renewals.ended().await;
        caching.ended().await;
        stopped.notify_one();
        app.proxy.upstream.close_idle();
        background.ended().await;
    }
}
