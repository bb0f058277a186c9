//! What a test's thread did to the disk, in order.

use std::{cell::RefCell, path::PathBuf};

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    MakeFolder(PathBuf),
    SyncFolder(PathBuf),
}

thread_local! {
    static TAPE: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
}

/// Puts a call on the tape.
pub(crate) fn push(call: Call) {
    TAPE.with_borrow_mut(|tape| tape.push(call));
}

/// Takes what is on the tape so far.
pub(crate) fn take() -> Vec<Call> {
    TAPE.take()
}

/// Puts a call on the tape, by its name.
macro_rules! put {
    ($call:ident($($of:expr),*)) => {
        tape::push(tape::Call::$call($($of),*))
    };
}
pub(crate) use put;
