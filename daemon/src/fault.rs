//! What went wrong, for whom, and what they should type next.
//!
//! A [`Fault`] is a refusal as clients see it ([`Refusal`]: code, message, hint) plus a detail that
//! only the log gets. Modules raise it where they know the reason; nobody guesses one later.

use cma_proto::error::{ErrorCode, Refusal};
use std::{io, path::Path};

/// A reportable failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", refusal.message)]
pub(crate) struct Fault {
    /// What may be shown to anybody who may ask.
    pub(crate) refusal: Refusal,
}

impl Fault {
    /// A fault with its next command (empty for none).
    pub(crate) fn new(
        code: ErrorCode,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { refusal: Refusal::new(code, message, hint) }
    }

    /// A file that could not be read or written.
    pub(crate) fn file(path: &Path, doing: &str, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "check its owner and mode",
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => "free some disk space, then try again",
            _ => "look at that path, then try again",
        };
        Self::new(ErrorCode::Store, format!("can't {doing} `{}`: {error}", path.display()), hint)
    }

    /// A fault of ours.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message, "run `cmactl logs` and report it")
    }

    /// Its code.
    pub(crate) const fn code(&self) -> ErrorCode {
        self.refusal.code
    }
}

/// The innermost cause of a connection that did not come about: the system's or TLS's own words.
pub(crate) fn deepest(error: &reqwest::Error) -> String {
    let mut cause = std::error::Error::source(error);
    let mut words = without_url(error).to_owned();
    while let Some(known) = cause {
        words = known.to_string();
        cause = known.source();
    }
    words
}

/// Whether a connection that did not come about won't by itself: a certificate that isn't trusted, a
/// proxy's refusal. The rest is the network's, which comes back.
pub(crate) fn is_barred(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidData | InvalidInput | PermissionDenied | Unsupported)
}

/// The same of a connection of reqwest's. A proxy's refusal has no kind of its own there (hyper-util 0.1).
pub(crate) fn is_barred_inside(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(known) = cause {
        if known.downcast_ref().is_some_and(is_barred)
            || known.to_string().contains("proxy authorization required")
        {
            return true;
        }
        cause = known.source();
    }
    false
}

/// What failed, without the URL (reqwest's own text carries it).
pub(crate) fn without_url(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_body() || error.is_decode() {
        "the answer was cut"
    } else {
        "the connection ended before an answer"
    }
}
