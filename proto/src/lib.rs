//! What `cmad` and its clients say to each other, and how.
//!
//! A conversation runs over a Unix socket or a Windows named pipe ([`endpoint`]). It opens with one
//! [`hello`] each way: JSON, frozen for ever, never preceded by anything. The daemon picks a
//! protocol version and a [`codec`]; from then on both sides exchange [`frame`]s whose payloads are
//! the types in [`message`].
//!
//! Promises:
//! - The hello never changes meaning; unknown fields are ignored on both sides.
//! - Inside one protocol version a message never changes. bincode is positional, so *any* change to
//!   [`message`] is a new [`PROTOCOL`] number, and a tidy test compares the file with the digest in
//!   `docs/protocol.md`.
//! - No message carries a credential. The secrets that cross are the client key inside
//!   [`message::LaunchPlan`], made for exactly the process that asked, a passphrase
//!   ([`survive::Secret`]), and in own-auth mode the secret in the path of the renewal endpoints.
//!
//! This crate knows nothing of the pool's rules (`cma-core`), of tokio, or of the terminal.

#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod choose;
#[cfg(feature = "client")]
pub mod client;
pub mod codec;
pub mod credits;
pub mod endpoint;
pub mod error;
pub mod frame;
pub mod handover;
pub mod hello;
pub mod login;
pub mod message;
pub mod owner;
pub mod pools;
pub mod sessions;
pub mod survive;
pub mod takeover;
pub mod usage;

/// The protocol version this crate speaks best.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol version this crate still speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Version of the program (not of the protocol): drift is a warning, never an error.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
