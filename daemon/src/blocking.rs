//! Work that waits for a disk, a key or another program: on threads for such work, off the event loop.
//!
//! What is spawned is boxed: tokio's part of a task is then compiled once and not once for each of some
//! eighty pieces of work. None of them is on a request's straight way.

use crate::{fault::Fault, roster::Roster};
use parking_lot::Mutex;
use std::sync::Arc;

/// The work ended in a panic: it is logged, and what the work was to bring is not there.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Does the work on another thread; it goes on when nobody waits for it any more.
///
/// # Errors
/// When it panicked.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panicked> {
    let done = Arc::new(Mutex::new(None));
    let to = Arc::clone(&done);
    let work: Box<dyn FnOnce() + Send> = Box::new(move || *to.lock() = Some(work()));
    let ended = tokio::task::spawn_blocking(work).await;
    let done = done.lock().take();
    ended.ok().and(done).ok_or(Panicked)
}

/// The same for work on the truth, in which a panic is a fault like others.
///
/// # Errors
/// What the work says, or that it panicked.
pub(crate) async fn disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    run(work).await.unwrap_or_else(|Panicked| Err(Fault::internal("a disk task panicked")))
}

/// The same with the accounts at hand.
///
/// # Errors
/// What the work says, or that it panicked.
pub(crate) async fn with<T: Send + 'static>(
    roster: &Arc<Roster>,
    work: impl FnOnce(&Roster) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let roster = Arc::clone(roster);
    disk(move || work(&roster)).await
}
