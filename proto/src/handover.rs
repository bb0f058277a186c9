//! One daemon takes over from another of the same root, without a connection refused in between.
//!
//! The new one asks here; the sockets themselves and the root's lock cross on a private socket that
//! it listens on. No credential crosses: both read the same files, one after the other.

use serde::{Deserialize, Serialize};

/// What a daemon asks of the one before or after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverRequest {
    /// Give me the root. The asked daemon dials the socket and goes on there. Answer:
    /// [`HandoverReply::Begun`].
    Begin {
        /// Absolute path of the asking daemon's own socket.
        socket: String,
        /// Cut running responses once the root is given, instead of letting them end.
        now: bool,
    },
    /// A daemon that gave the root away needs a newer credential for a request it still serves. It
    /// reads it from the root afterwards. Answer: [`HandoverReply::Renewed`] or
    /// [`HandoverReply::NotRenewed`].
    Renew {
        /// Account id.
        account: String,
        /// The generation that doesn't do any more.
        generation: u64,
    },
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverReply {
    /// The socket is being dialled.
    Begun {
        /// Process id of the daemon that gives.
        pid: u32,
        /// Its root is sealed and nobody has opened it.
        locked: bool,
    },
    /// A newer credential stands in the root.
    Renewed {
        /// Its generation.
        generation: u64,
    },
    /// There is none.
    NotRenewed {
        /// The login is gone, rather than out of reach for now.
        gone: bool,
        /// Why, for a person.
        why: String,
    },
}
