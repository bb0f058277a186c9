//! The pool as a pure machine.
//!
//! Everything that decides lives here: which account serves a request, how long one rests after a
//! refusal, when a token is renewed, what an upstream answer means. Nothing here does: no socket,
//! no file, no clock, no environment, no log. Time comes in as [`time::Now`], chance as a seed, the
//! world as [`pool::Input`]; what should happen comes out as [`pool::Effect`].
//!
//! Contract of [`pool::Pool`]: call `handle(now, input)`, then `poll_effect()` until it is empty,
//! and again at `next_wake()`. No method blocks, fails or panics; input that makes no sense becomes
//! an [`pool::Effect::Note`]. Spurious ticks are harmless. The same inputs give the same effects.
//!
//! No credential ever enters: the core knows that generation 7 expires at t, never the token. So
//! every value here may be printed, compared and attached to a bug report.
//!
//! This crate knows nothing of `cma-proto`; the daemon's `ipc::convert` is the only stair between.

#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod account;
pub mod affinity;
pub mod bound;
pub mod budget;
pub mod chunks;
pub mod cooldown;
pub mod event;
#[cfg(test)]
#[path = "../../../tests/fixtures/streams.rs"]
mod fixtures;
pub mod frame;
pub mod identity;
pub mod models;
pub mod outage;
pub mod pace;
pub mod plain;
pub mod pool;
pub mod project;
pub mod quota;
pub mod scope;
pub mod select;
pub mod simulate;
pub mod skim;
pub mod sniff;
pub mod sse;
pub mod strategy;
pub mod stream;
pub mod thread;
pub mod time;
pub mod token;
pub mod trail;
pub mod usage;
pub mod verdict;
pub mod warmth;
pub mod wrapped;
