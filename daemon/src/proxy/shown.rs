//! What a client may see of a choice (`x-cma-…` headers, where it asks or its person wants them), and
//! what the pool learns of a thread's cache when an answer ends.

use super::{Proxy, headers::Told, trace::Trace};
use crate::actor::Lease;
use cma_core::identity::AccountId;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

const ACCOUNT: HeaderName = HeaderName::from_static("x-cma-account");
const OVERHEAD: HeaderName = HeaderName::from_static("x-cma-overhead-us");
const TRACE: HeaderName = HeaderName::from_static("x-cma-trace");

/// How much of a request's time was upstream's, where the client wants to know.
#[derive(Debug, Default)]
pub(super) struct Overhead {
    wanted: bool,
    /// In microseconds.
    upstream: AtomicU64,
}

impl Overhead {
    /// Whether a request is to be told: any value but `0` asks for it.
    pub(super) fn asked(proxy: &Proxy, told: &Told<'_>) -> Self {
        let asked = told.explain.is_some_and(|value| value != "0");
        Self { wanted: asked || proxy.choosing.headers(), upstream: AtomicU64::new(0) }
    }

    /// Waits for upstream, whose time that is.
    pub(super) async fn upstream<T>(&self, answer: impl Future<Output = T>) -> T {
        if !self.wanted {
            return answer.await;
        }
        let begun = Instant::now();
        let answered = answer.await;
        self.upstream.fetch_add(micros(begun), Ordering::Relaxed);
        answered
    }

    /// Puts the headers into an answer that is delivered now.
    pub(super) fn tell(&self, headers: &mut HeaderMap, trace: &Trace, account: &AccountId) {
        if !self.wanted {
            return;
        }
        let ours = micros(trace.started).saturating_sub(self.upstream.load(Ordering::Relaxed));
        let values = [
            (ACCOUNT, account.to_string()),
            (OVERHEAD, ours.to_string()),
            (TRACE, trace.id.to_string()),
        ];
        for (name, value) in values {
            // Hex digits and numbers: always fit for a header.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Tells the pool how much of a thread is cached where its answer came from.
pub(super) fn warmed(lease: &mut Lease, trace: &Trace) {
    if let (Some(thread), Some(usage)) = (&trace.thread, trace.usage) {
        let tokens = usage.input.saturating_add(usage.output);
        lease.warm(thread.clone(), u32::try_from(tokens).unwrap_or(u32::MAX));
    }
}
