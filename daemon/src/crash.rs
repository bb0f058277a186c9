//! Named moments at which a test ends this process, as a power button would: SIGKILL, no clean-up.
//!
//! Every build has them, so that what is tested is what is shipped. They do nothing unless
//! `CMA_CRASH_AT` names one (`NAME` or `NAME:N` for its N-th time) and both upstreams are simulated
//! ones, that is plain http on loopback: no environment file can end a daemon that serves a person.
//! [`all`] is the one list. `cmad crash-points` prints it, and `tests/it/crash_matrix.rs` fails when
//! it can't reach one of them.

use crate::{config::Config, fault::Fault};
use cma_proto::error::ErrorCode;
use std::{
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// The variable that names a point.
const VARIABLE: &str = "CMA_CRASH_AT";
/// From the beginning of a request to the issuer until [`posted`] ends the process: the request has
/// left by then (loopback takes less than a millisecond), and a test delays the answer longer.
const POSTED_AFTER: Duration = Duration::from_millis(30);

/// Which of the root's files a step belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `accounts/<id>.json`.
    Account,
    /// `accounts/<id>.previous.json`.
    Previous,
    /// `accounts/<id>.renewal.json`.
    Note,
    /// `state.json`.
    State,
    /// `root.key`.
    Secret,
    /// A login in `removed/`.
    Removed,
    /// Any other.
    Other,
}

impl Kind {
    /// By the file's path.
    pub(crate) fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
        if folder == "removed" {
            Self::Removed
        } else if folder == "accounts" {
            match name.split_once('.') {
                Some((_id, "json")) => Self::Account,
                Some((_id, "previous.json")) => Self::Previous,
                Some((_id, "renewal.json")) => Self::Note,
                _ => Self::Other,
            }
        } else {
            match &*name {
                "state.json" => Self::State,
                "root.key" => Self::Secret,
                _ => Self::Other,
            }
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Previous => "previous",
            Self::Note => "note",
            Self::State => "state",
            Self::Secret => "secret",
            Self::Removed => "removed",
            Self::Other => "other",
        }
    }

    /// The steps that a file of this kind goes through.
    const fn steps(self) -> &'static [Step] {
        use Step::{
            Created, FolderSynced, Linked, Renamed, Synced, UnlinkSynced, Unlinked, Written,
        };
        match self {
            Self::Account | Self::Note => {
                &[Created, Written, Synced, Renamed, FolderSynced, Unlinked, UnlinkSynced]
            },
            Self::Previous => &[Linked, Unlinked, UnlinkSynced],
            Self::State | Self::Secret | Self::Other => {
                &[Created, Written, Synced, Renamed, FolderSynced]
            },
            Self::Removed => &[Linked, FolderSynced],
        }
    }
}

/// What was just done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The temporary file is there, empty.
    Created,
    /// It has its content.
    Written,
    /// Its content is durable.
    Synced,
    /// It has its name.
    Renamed,
    /// It has a second name.
    Linked,
    /// Its name is durable.
    FolderSynced,
    /// Its name is gone.
    Unlinked,
    /// That is durable.
    UnlinkSynced,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Written => "written",
            Self::Synced => "synced",
            Self::Renamed => "renamed",
            Self::Linked => "linked",
            Self::FolderSynced => "folder_synced",
            Self::Unlinked => "unlinked",
            Self::UnlinkSynced => "unlink_synced",
        }
    }
}

/// The moments that are no file's.
macro_rules! moments {
    ($($(#[$doc:meta])* $moment:ident = $name:literal,)*) => {
        /// A moment between two steps of what the daemon does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Moment { $($(#[$doc])* $moment,)* }

        impl Moment {
            const ALL: &[Self] = &[$(Self::$moment,)*];

            const fn name(self) -> &'static str {
                match self { $(Self::$moment => $name,)* }
            }
        }
    };
}

moments! {
    /// A renewal begins; nothing is written.
    RenewalBegun = "renewal.begun",
    /// Its note is durable, the request has not left.
    RenewalBeforePost = "renewal.before_post",
    /// The request has left, no answer is there.
    RenewalPosted = "renewal.posted",
    /// The answer is in memory.
    RenewalAnswered = "renewal.answered",
    /// It was checked and is about to be saved.
    RenewalBeforeSave = "renewal.before_save",
    /// It is durable, the note still says that it isn't.
    RenewalSaved = "renewal.saved",
    /// It is durable and settled; the pool has not been told.
    RenewalSettled = "renewal.settled",
    /// An account's change is durable and not yet in memory.
    BeforeAdoption = "account.before_adoption",
    /// A login was read from its file.
    ImportRead = "import.read",
    /// An import is durable, in memory, and its caller doesn't know.
    ImportDone = "import.done",
    /// An account is about to leave.
    RemoveBegun = "remove.begun",
    /// Its login waits in `removed/`; memory still has it.
    RemoveMoved = "remove.moved",
    /// A pin's change is durable and not yet in memory.
    PinSaved = "pin.saved",
    /// A change by the person (label, enabled) is durable, and its caller doesn't know.
    EditDone = "edit.done",
    /// Another daemon has asked for the root.
    HandoverAsked = "handover.asked",
    /// It was sent sockets and lock; this one still serves.
    HandoverSent = "handover.sent",
    /// Nobody writes any more; it was not told yet.
    HandoverStill = "handover.still",
    /// It was told that the root is its own, and has not said that it knows.
    HandoverGiven = "handover.given",
    /// It has the root.
    HandoverDone = "handover.done",
    /// The taking one has sockets and lock.
    HandoverTaken = "handover.taken",
    /// It was told that the root is its own, and has read nothing.
    HandoverOwned = "handover.owned",
    /// It has read the root and has not said that it is its own.
    HandoverBuilt = "handover.built",
    /// It has said so and serves nobody yet.
    HandoverSaid = "handover.said",
}

/// A moment at which the process can be told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// A step of one of the root's files.
    File(Kind, Step),
    /// Anything else.
    Moment(Moment),
}

