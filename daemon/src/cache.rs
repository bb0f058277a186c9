//! What would be nice to still know after a restart: quota windows and limits, in sled.
//!
//! Disposable by definition. Losing it costs a request that learns a limit anew, never a login. So a
//! start waits for it for a moment only ([`AT_START`]); it is written some seconds after something changed
//! and at a stop, never while the root is locked, and open only for that long: an idle daemon has no
//! database in memory. A store that can't be opened is moved aside and made anew.

pub(crate) mod threads;

use crate::{
    actor::Handle,
    app::{Phase, Phases},
    blocking::{self, Panicked},
    clock,
    fault::Fault,
    roster::Roster,
};
use cma_core::{
    cooldown::Cause,
    identity::AccountId,
    pool::Input,
    quota::{Place, Window},
    time::Wall,
    verdict::Mark,
};
use cma_proto::{endpoint::Root, error::ErrorCode};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long a start waits for what was known: the first request would meet limits that have been met.
pub(crate) const AT_START: Duration = Duration::from_millis(300);
/// How long an unlock does, whose accounts serve already.
pub(crate) const AT_UNLOCK: Duration = Duration::from_secs(2);
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_secs(20);
/// A few kilobytes are kept; sled's own default is a gigabyte.
const MEMORY: u64 = 256 * 1024;
/// Knowledge older than this is not worth reading.
const STALE: u64 = 8 * 24 * 3600;

/// Another process has it open for moments only.
const PATIENCE: Duration = Duration::from_secs(5);
/// A read or a write that takes longer never ends.
const LONGEST: Duration = Duration::from_secs(20);
/// Turns of the collector: it frees eight of sled's bags at each, from the third on. A closing leaves
/// some dozens, and a turn takes less than a microsecond.
const SWEEPS: usize = 64;
/// Between two looks at its lock.
const LOOK: Duration = Duration::from_millis(10);

/// Windows told to the pool in one input; it takes no more of them.
const AT_ONCE: usize = 32;

/// One account's entry. Times are seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    account: String,
    limited_until: Option<u64>,
    windows: Vec<Kept>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    limit: String,
    #[serde(default)]
    model: Option<String>,
    primary: bool,
    used_percent: f64,
    minutes: Option<u64>,
    resets_at: Option<u64>,
    seen_at: u64,
}

/// Tells the pool what was known. Of accounts that it doesn't have it takes nothing in.
pub(crate) async fn recall(root: &Root, actor: &Handle) {
    let from = folder(root);
    match off_the_loop(move || read(&from)).await {
        Ok(entries) => entries.into_iter().flat_map(inputs).for_each(|input| actor.tell(input)),
        Err(fault) => tracing::warn!(%fault, "the cache can't be read"),
    }
}

/// Tells the pool what was known, and `told` when that is done; then keeps what it learns, until the
/// daemon flushes.
pub(crate) async fn keep(
    root: Root,
    actor: Handle,
    phases: Phases,
    roster: Arc<Roster>,
    told: oneshot::Sender<()>,
) {
    recall(&root, &actor).await;
    // Who waited for it may have had enough of it.
    let _late = told.send(());
    loop {
        // A receiver that isn't read costs nothing: during the wait only its buffer turns over.
        let mut changes = actor.changes();
        let stopping = tokio::select! {
            _any = changes.recv() => tokio::select! {
                () = tokio::time::sleep(GATHER) => false,
                () = phases.reached(Phase::Draining) => true,
            },
            () = phases.reached(Phase::Draining) => true,
        };
        drop(changes);
        let Some(_permit) = roster.truth().to_change().await else { return };
        write_now(&root, &actor, &roster).await;
        if stopping {
            return;
        }
        if actor.look(|pool, _now| pool.outstanding() == 0).await == Ok(true) {
            give_back().await;
        }
    }
}

/// Writes what is known. The caller may write. Nothing is written of a locked pool: what nobody can see
/// now isn't gone.
pub(crate) async fn write_now(root: &Root, actor: &Handle, roster: &Roster) {
    if roster.is_locked() {
        return;
    }
    let Ok(entries) = snapshot(actor).await else { return };
    let to = folder(root);
    if let Err(fault) = off_the_loop(move || write(&to, &entries)).await {
        tracing::warn!(%fault, "the cache can't be written");
    }
}

fn folder(root: &Root) -> PathBuf {
    root.path().join("cache").join("v1")
}

async fn snapshot(actor: &Handle) -> Result<Vec<Entry>, crate::actor::Gone> {
    let entries = actor.look(|pool, now| {
        let entry = |account: &cma_core::account::Account| Entry {
            account: account.id.to_string(),
            limited_until: account.rest(now).and_then(|rest| {
                matches!(rest.cause, Cause::UsageLimit(_)).then(|| rest.due.shown(now).secs())
            }),
            windows: account
                .quota
                .trail()
                .windows(account.quota.windows())
                .map(|window| kept(&window))
                .chain(account.quota.windows().iter().map(kept))
                .collect(),
        };
        pool.accounts().iter().map(entry).collect()
    });
    entries.await
}

