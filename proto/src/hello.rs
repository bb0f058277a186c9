//! The frozen first message, both ways, and the choice it leads to.
//!
//! Always JSON, unknown fields ignored, at most [`crate::frame::MAX_HELLO`] bytes, within
//! [`DEADLINE`]. Its meaning never changes: it is how two programs of different age find out that
//! they are.

use crate::{PROTOCOL, PROTOCOL_MIN, VERSION, codec::Codec, error::ErrorCode};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long either side waits for the other's hello.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// Oldest protocol version the client speaks.
    pub min: u32,
    /// Newest protocol version the client speaks.
    pub max: u32,
    /// Which program is calling, for the log: `cmactl`, `codex`, …
    pub program: String,
    /// Its version, for the log and for drift warnings.
    pub version: String,
    /// Codecs it can use, best first. Empty means bincode.
    #[serde(default)]
    pub codecs: Vec<String>,
    /// Optional abilities it would like to use.
    #[serde(default)]
    pub features: Vec<String>,
}

impl ClientHello {
    /// The hello of a program built from this crate.
    pub fn new(program: &str, codec: Codec) -> Self {
        Self {
            min: PROTOCOL_MIN,
            max: PROTOCOL,
            program: program.to_owned(),
            version: VERSION.to_owned(),
            codecs: vec![codec.name().to_owned()],
            features: Vec::new(),
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "hello", rename_all = "snake_case")]
pub enum ServerHello {
    /// The conversation may begin.
    Welcome {
        /// Protocol version chosen: the newest both speak.
        protocol: u32,
        /// Codec chosen.
        codec: String,
        /// The daemon's program version.
        version: String,
        /// Changes at every start of the daemon.
        instance: String,
        /// Canonical root the daemon owns; a client that meant another one hangs up.
        root: String,
        /// Daemon's process id, for messages only.
        pid: u32,
        /// Abilities granted.
        #[serde(default)]
        features: Vec<String>,
    },
    /// It may not.
    Refused {
        /// Why, as a code.
        code: ErrorCode,
        /// Why, for a person.
        message: String,
        /// What to type next.
        hint: String,
        /// Oldest protocol version the daemon speaks.
        min: u32,
        /// Newest protocol version the daemon speaks.
        max: u32,
    },
}

/// The version and codec both sides can use, or the refusal to send.
///
/// # Errors
/// A [`ServerHello::Refused`] with [`ErrorCode::Incompatible`] when the ranges don't meet or no
/// codec is shared; it names who has to be upgraded.
pub fn negotiate(client: &ClientHello) -> Result<(u32, Codec), Box<ServerHello>> {
    let refuse = |message: String, hint: &str| {
        Box::new(ServerHello::Refused {
            code: ErrorCode::Incompatible,
            message,
            hint: hint.to_owned(),
            min: PROTOCOL_MIN,
            max: PROTOCOL,
        })
    };
    if client.min > PROTOCOL {
        return Err(refuse(
            format!(
                "`{}` {} speaks protocol {} or newer, the running daemon {VERSION} at most {PROTOCOL}",
                client.program, client.version, client.min
            ),
            "run `cmactl daemon restart` so that the newer daemon takes over",
        ));
    }
    if client.max < PROTOCOL_MIN {
        return Err(refuse(
            format!(
                "`{}` {} speaks protocol {} at most, the running daemon {VERSION} needs {PROTOCOL_MIN}",
                client.program, client.version, client.max
            ),
            "upgrade the client to the daemon's version",
        ));
    }
    let codec = if client.codecs.is_empty() {
        Some(Codec::Bincode)
    } else {
        client.codecs.iter().find_map(|name| Codec::from_name(name))
    };
    let codec = codec.ok_or_else(|| {
        refuse(
            format!("no common codec: the client offers {}", client.codecs.join(", ")),
            "offer `bincode` or `json`",
        )
    })?;
    Ok((client.max.min(PROTOCOL), codec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(min: u32, max: u32, codecs: &[&str]) -> ClientHello {
        ClientHello {
            min,
            max,
            codecs: codecs.iter().map(|&c| c.to_owned()).collect(),
            ..ClientHello::new("test", Codec::Bincode)
        }
    }

    #[test]
    fn newest_common_version_wins_and_unknown_codecs_are_skipped() {
        assert_eq!(negotiate(&hello(1, 99, &["msgpack", "json"])).unwrap(), (1, Codec::Json));
        assert_eq!(negotiate(&hello(1, 1, &[])).unwrap(), (1, Codec::Bincode));
    }

    #[test]
    fn a_protocol_from_the_future_is_refused_with_both_ranges() {
        let refused = negotiate(&hello(7, 9, &[])).unwrap_err();
        let ServerHello::Refused { code, min, max, hint, .. } = *refused else { panic!() };
        assert_eq!((code, min, max), (ErrorCode::Incompatible, PROTOCOL_MIN, PROTOCOL));
        assert!(hint.contains("cmactl daemon restart"));
        assert!(negotiate(&hello(0, 0, &[])).is_err());
        assert!(negotiate(&hello(1, 1, &["msgpack"])).is_err());
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let read: ClientHello =
            serde_json::from_str(r#"{"min":1,"max":3,"program":"x","version":"9","colour":"red"}"#)
                .unwrap();
        assert_eq!(read.max, 3);
    }
}
