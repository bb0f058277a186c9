//! Payloads after the hello: bincode, or JSON when a client asks for it.
//!
//! The only file that knows bincode. Three rules keep an unmaintained, positional format harmless
//! (RUSTSEC-2025-0141): it never carries the hello, it is never written to disk, and a changed
//! message is a new protocol version. `wincode` reads the same bytes if it ever has to go.

use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// How payloads are written on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// bincode 2, standard configuration.
    #[default]
    Bincode,
    /// JSON, for other languages and for people with `socat`.
    Json,
}

/// A payload that could not be written or read.
#[derive(Debug)]
pub struct CodecError(String);

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}

impl Codec {
    /// The codec's name in a hello.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bincode => "bincode",
            Self::Json => "json",
        }
    }

    /// The codec a hello names, if it is one of ours.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Bincode, Self::Json].into_iter().find(|codec| codec.name() == name)
    }

    /// Writes a message.
    ///
    /// # Errors
    /// [`CodecError`] when the value can't be represented, which is a bug in `message`.
    pub fn encode<T: Serialize>(self, value: &T) -> Result<Vec<u8>, CodecError> {
        match self {
            Self::Bincode => bincode::serde::encode_to_vec(value, bincode::config::standard())
                .map_err(|error| CodecError(error.to_string())),
            Self::Json => serde_json::to_vec(value).map_err(|error| CodecError(error.to_string())),
        }
    }

    /// Reads a message. Trailing bytes are an error: they mean the two sides disagree.
    ///
    /// # Errors
    /// [`CodecError`] on anything that is not exactly one value of `T`. Never allocates more than
    /// a small multiple of the input.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, CodecError> {
        match self {
            Self::Bincode => {
                let config =
                    bincode::config::standard().with_limit::<{ crate::frame::MAX_REPLY }>();
                let (value, used) = bincode::serde::decode_from_slice(bytes, config)
                    .map_err(|error| CodecError(error.to_string()))?;
                if used == bytes.len() {
                    Ok(value)
                } else {
                    Err(CodecError(format!("{} bytes left over", bytes.len() - used)))
                }
            },
            Self::Json => {
                serde_json::from_slice(bytes).map_err(|error| CodecError(error.to_string()))
            },
        }
    }
}
