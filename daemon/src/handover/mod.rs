//! One daemon takes over from another: the sockets and the lock move, no connection is refused.
//!
//! Two phases. The new one proves that it can start; only then does the old one stop accepting, let
//! go of the root and say so, and only when the new one has read the root and says "mine" is there no
//! way back. Until then the end of either of them leaves the other one in charge:
//!
//! ```text
//! new                      old
//!  Begin ───────────────►        (control socket)
//!        ◄─────────────── sockets, lock
//!  ready ───────────────►  renewals under way end, changes end, the cache is written,
//!                          nothing more is accepted: who connects waits in the kernel
//!        ◄─────────────── yours
//!  reads the root
//!  mine  ───────────────►  serves what runs, until it has ended; writes nothing
//!  accepts
//! ```
//!
//! The lock is one that belongs to the open file, so it moves with it and is never free in between.
//! What the old one still serves may need a newer token: it asks the new one, which renews and saves
//! as ever, and reads it from the root. So there is one sender of refresh tokens at any time.

#[cfg(unix)]
pub(crate) mod give;
#[cfg(unix)]
pub(crate) mod take;

mod ask;
mod before;
pub(crate) mod doors;

pub(crate) use ask::{for_newer, serve};
pub(crate) use before::Before;
pub(crate) use doors::Doors;

/// The words of the private socket, one a line.
#[cfg(unix)]
mod word {
    /// New to old: the configuration is fine, go on.
    pub(super) const READY: &str = "ready";
    /// Old to new: the root is yours.
    pub(super) const YOURS: &str = "yours";
    /// New to old: it is mine, there is no way back.
    pub(super) const MINE: &str = "mine";
    /// Old to new: not now, it was asked to stop; the new one ends.
    pub(super) const NO: &str = "no";
    /// New to old, any time later: don't wait for what runs.
    pub(super) const CUT: &str = "cut";
}
