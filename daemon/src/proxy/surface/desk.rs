//! What is asked upstream beside a client's call: in the background, once at a time for each
//! account, a few at once.
//!
//! A client that can't be answered without it waits for a bounded time; every other one gets what is
//! known. Nothing here cools an account or renews a credential but where a caller says so: asking
//! must never cost a pool what its turns need.

use super::super::{Proxy, aux};
use crate::app::Tasks;
use bytes::Bytes;
use cma_core::identity::AccountId;
use http::{HeaderMap, HeaderName, Method, Request, Uri, header, request, response};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

/// Questions at once, over all accounts.
const AT_ONCE: usize = 4;

/// What is asked of an account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// Its models, as this version of a client may see them.
    Models(Arc<str>),
    /// Its windows.
    Usage,
    /// Its reset credits.
    Credits,
    /// Where its workspace lives.
    Check,
}

/// One question to one account.
pub(super) type Job = (What, AccountId);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Desk {
    tasks: Tasks,
    permits: Arc<Semaphore>,
    running: Mutex<BTreeSet<Job>>,
    ended: Notify,
    /// How the CLI that called last said who it is: what is asked on its behalf says the same.
    voice: Mutex<HeaderMap>,
}

/// Ends a job, whatever way its task ends.
struct Running {
    proxy: Arc<Proxy>,
    job: Job,
}

impl Drop for Running {
    fn drop(&mut self) {
        let desk = &self.proxy.surface.desk;
        desk.running.lock().remove(&self.job);
        desk.ended.notify_waiters();
    }
}

impl Desk {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self {
            tasks,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            running: Mutex::new(BTreeSet::new()),
            ended: Notify::new(),
            voice: Mutex::new(HeaderMap::new()),
        }
    }

    /// Remembers how a client says who it is.
    pub(super) fn hear(&self, headers: &HeaderMap) {
        const SAYS: [HeaderName; 4] = [
            header::USER_AGENT,
            header::ACCEPT,
            HeaderName::from_static("originator"),
            HeaderName::from_static("version"),
        ];
        let said = SAYS.into_iter().filter_map(|name| {
            let value = headers.get(&name).filter(|value| value.len() <= 512)?.clone();
            Some((name, value))
        });
        *self.voice.lock() = said.collect();
    }

    /// Starts a job after a pause, unless the same one runs.
    pub(super) fn start(
        &self,
        proxy: &Arc<Proxy>,
        job: Job,
        pause: Duration,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        if !self.running.lock().insert(job.clone()) {
            return;
        }
        let running = Running { proxy: Arc::clone(proxy), job };
        let permits = Arc::clone(&self.permits);
        self.tasks.spawn_idle("surface", async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let permit = permits.acquire_owned().await;
            work.await;
            drop(permit);
            drop(running);
        });
    }

    /// Waits until none of these jobs runs, or until then.
    pub(super) async fn done(&self, jobs: &[Job], until: Instant) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            let none = {
                let running = self.running.lock();
                !jobs.iter().any(|job| running.contains(job))
            };
            if none || tokio::time::timeout_at(until, ended).await.is_err() {
                return;
            }
        }
    }

    fn head(&self, method: Method, path: &str) -> Option<request::Parts> {
        let uri = Uri::try_from(path).ok()?;
        let (mut parts, ()) =
            Request::builder().method(method).uri(uri).body(()).ok()?.into_parts();
        parts.headers = self.voice.lock().clone();
        Some(parts)
    }
}

/// Asks for a path below the backend with an account's credential.
pub(super) async fn get(
    proxy: &Arc<Proxy>,
    id: &AccountId,
    path: &str,
    also: Option<(HeaderName, http::HeaderValue)>,
) -> Option<(response::Parts, Bytes)> {
    let mut parts = proxy.surface.desk.head(Method::GET, path)?;
    parts.headers.extend(also);
    aux::ask(proxy, id, &parts, Bytes::new()).await
}

/// Sends a JSON document to a path below the backend with an account's credential.
pub(super) async fn post(
    proxy: &Arc<Proxy>,
    id: &AccountId,
    path: &str,
    body: &serde_json::Value,
) -> Option<(response::Parts, Bytes)> {
    let mut parts = proxy.surface.desk.head(Method::POST, path)?;
    let kind = http::HeaderValue::from_static("application/json");
    parts.headers.insert(header::CONTENT_TYPE, kind);
    aux::ask(proxy, id, &parts, Bytes::from(body.to_string())).await
}
