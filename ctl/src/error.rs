//! How a command fails: a refusal on stderr, three parts, and its exit code.
//!
//! Everything that can go wrong is a [`Refusal`], the daemon's or our own, but for stdout itself: a
//! reader that went away (`cmactl status | head -1`) has all it wanted, so that is success.

use crate::render::Screen;
use cma_proto::error::{ErrorCode, Refusal};
use std::{fmt, io, path::Path, process::ExitCode};

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// With a code, a reason and a next command.
    Refused(Refusal),
    /// stdout or stderr could not be written.
    Output(io::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Shows a failure and returns the code to end with.
pub(crate) fn report(failure: &Failure, screen: &mut Screen) -> ExitCode {
    let refusal = match failure {
        Failure::Refused(refusal) => refusal,
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::SUCCESS;
        },
        Failure::Output(error) => &Refusal::new(
            ErrorCode::Store,
            format!("the output could not be written: {error}"),
            "check where stdout goes",
        ),
    };
    // Where stderr is closed too, the exit code alone has to do.
    drop(screen.refusal(refusal));
    ExitCode::from(refusal.code.exit_code())
}

/// A file that could not be used.
pub(crate) fn file(path: &Path, error: &io::Error, hint: &str) -> Refusal {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Store,
    };
    Refusal::new(code, format!("`{}` can't be used: {error}", path.display()), hint)
}

/// An answer of another kind than the request asks for.
pub(crate) fn unexpected(what: impl fmt::Debug) -> Refusal {
    // The variant's name only: an answer may carry a client key.
    let shown: String = format!("{what:?}").chars().take_while(char::is_ascii_alphabetic).collect();
    Refusal::new(
        ErrorCode::Internal,
        format!("the daemon answered with `{shown}`, which is no answer to this request"),
        "run `cmactl version` and report it",
    )
}

#[cfg(test)]
mod tests;
