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

/// The same of what TLS says: what isn't a certificate's trust may be something on the way that answers
/// for the host, or the host's own trouble.
pub(crate) fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
}

/// The same of a connection of reqwest's. A proxy's refusal has no kind of its own there (hyper-util 0.1).
pub(crate) fn is_barred_inside(error: &(dyn std::error::Error + 'static)) -> bool {
    let Some(known) = error.downcast_ref::<io::Error>() else {
        let says = |words| error.to_string().contains(words);
        return is_distrust(error)
            || says("proxy authorization required")
            || error.source().is_some_and(is_barred_inside);
    };
    // One that carries another tells of that one's causes, and not of itself.
    match known.get_ref() {
        Some(inner) => {
            is_barred_inside(inner)
                || (known.kind() != io::ErrorKind::InvalidData && is_barred(known))
        },
        // The kernel's words for a route that is closed: a VPN opens it again.
        None => known.raw_os_error().is_none() && is_barred(known),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bars_a_connection_is_found_wherever_it_is_wrapped() {
        let wrapped = |error: rustls::Error| {
            // As hyper-rustls 0.27 has it.
            io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let barred = |error: io::Error| is_barred_inside(&error);
        let unknown = rustls::CertificateError::UnknownIssuer;
        assert!(barred(wrapped(rustls::Error::InvalidCertificate(unknown))));
        // A 403 of a proxy's or a 503: hyper-util doesn't tell.
        assert!(!barred(io::Error::other("tunnel error: unsuccessful")));
        assert!(barred(io::Error::other("tunnel error: proxy authorization required")));
        assert!(barred(io::Error::new(io::ErrorKind::PermissionDenied, "the proxy says no")));
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::InternalError);
        assert!(!barred(wrapped(alert)), "the host's own trouble");
        assert!(!barred(io::Error::from_raw_os_error(13)), "a route that a VPN opens again");
        assert!(!barred(io::ErrorKind::ConnectionRefused.into()));
    }
}