fn kept(window: &Window) -> Kept {
    Kept {
        limit: window.limit.to_string(),
        model: window.model.as_ref().map(ToString::to_string),
        primary: window.place == Place::Primary,
        used_percent: window.used_percent,
        minutes: window.minutes,
        resets_at: window.resets.map(Wall::secs),
        seen_at: window.seen.millis() / 1000,
    }
}

fn inputs(entry: Entry) -> Vec<Input> {
    let now = clock::unix();
    let id = AccountId::from_written(&entry.account);
    let mut windows: Vec<_> = entry
        .windows
        .into_iter()
        .filter(|kept| kept.seen_at + STALE > now)
        .map(|kept| Window {
            limit: kept.limit.into(),
            model: kept.model.map(Into::into),
            place: if kept.primary { Place::Primary } else { Place::Secondary },
            used_percent: kept.used_percent,
            minutes: kept.minutes,
            resets: kept.resets_at.map(Wall::from_secs),
            seen: Wall::from_secs(kept.seen_at),
        })
        .collect();
    let limit = entry.limited_until.filter(|until| *until > now).map(|until| {
        let cause = Cause::UsageLimit(Some(Wall::from_secs(until)));
        Input::Learn(id.clone(), Mark::Cool(cause))
    });
    // As they were seen, one after another: what was known earlier is the trail of what is known now.
    windows.sort_by_key(|window| window.seen);
    let seen = windows.chunks(AT_ONCE).map(|windows| Input::QuotaSeen(id.clone(), windows.into()));
    seen.chain(limit).collect()
}

fn read(folder: &Path) -> Result<Vec<Entry>, Fault> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let open = open(folder)?;
    // An entry that can't be read is an older version's: it will be written anew.
    Ok(open
        .db
        .iter()
        .values()
        .flatten()
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
        .collect())
}

fn write(folder: &Path, entries: &[Entry]) -> Result<(), Fault> {
    let open = open(folder)?;
    let db = &open.db;
    let failed = |error: sled::Error| fault(folder, &error.to_string());
    let mut batch = sled::Batch::default();
    for known in db.iter().keys().flatten() {
        if !entries.iter().any(|entry| entry.account.as_bytes() == &*known) {
            batch.remove(known);
        }
    }
    for entry in entries {
        let bytes = serde_json::to_vec(entry).map_err(|error| fault(folder, &error.to_string()))?;
        batch.insert(entry.account.as_bytes(), bytes);
    }
    db.apply_batch(batch).map_err(failed)?;
    db.flush().map(drop).map_err(failed)
}

/// The database while it is open, with a mark beside it that says so.
struct Open {
    // First: it is closed before the mark goes, and that before the lock.
    db: sled::Db,
    _closing: Closing,
    _mark: Marked,
    _alone: File,
}

/// Waits until no other process has it open: after a hand-over two of them live for a while, and the
/// mark of one says nothing of the other.
fn alone(folder: &Path) -> Result<File, Fault> {
    let path = folder.with_extension("lock");
    let lock = File::create(&path).map_err(|error| Fault::file(&path, "write", &error))?;
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(LOOK);
            },
            Err(TryLockError::WouldBlock) => return Err(fault(folder, "another daemon has it")),
            Err(TryLockError::Error(error)) => return Err(Fault::file(&path, "lock", &error)),
        }
    }
}

/// Waits at a closing until the database is really closed. sled leaves what it held to a collector that
/// only works while some database is used (half a megabyte each time), and the file, with sled's lock on
/// it, to whichever of its threads is done last: an opening right after would find it locked.
struct Closing(PathBuf);

impl Drop for Closing {
    fn drop(&mut self) {
        // What isn't closed by then is waited for by the next opening.
        let _closed = closed(&self.0);
    }
}

/// Waits until nothing of an earlier opening has the database's file. Whether that is so.
fn closed(folder: &Path) -> bool {
    let begun = Instant::now();
    loop {
        sweep();
        let held = File::open(folder.join("db"))
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        if !held || begun.elapsed() > PATIENCE {
            return !held;
        }
        std::thread::sleep(LOOK);
    }
}

/// Turns sled's collector.
fn sweep() {
    for _ in 0..SWEEPS {
        crossbeam_epoch::pin().flush();
    }
}

/// A file that is there while the database is open. Found at an opening, it tells of a process that
/// died in between: sled can read what such a one left in circles, for ever, so it isn't read.
struct Marked(PathBuf);

