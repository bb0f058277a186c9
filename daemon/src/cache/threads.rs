//! Where threads ran, over a restart: `cache/threads.json`.
//!
//! Disposable like all of the cache: without it the next request of a thread may meet a cold prompt
//! cache, or one refusal more. Read once before the first request, since that one already wants to
//! know; written some seconds after something changed and when the daemon goes down, never on a
//! request's way. A file that can't be read counts as none and is written anew.

use super::off_the_loop;
use crate::{
    app::{Phase, Phases},
    clock,
    fault::Fault,
    roster::Roster,
};
use cma_core::{
    bound::Mark,
    identity::AccountId,
    scope::Scope,
    thread::{CAPACITY, Move, Thread, Threads},
    time::{Span, Wall},
};
use cma_proto::endpoint::Root;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_secs(20);
/// Nobody looks for a thread that rests for longer than this.
const STALE: Span = Span::from_secs(7 * 24 * 3600);
/// As much as all threads could take; a larger file is not ours.
const MAX_FILE: u64 = 16 << 20;

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    threads: Vec<Kept>,
    /// Two workspaces, and since when they are known to refuse each other.
    refusals: Vec<(String, String, u64)>,
}

/// One thread. Times are seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: String,
    id: String,
    session: Option<String>,
    /// Its project, and whether the global pool steps in there.
    project: Option<(String, bool)>,
    account: Option<String>,
    workspace: Option<String>,
    model: Option<String>,
    requests: u64,
    first: u64,
    last: u64,
    input: u64,
    cached: u64,
    moves: Vec<KeptMove>,
    foreign: Option<u64>,
    lost: Option<u64>,
    unread: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptMove {
    at: u64,
    from: String,
    to: String,
    reason: String,
    dropped: String,
}

/// What was known before.
pub(crate) fn recall(root: &Root) -> Threads {
    let mut threads = Threads::default();
    let path = path(root);
    let read = fs::metadata(&path)
        .is_ok_and(|file| file.len() <= MAX_FILE)
        .then(|| fs::read(&path).ok())
        .flatten();
    let Some(bytes) = read else { return threads };
    match serde_json::from_slice::<File>(&bytes) {
        Ok(file) => {
            let now = clock::wall();
            let fresh = |kept: &Kept| now.since(Wall::from_secs(kept.last)) <= STALE;
            threads.recall(
                file.threads.into_iter().filter(fresh).take(CAPACITY).map(thread),
                file.refusals
                    .into_iter()
                    .map(|(a, b, since)| ((a.into(), b.into()), Wall::from_secs(since))),
            );
        },
        Err(error) => tracing::warn!(%error, "what was known of threads can't be read"),
    }
    threads
}

/// Keeps what is known, until the daemon flushes or another one has its root.
pub(crate) async fn keep(
    root: Root,
    threads: Arc<Mutex<Threads>>,
    phases: Phases,
    roster: Arc<Roster>,
) {
    let mut written = threads.lock().changes();
    loop {
        let stopping = tokio::select! {
            () = tokio::time::sleep(GATHER) => false,
            // Answers that run to their end while it drains are in it.
            () = phases.reached(Phase::Flushing) => true,
        };
        let changes = threads.lock().changes();
        if changes != written {
            let Some(_permit) = roster.truth().to_change().await else { return };
            write_now(&root, &threads).await;
            written = changes;
            let rests = threads.lock().all().all(|(_key, thread)| thread.live == 0);
            if rests && !stopping {
                super::give_back().await;
            }
        }
        if stopping {
            return;
        }
    }
}

/// Writes what is known. The caller may write.
pub(crate) async fn write_now(root: &Root, threads: &Mutex<Threads>) {
    let file = file(&threads.lock());
    let to = path(root);
    if let Err(fault) = off_the_loop(move || write(&to, &file)).await {
        tracing::warn!(%fault, "what is known of threads can't be kept");
    }
}

fn path(root: &Root) -> PathBuf {
    root.path().join("cache").join("threads.json")
}

/// Replaced whole, and not flushed to the disk: what a loss of power takes is disposable.
fn write(path: &Path, file: &File) -> Result<(), Fault> {
    let failed = |error: std::io::Error| Fault::file(path, "write", &error);
    let Some(folder) = path.parent() else { return Ok(()) };
    crate::dirs::private_dir(folder)?;
    let bytes = serde_json::to_vec(file).map_err(|error| Fault::internal(error.to_string()))?;
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    new.write_all(&bytes).map_err(failed)?;
    new.persist(path).map_err(|error| failed(error.error)).map(drop)
}

fn file(threads: &Threads) -> File {
    File {
        threads: threads.all().map(|(key, thread)| kept(key, thread)).collect(),
        refusals: threads
            .refusals()
            .map(|(a, b, since)| (a.to_string(), b.to_string(), since.secs()))
            .collect(),
    }
}

