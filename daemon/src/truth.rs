//! Who may write what can't be lost: one process at a time, also while one takes over from another.
//!
//! Whoever changes the root's truth or sends a refresh token holds a permit meanwhile. A hand-over
//! waits until all are back and gives out no more; then the root belongs to the next daemon or, when
//! nothing came of it, the permits are given out again. Without a permit nothing is written: a store
//! whose root was given away refuses as well, should anybody forget to ask.
//!
//! Lock order: renewing, then changing.

use crate::fault::Fault;
use cma_proto::{endpoint::Root, error::ErrorCode};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
#[cfg(unix)]
use tokio::sync::RwLockWriteGuard;
use tokio::sync::{RwLock, RwLockReadGuard};

/// Whether the root is somebody else's, as everything that writes sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given(Arc<AtomicBool>);

impl Given {
    pub(crate) fn is(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    #[cfg(unix)]
    pub(crate) fn set(&self, given: bool) {
        self.0.store(given, Ordering::Release);
    }

    /// # Errors
    /// [`ErrorCode::Draining`] when another daemon writes here.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if !self.is() {
            return Ok(());
        }
        Err(Fault::new(
            ErrorCode::Draining,
            "another daemon has taken over from this one",
            "run the command again",
        ))
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) root: Root,
    given: Given,
    renewing: RwLock<()>,
    changing: RwLock<()>,
}

/// A right to write, for as long as it lives.
pub(crate) type Permit<'a> = RwLockReadGuard<'a, ()>;

/// Nobody writes while it lives.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) struct Still<'a> {
    _renewing: RwLockWriteGuard<'a, ()>,
    _changing: RwLockWriteGuard<'a, ()>,
}

impl Truth {
    pub(crate) fn new(root: Root, given: Given) -> Self {
        Self { root, given, renewing: RwLock::new(()), changing: RwLock::new(()) }
    }

    /// Whether another daemon has the root.
    pub(crate) const fn given(&self) -> &Given {
        &self.given
    }

    /// For a conversation with the issuer that spends something. `None` when the root was given
    /// away; waits while that is undecided.
    pub(crate) async fn to_renew(&self) -> Option<Permit<'_>> {
        let permit = self.renewing.read().await;
        (!self.given.is()).then_some(permit)
    }

    /// For a change of the root that takes moments.
    pub(crate) async fn to_change(&self) -> Option<Permit<'_>> {
        let permit = self.changing.read().await;
        (!self.given.is()).then_some(permit)
    }

    /// Waits until nobody writes. Renewals under way end first, while changes go on.
    ///
    /// Cancellation-safe.
    #[cfg(unix)]
    pub(crate) async fn hold_still(&self) -> Still<'_> {
        let renewing = self.renewing.write().await;
        Still { _renewing: renewing, _changing: self.changing.write().await }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{path::Path, time::Duration};

    async fn in_time<T>(what: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(Duration::from_secs(1), what).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_while_it_is_undecided_nor_after_it_was_given() {
        let truth = Truth::new(Root::at(Path::new("/nowhere")), Given::default());
        let permit = truth.to_renew().await.unwrap();
        assert!(in_time(truth.hold_still()).await.is_none(), "a renewal is under way");
        assert!(
            in_time(truth.to_change()).await.flatten().is_some(),
            "a person isn't kept waiting"
        );
        drop(permit);
        let still = truth.hold_still().await;
        assert!(in_time(truth.to_renew()).await.is_none());
        assert!(in_time(truth.to_change()).await.is_none());
        drop(still);
        assert!(truth.to_renew().await.is_some() && truth.given().check().is_ok());
        let still = truth.hold_still().await;
        truth.given().set(true);
        drop(still);
        assert!(truth.to_renew().await.is_none() && truth.to_change().await.is_none());
        assert_eq!(truth.given().check().unwrap_err().code(), ErrorCode::Draining);
    }
}