impl Point {
    fn name(self) -> String {
        match self {
            Self::File(kind, step) => format!("{}.{}", kind.name(), step.name()),
            Self::Moment(moment) => moment.name().to_owned(),
        }
    }
}

fn points() -> impl Iterator<Item = Point> {
    use Kind::{Account, Note, Other, Previous, Removed, Secret, State};
    let kinds = [Account, Previous, Note, State, Secret, Removed, Other];
    let files = kinds
        .into_iter()
        .flat_map(|kind| kind.steps().iter().map(move |step| Point::File(kind, *step)));
    files.chain(Moment::ALL.iter().map(|moment| Point::Moment(*moment)))
}

/// The names of all points.
pub(crate) fn all() -> Vec<String> {
    points().map(Point::name).collect()
}

#[derive(Debug)]
struct Armed {
    point: Point,
    /// How often it is still passed.
    left: AtomicU32,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Reads the variable. Without it, and with upstreams that are not simulated, no point does
/// anything.
///
/// # Errors
/// [`ErrorCode::Config`] for a name that no point has.
pub(crate) fn arm(config: &Config) -> Result<(), Fault> {
    let Some(wanted) = std::env::var(VARIABLE).ok().filter(|wanted| !wanted.is_empty()) else {
        return Ok(());
    };
    if !config.is_simulated() {
        tracing::warn!(variable = VARIABLE, "ignored: it counts with simulated upstreams only");
        return Ok(());
    }
    let (name, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let point = points().find(|point| point.name() == name);
    match (point, times.parse::<u32>()) {
        (Some(point), Ok(times)) if times > 0 => {
            let armed = Armed { point, left: AtomicU32::new(times) };
            // An error means that it was armed before: the first one counts.
            drop(ARMED.set(armed));
            Ok(())
        },
        _ => Err(Fault::new(
            ErrorCode::Config,
            format!("`{VARIABLE}` names no point: `{wanted}`"),
            "run `cmad crash-points` to see them",
        )),
    }
}

/// Passes a step of a file.
pub(crate) fn step(kind: Kind, step: Step) {
    at(Point::File(kind, step));
}

/// Passes a moment.
pub(crate) fn moment(moment: Moment) {
    at(Point::Moment(moment));
}

/// Ends the process some milliseconds after it was first polled, if it was told to; else never
/// resolves. Raced with a request, it is the time at which the request has left.
pub(crate) async fn posted() -> std::convert::Infallible {
    if ARMED.get().is_some() {
        tokio::time::sleep(POSTED_AFTER).await;
        moment(Moment::RenewalPosted);
    }
    std::future::pending().await
}

fn at(point: Point) {
    if let Some(armed) = ARMED.get()
        && armed.point == point
        && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        end();
    }
}

#[cfg(unix)]
fn end() {
    let own = rustix::process::getpid();
    // It can't fail for the own process, and nothing runs after it.
    let _unreached = rustix::process::kill_process(own, rustix::process::Signal::KILL);
}

#[cfg(windows)]
fn end() {
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_files_are_known_by_their_path() {
        let all = all();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(all.contains(&"note.folder_synced".to_owned()) && all.len() > 40, "{all:?}");
        for (path, kind) in [
            ("r/accounts/a.json", Kind::Account),
            ("r/accounts/a.previous.json", Kind::Previous),
            ("r/accounts/a.renewal.json", Kind::Note),
            ("r/removed/a-1.json", Kind::Removed),
            ("r/state.json", Kind::State),
            ("r/root.key", Kind::Secret),
            ("r/else.json", Kind::Other),
        ] {
            assert_eq!(Kind::of(Path::new(path)), kind, "{path}");
        }
    }
}
