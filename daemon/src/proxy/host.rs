//! The host's own health: one [`Outage`] for the backend, shared by all requests.
//!
//! While it is well, a request pays one read of a flag. What a failure means is the core's; here are
//! the clock, the chance and the line in `status`.

use crate::trouble::{Place, Troubles};
use cma_core::{
    identity::AccountId,
    outage::{Outage, Refusal},
    time::{Mono, Span},
};
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Host {
    begun: Instant,
    troubled: AtomicBool,
    outage: Mutex<Outage>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            troubled: AtomicBool::new(false),
            outage: Mutex::new(Outage::default()),
        }
    }

    fn now(&self) -> Mono {
        let ms = self.begun.elapsed().as_millis();
        Mono::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// What is left of a pause for everybody; a little more for each by chance.
    pub(crate) fn waits(&self) -> Option<Duration> {
        if !self.troubled.load(Ordering::Acquire) {
            return None;
        }
        let left = self.outage.lock().waits(self.now())?;
        Some(Duration::from_millis(left.millis() + fastrand::u64(1..=100)))
    }

    /// A failure of the host's met an account.
    pub(crate) fn failed(&self, account: &AccountId, reason: &str, troubles: &Troubles) {
        let pause = {
            let mut outage = self.outage.lock();
            let pause = outage.failure(self.now(), account, fastrand::f64());
            self.troubled.store(true, Ordering::Release);
            pause
        };
        say(pause, reason, troubles);
    }

    /// An account's token was refused; `fresh` when it had been renewed for that.
    pub(crate) fn refused(&self, account: &AccountId, fresh: bool, troubles: &Troubles) -> Refusal {
        let (refusal, pause) = {
            let mut outage = self.outage.lock();
            let said = outage.refusal(self.now(), account, fresh, fastrand::f64());
            self.troubled.store(true, Ordering::Release);
            said
        };
        say(pause, "it refuses the tokens of several accounts (401)", troubles);
        refusal
    }

    /// An account was served. Returns those that are to blame for refusals before.
    pub(crate) fn served(&self, account: &AccountId) -> Vec<AccountId> {
        if !self.troubled.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut outage = self.outage.lock();
        let blamed = outage.success(self.now(), account);
        self.troubled.store(!outage.is_quiet(), Ordering::Release);
        blamed
    }

    /// An account's renewal failed: its refusal was its own affair.
    pub(crate) fn settled(&self, account: &AccountId) {
        self.outage.lock().settled(account);
    }

    /// Whether an account was suspected; it is to blame when nobody else can tell.
    pub(crate) fn blame(&self, account: &AccountId) -> bool {
        self.outage.lock().blame(account)
    }
}

fn say(pause: Option<Span>, reason: &str, troubles: &Troubles) {
    let Some(pause) = pause else { return };
    let ms = pause.millis();
    tracing::warn!(reason, pause_ms = ms, "the host fails for several accounts: pause");
    let seconds = ms.div_ceil(1000);
    let why = format!("{reason}, for several accounts in a row; new requests wait {seconds} s");
    troubles.met(Place::Backend, &why);
}