impl Drop for Marked {
    fn drop(&mut self) {
        // Left over, it costs what was known.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Marked {
    /// Makes the mark. Whether it was there before.
    fn make(folder: &Path) -> Result<(Self, bool), Fault> {
        let path = folder.with_extension("open");
        let there = path.exists();
        std::fs::write(&path, b"").map_err(|error| Fault::file(&path, "write", &error))?;
        Ok((Self(path), there))
    }
}

/// Opens it; one that won't open is moved aside, one that somebody died over is dropped.
fn open(folder: &Path) -> Result<Open, Fault> {
    for parent in [folder.parent(), Some(folder)].into_iter().flatten() {
        crate::dirs::private_dir(parent)?;
    }
    let config = |path: &Path| {
        sled::Config::new()
            .path(path)
            .cache_capacity(MEMORY)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(None)
            .print_profile_on_drop(false)
    };
    let alone = alone(folder)?;
    if !closed(folder) {
        return Err(fault(folder, "it is still being closed"));
    }
    let (mark, left_open) = Marked::make(folder)?;
    if left_open {
        tracing::info!("a daemon died while the cache was open; made anew");
        std::fs::remove_dir_all(folder).map_err(|error| Fault::file(folder, "remove", &error))?;
        crate::dirs::private_dir(folder)?;
    }
    let db = match config(folder).open() {
        Ok(db) => db,
        Err(error) => {
            let aside: PathBuf = folder.with_extension(format!("damaged-{}", clock::unix()));
            tracing::warn!(%error, aside = %aside.display(), "the cache is damaged; made anew");
            std::fs::rename(folder, &aside).map_err(|e| Fault::file(folder, "move", &e))?;
            crate::dirs::private_dir(folder)?;
            config(folder).open().map_err(|error| fault(folder, &error.to_string()))?
        },
    };
    Ok(Open { db, _closing: Closing(folder.to_owned()), _mark: mark, _alone: alone })
}

fn fault(folder: &Path, why: &str) -> Fault {
    Fault::new(
        ErrorCode::Store,
        format!("the cache `{}` can't be used: {why}", folder.display()),
        "remove that folder; nothing is lost with it",
    )
}

/// Writing takes megabytes for a moment, and nobody else would notice that they are free again. For
/// moments in which nobody is served.
async fn give_back() {
    let _never_fails = off_the_loop(|| {
        crate::sys::release_freed();
        Ok(())
    })
    .await;
}

async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::time::timeout(LONGEST, blocking::run(work)).await {
        Ok(Ok(done)) => done,
        // sled may panic on a damaged file; its thread is not ours to lose more than the cache for.
        Ok(Err(Panicked)) => Err(Fault::internal("the cache panicked")),
        // Or read one in circles: neither the work nor a stop waits for that.
        Err(_elapsed) => Err(Fault::internal("the cache took too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(account: &str, used: f64) -> Entry {
        let window = Kept {
            limit: "codex".to_owned(),
            model: None,
            primary: true,
            used_percent: used,
            minutes: Some(300),
            resets_at: Some(clock::unix() + 60),
            seen_at: clock::unix(),
        };
        Entry {
            account: account.to_owned(),
            limited_until: Some(clock::unix() + 60),
            windows: vec![window],
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_left_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache").join("v1");
        assert!(read(&folder).unwrap().is_empty());
        write(&folder, &[entry("a", 7.0), entry("b", 8.0)]).unwrap();
        write(&folder, &[entry("b", 9.0)]).unwrap();
        let back = read(&folder).unwrap();
        assert_eq!(back.len(), 1);
        assert_eq!((back[0].account.as_str(), back[0].windows[0].used_percent), ("b", 9.0));
        assert_eq!(inputs(entry("a", 1.0)).len(), 2);
    }

    #[test]
    fn a_damaged_cache_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache").join("v1");
        write(&folder, &[entry("a", 7.0)]).unwrap();
        for file in std::fs::read_dir(&folder).unwrap().flatten() {
            if file.path().is_file() {
                std::fs::write(file.path(), vec![0xff; 4096]).unwrap();
            }
        }
        drop(read(&folder));
        write(&folder, &[entry("a", 8.0)]).unwrap();
        assert_eq!(read(&folder).unwrap().len(), 1);
    }

    #[test]
    fn a_cache_that_a_process_died_over_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache").join("v1");
        write(&folder, &[entry("a", 7.0)]).unwrap();
        assert_eq!(read(&folder).unwrap().len(), 1);
        std::fs::write(folder.with_extension("open"), b"").unwrap();
        assert!(read(&folder).unwrap().is_empty());
        write(&folder, &[entry("a", 8.0)]).unwrap();
        assert_eq!(read(&folder).unwrap().len(), 1);
    }

    #[test]
    fn what_was_closed_can_be_opened_at_once() {
        let round = |name: usize| {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("cache").join("v1");
            for time in 0..20_u32 {
                write(&folder, &[entry("a", f64::from(time))]).unwrap();
                let back = read(&folder).unwrap();
                assert_eq!(back.len(), 1, "database {name} was lost at time {time}");
            }
        };
        // Beside each other they keep each other's collector and threads busy.
        std::thread::scope(|scope| {
            for name in 0..4 {
                scope.spawn(move || round(name));
            }
        });
    }

    #[test]
    fn what_a_closed_database_left_is_freed() {
        let freed = Arc::new(());
        let held = Arc::clone(&freed);
        crossbeam_epoch::pin().defer(move || drop(held));
        let begun = Instant::now();
        while Arc::strong_count(&freed) > 1 {
            // Beside other tests that use databases a turn may be in vain.
            assert!(begun.elapsed() < LONGEST, "nobody turns the collector");
            sweep();
        }
    }
}