fn kept(key: &str, thread: &Thread) -> Kept {
    let text = |text: &Arc<str>| text.to_string();
    Kept {
        key: key.to_owned(),
        id: thread.id.to_string(),
        session: thread.session.as_ref().map(text),
        project: match &thread.scope {
            Scope::Global => None,
            Scope::Project { key, fallback } => Some((key.to_string(), *fallback)),
        },
        account: thread.account.as_ref().map(ToString::to_string),
        workspace: thread.workspace.as_ref().map(text),
        model: thread.model.as_ref().map(text),
        requests: thread.requests,
        first: thread.first.secs(),
        last: thread.last.secs(),
        input: thread.input,
        cached: thread.cached,
        moves: thread.moves.iter().map(kept_move).collect(),
        foreign: thread.foreign.map(|mark| mark.0),
        lost: thread.lost.map(|mark| mark.0),
        unread: thread.unread.iter().map(text).collect(),
    }
}

fn kept_move(moved: &Move) -> KeptMove {
    KeptMove {
        at: moved.at.secs(),
        from: moved.from.to_string(),
        to: moved.to.to_string(),
        reason: moved.reason.to_string(),
        dropped: moved.dropped.to_string(),
    }
}

fn thread(kept: Kept) -> (Arc<str>, Thread) {
    let moved = |moved: KeptMove| Move {
        at: Wall::from_secs(moved.at),
        from: AccountId::from_written(&moved.from),
        to: AccountId::from_written(&moved.to),
        reason: moved.reason.into(),
        dropped: moved.dropped.into(),
    };
    let thread = Thread {
        id: kept.id.into(),
        session: kept.session.map(Into::into),
        scope: kept
            .project
            .map_or(Scope::Global, |(key, fallback)| Scope::Project { key: key.into(), fallback }),
        account: kept.account.as_deref().map(AccountId::from_written),
        workspace: kept.workspace.map(Into::into),
        model: kept.model.map(Into::into),
        requests: kept.requests,
        first: Wall::from_secs(kept.first),
        last: Wall::from_secs(kept.last),
        input: kept.input,
        cached: kept.cached,
        moves: kept.moves.into_iter().map(moved).collect(),
        foreign: kept.foreign.map(Mark),
        lost: kept.lost.map(Mark),
        unread: kept.unread.into_iter().map(Into::into).collect(),
        ..Thread::default()
    };
    (kept.key.into(), thread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_core::{
        bound::Dropped,
        thread::{Begun, Host, Served},
    };

    fn known() -> Threads {
        let mut threads = Threads::default();
        let (id, model): (Arc<str>, Arc<str>) = ("t-1".into(), "m".into());
        let key: Arc<str> = "p-1/t-1".into();
        let scope = Scope::Project { key: "p-1".into(), fallback: true };
        let begun = Begun { id: &id, session: Some(&id), scope: &scope, model: Some(&model) };
        threads.begin(&key, &begun, clock::wall());
        for (account, foreign) in [("a", None), ("b", Some(Mark(u64::MAX)))] {
            let (account, workspace) = (AccountId::of(account, "w"), Arc::from(account));
            threads.refused(&key, &workspace, clock::wall());
            let served = Served {
                host: Host { account: &account, workspace: &workspace },
                turn: None,
                state: None,
                foreign,
                lost: Some(Mark(3)),
                reason: "usage limit reached".to_owned(),
                dropped: Dropped { reasoning: 2, ..Dropped::default() },
            };
            threads.served(&key, served, clock::wall());
        }
        threads.unread(&key, &"c".into());
        threads.used(&key, 100, 40);
        threads
    }

    #[test]
    fn what_was_written_is_read_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let before = known();
        write(&path(&root), &file(&before)).unwrap();
        let after = recall(&root);
        let (key, thread) = before.all().next().unwrap();
        let seconds = |wall: Wall| Wall::from_secs(wall.secs());
        let mut want = Thread {
            live: 0,
            first: seconds(thread.first),
            last: seconds(thread.last),
            ..thread.clone()
        };
        for moved in &mut want.moves {
            moved.at = seconds(moved.at);
        }
        assert_eq!(after.get(key), Some(&want));
        assert_eq!((want.moves.len(), after.refusals().count()), (1, 1));
    }

    #[test]
    fn a_file_that_cant_be_read_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        assert_eq!(recall(&root).all().count(), 0);
        write(&path(&root), &file(&known())).unwrap();
        let text = fs::read(path(&root)).unwrap();
        fs::write(path(&root), &text[..text.len() / 2]).unwrap();
        assert_eq!(recall(&root).all().count(), 0);
        write(&path(&root), &file(&known())).unwrap();
        assert_eq!(recall(&root).all().count(), 1);
    }
}
