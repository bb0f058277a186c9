//! The closed set of errors, each with the exit code a program ends with.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $exit:literal, $text:literal;)*) => {
        /// Why something did not happen. The same set on the wire, in exit codes and in `--json`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// Every code, in order of its exit code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The exit code of a program that ends with this error.
            pub const fn exit_code(self) -> u8 {
                match self { $(Self::$name => $exit),* }
            }

            /// The code's name on the wire and in `--json`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

codes! {
    /// A check that answered "no".
    Negative = 1, "negative";
    /// The request itself makes no sense.
    BadRequest = 2, "bad_request";
    /// A file or environment variable is invalid.
    Config = 3, "config";
    /// The daemon is not running and could not be started (client side only).
    Unreachable = 4, "unreachable";
    /// No common protocol version.
    Incompatible = 5, "incompatible";
    /// Another user, or a wrong key.
    Denied = 6, "denied";
    /// Nothing of that name.
    NotFound = 7, "not_found";
    /// Several of that name.
    Ambiguous = 7, "ambiguous";
    /// The account's credential is gone.
    NeedsLogin = 8, "needs_login";
    /// Every account is cooling or spent.
    Exhausted = 9, "exhausted";
    /// The upstream or the way there failed.
    Upstream = 10, "upstream";
    /// The daemon is going down.
    Draining = 11, "draining";
    /// Over a limit.
    TooLarge = 12, "too_large";
    /// The disk: full, forbidden, or its content damaged.
    Store = 13, "store";
    /// Our bug.
    Internal = 70, "internal";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal: what happened, why, and what to type next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which of the closed set.
    pub code: ErrorCode,
    /// What happened and why, one sentence, safe to show.
    pub message: String,
    /// The next command to type, or empty.
    pub hint: String,
}

impl Refusal {
    /// A refusal with a hint (empty for none).
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_names_are_the_printed_names() {
        for &code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
    }
}
