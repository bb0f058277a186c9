//! Keeps one account in the official `auth.json`, for plain `codex` and for programs that read it.
//!
//! Off unless a person turns it on. The file stays theirs: what stood there is kept durable before
//! the first write and put back, byte for byte, at the end; a write happens only where the file is
//! still what was last written or taken in here (compare, then replace). A login that somebody else
//! put there is left alone. A newer credential of the mirrored account, as the official CLI leaves it
//! after renewing or signing in, is taken into the pool; an older one never replaces a newer one.
//!
//! Without a refresh token, unless asked for: a refresh token there is a second owner, which may
//! spend the pool's. The CLI accepts an empty one (observed, 0.98 to 0.169; a missing one or `null`
//! makes it logged out).
//!
//! The folder is watched, not the file: it is replaced by renames. Only while the mirror is on.

mod file;

use crate::{
    app::{App, Phase},
    blocking, clock,
    fault::Fault,
    roster::Roster,
    store::{
        Store, atomic,
        import::{self, Login},
        record::Record,
    },
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use cma_core::{
    identity::AccountId,
    pool::{Input, Topic},
};
use cma_proto::{endpoint::Root, error::ErrorCode, owner::MirrorInfo};
use notify::Watcher as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, broadcast::error::RecvError, mpsc};

/// A program that writes the file may do so in several steps.
const SETTLE: Duration = Duration::from_millis(200);
/// A look without an event, for file systems that send none.
const ANYWAY: Duration = Duration::from_secs(60);

/// What is kept in `mirror/state.json`.
#[derive(Clone, Serialize, Deserialize)]
struct Setting {
    path: PathBuf,
    /// The account chosen; none follows the active one.
    fixed: Option<String>,
    with_refresh: bool,
    /// Seconds since 1970.
    since: u64,
    /// What stood there before, base64; none when there was no file.
    original: Option<String>,
    /// SHA-256 of what was last written, or found and taken in.
    known: Option<String>,
    /// The account it holds.
    holds: Option<String>,
    /// Which credential of it; none when it has to be written anew.
    generation: Option<u64>,
    /// Why the file is left alone for now.
    held: Option<String>,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting").field("path", &self.path).finish_non_exhaustive()
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Mirror {
    store: Store,
    folder: PathBuf,
    /// Held for the whole of a change, disk included.
    setting: Mutex<Option<Setting>>,
    wake: Notify,
}

/// What is to be done after a look at the file.
#[derive(Debug, Default)]
struct Looked {
    /// An account that took in what the file had.
    adopted: Option<Arc<Record>>,
}

impl Mirror {
    /// What the root holds of it.
    pub(crate) fn load(root: &Root, store: Store) -> Result<Self, Fault> {
        let folder = root.path().join("mirror");
        let mirror = Self { store, folder, setting: Mutex::new(None), wake: Notify::new() };
        mirror.read_in()?;
        Ok(mirror)
    }

    /// Reads the setting, unless the root is locked: then nothing is mirrored until it is open and
    /// this is called again.
    pub(crate) fn read_in(&self) -> Result<(), Fault> {
        if !self.store.is_locked() {
            *self.setting.lock() = self.store.get(&self.folder.join("state.json"))?;
            self.wake.notify_one();
        }
        Ok(())
    }

    /// How it stands.
    pub(crate) fn info(&self) -> MirrorInfo {
        self.setting.lock().as_ref().map_or_else(MirrorInfo::default, |setting| MirrorInfo {
            on: true,
            path: Some(setting.path.display().to_string()),
            account: setting.holds.clone(),
            follows: setting.fixed.is_none(),
            with_refresh: setting.with_refresh,
            since: Some(setting.since),
            held: setting.held.clone(),
            notes: Vec::new(),
        })
    }

    /// Starts mirroring. Blocks on the disk.
    fn turn_on(
        &self,
        record: &Record,
        fixed: bool,
        path: &Path,
        with_refresh: bool,
    ) -> Result<(), Fault> {
        let path = file::resolved(path)?;
        let mut held = self.setting.lock();
        if let Some(other) = held.as_ref().filter(|setting| setting.path != path) {
            return Err(Fault::new(
                ErrorCode::Negative,
                format!("`{}` is mirrored already", other.path.display()),
                "run `cmactl mirror off` first",
            ));
        }
        let now = file::read(&path)?;
        let original = match held.as_ref() {
            // Written by us: the person's own file is the one kept.
            Some(known) if known.known == now.as_deref().map(file::print) => known.original.clone(),
            Some(changed) => {
                put_aside(&changed.path, changed.original.as_deref())?;
                now.as_deref().map(|bytes| BASE64_STANDARD.encode(bytes))
            },
            None => now.as_deref().map(|bytes| BASE64_STANDARD.encode(bytes)),
        };
        let setting = Setting {
            path,
            fixed: fixed.then(|| record.id.clone()),
            with_refresh,
            since: clock::unix(),
            original,
            known: now.as_deref().map(file::print),
            holds: None,
            generation: None,
            held: None,
        };
        self.save(&setting)?;
        let setting = self.write(setting, record)?;
        *held = Some(setting);
        drop(held);
        self.wake.notify_one();
        Ok(())
    }

    /// Ends it and puts the person's file back. Blocks on the disk.
    pub(crate) fn turn_off(&self) -> Result<MirrorInfo, Fault> {
        let mut held = self.setting.lock();
        let Some(setting) = held.as_ref() else {
            return Ok(MirrorInfo {
                notes: vec!["it was not on".to_owned()],
                ..MirrorInfo::default()
            });
        };
        let mut notes = Vec::new();
        let now = file::read(&setting.path)?;
        if now.as_deref().map(file::print) == setting.known {
            match &setting.original {
                Some(original) => atomic::write(&setting.path, &decoded(original)?)?,
                None => atomic::remove(&setting.path)?,
            }
            notes.push(match setting.original {
                Some(_) => format!("`{}` is what it was before", setting.path.display()),
                None => format!("`{}` is gone, as it was before", setting.path.display()),
            });
        } else {
            let aside = put_aside(&setting.path, setting.original.as_deref())?;
            notes.push(format!(
                "`{}` was changed by somebody else meanwhile and is left as it is",
                setting.path.display()
            ));
            if let Some(aside) = aside {
                notes.push(format!("what it was before is kept in `{}`", aside.display()));
            }
        }
        atomic::remove(&self.folder.join("state.json"))?;
        let path = Some(setting.path.display().to_string());
        *held = None;
        drop(held);
        self.wake.notify_one();
        Ok(MirrorInfo { path, notes, ..MirrorInfo::default() })
    }

    /// Looks at the file: takes in what is newer there, writes what is newer here. Blocks on the
    /// disk.
    fn look(
        &self,
        roster: &Roster,
        config: &crate::config::Config,
        active: Option<&AccountId>,
    ) -> Result<Looked, Fault> {
        let mut held = self.setting.lock();
        let Some(mut setting) = held.clone() else { return Ok(Looked::default()) };
        let before = setting.held.take();
        let mut looked = Looked::default();
        let now = file::read(&setting.path)?;
        if now.as_deref().map(file::print) != setting.known {
            match classify(&setting, roster, config) {
                Found::Newer => {
                    let (imported, record) = roster.import(&setting.path, None)?;
                    tracing::info!(
                        account = imported.id,
                        generation = record.generation,
                        "a newer credential was taken from auth.json"
                    );
                    setting.known = now.as_deref().map(file::print);
                    // The program that wrote it may be about to write again: what stands there is
                    // right as it is, unless its refresh token shouldn't be there.
                    setting.generation = setting.with_refresh.then_some(record.generation);
                    looked.adopted = Some(record);
                },
                Found::Ours => {
                    setting.known = now.as_deref().map(file::print);
                    setting.generation = None;
                },
                Found::Other(why) => {
                    setting.held = Some(why);
                    if setting.held != before {
                        self.save(&setting)?;
                        tracing::warn!(why = setting.held.as_deref(), "auth.json is left alone");
                    }
                    *held = Some(setting);
                    return Ok(looked);
                },
            }
        }
        let wanted = wanted(&setting, roster, active);
        let setting = match wanted {
            Some(record) => self.write(setting, &record)?,
            None => {
                setting.held = Some("its account left the pool".to_owned());
                self.save(&setting)?;
                setting
            },
        };
        *held = Some(setting);
        Ok(looked)
    }

    /// Puts a record into the file, if it isn't what is there: compare, then replace.
    fn write(&self, mut setting: Setting, record: &Record) -> Result<Setting, Fault> {
        let there = setting.holds.as_ref() == Some(&record.id)
            && setting.generation == Some(record.generation);
        let bytes = file::rendered(record, setting.with_refresh)?;
        let print = if there { setting.known.clone() } else { Some(file::print(&bytes)) };
        if setting.known != print {
            let now = file::read(&setting.path)?;
            if now.as_deref().map(file::print) != setting.known {
                return Err(Fault::new(
                    ErrorCode::Negative,
                    format!(
                        "`{}` changed at this moment; it was not written",
                        setting.path.display()
                    ),
                    "run `cmactl mirror status`",
                ));
            }
            atomic::write(&setting.path, &bytes)?;
            tracing::info!(
                account = record.id,
                generation = record.generation,
                "auth.json written"
            );
        }
        setting.known = print;
        setting.holds = Some(record.id.clone());
        setting.generation = Some(record.generation);
        setting.held = None;
        self.save(&setting)?;
        Ok(setting)
    }

    fn save(&self, setting: &Setting) -> Result<(), Fault> {
        crate::dirs::private_dir(&self.folder)?;
        self.store.put(&self.folder.join("state.json"), setting)
    }

    fn watched(&self) -> Option<PathBuf> {
        self.setting.lock().as_ref().map(|setting| setting.path.clone())
    }
}

/// Keeps a file of the person's that can't go back to its place: beside it, since it is theirs. Below
/// the root it would be a token in clear in a root that may be sealed.
fn put_aside(place: &Path, original: Option<&str>) -> Result<Option<PathBuf>, Fault> {
    let Some(original) = original else { return Ok(None) };
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let path = place.with_file_name(format!("{name}.before-cma-{}", clock::unix()));
    atomic::write(&path, &decoded(original)?)?;
    Ok(Some(path))
}

fn decoded(original: &str) -> Result<Vec<u8>, Fault> {
    BASE64_STANDARD
        .decode(original)
        .map_err(|_damaged| Fault::internal("the kept auth.json is not base64"))
}

/// What a changed file is.
enum Found {
    /// The mirrored account's, newer than the pool's.
    Newer,
    /// The mirrored account's, nothing new in it.
    Ours,
    /// Somebody else's business; why, for a person.
    Other(String),
}

fn classify(setting: &Setting, roster: &Roster, config: &crate::config::Config) -> Found {
    let Ok(login) = import::auth_json(&setting.path, config) else {
        return Found::Other("it holds no ChatGPT login now".to_owned());
    };
    let id = AccountId::of(&login.user, &login.workspace);
    if setting.holds.as_deref() != Some(id.as_str()) {
        return Found::Other("it holds another login now; `cmactl import` adds it".to_owned());
    }
    match roster.get(&id) {
        Some(record) if is_newer(&login, &record) => Found::Newer,
        Some(_) => Found::Ours,
        None => Found::Other("its account left the pool".to_owned()),
    }
}

/// Whether a login holds a credential that the pool has not seen and that ends later. A refresh
/// token that the pool has sent is old whatever stands beside it.
fn is_newer(login: &Login, record: &Record) -> bool {
    let unknown =
        login.tokens.refresh_token.is_some() && !record.knows(login.tokens.refresh_token.as_ref());
    let later = match (login.claims.expires_at, record.expires_at) {
        (Some(theirs), Some(ours)) => theirs >= ours,
        (Some(_), None) | (None, _) => true,
    };
    unknown && (later || record.gone.is_some())
}

/// The record that should stand in the file.
fn wanted(setting: &Setting, roster: &Roster, active: Option<&AccountId>) -> Option<Arc<Record>> {
    let by_id = |id: &String| roster.get(&AccountId::from_written(id));
    match &setting.fixed {
        Some(id) => by_id(id),
        None => active
            .and_then(|id| roster.get(id))
            .or_else(|| by_id(setting.holds.as_ref()?))
            .or_else(|| roster.all().first().cloned()),
    }
}

/// Turns the mirror on for a selector, or for the active account.
pub(crate) async fn on(
    app: &Arc<App>,
    selector: Option<&str>,
    path: PathBuf,
    with_refresh: bool,
) -> Result<MirrorInfo, Fault> {
    let record = match selector {
        Some(selector) => app.roster.select(selector)?,
        None => active(app, true).await.and_then(|id| app.roster.get(&id)).ok_or_else(|| {
            Fault::new(
                ErrorCode::Negative,
                "no account is active",
                "name one: `cmactl mirror on ACCOUNT`",
            )
        })?,
    };
    let (app, fixed) = (Arc::clone(app), selector.is_some());
    blocking::disk(move || {
        app.mirror.turn_on(&record, fixed, &path, with_refresh)?;
        let mut info = app.mirror.info();
        if with_refresh {
            info.notes.push(
                "the file holds the refresh token too: a program that renews with it spends the \
                 pool's; what it leaves there is read back, but two at once may end the login"
                    .to_owned(),
            );
        }
        Ok(info)
    })
    .await
}

/// The pinned account; with `any`, else the one that would serve next.
async fn active(app: &App, any: bool) -> Option<AccountId> {
    let look = move |pool: &cma_core::pool::Pool, now| {
        let pin = pool.pin().map(|(id, _since)| id.clone());
        pin.or_else(|| any.then(|| pool.next(now).map(|account| account.id.clone())).flatten())
    };
    app.actor.look(look).await.ok().flatten()
}

/// Keeps file and pool in step until the daemon stops.
pub(crate) async fn keep(app: Arc<App>) {
    loop {
        match app.mirror.watched() {
            None => {
                tokio::select! {
                    () = app.mirror.wake.notified() => {},
                    () = app.phases.reached(Phase::Flushing) => return,
                }
            },
            Some(path) => {
                if !follow(&app, &path).await {
                    return;
                }
            },
        }
    }
}

/// Follows one file while the mirror is on for it; false when the daemon stops.
async fn follow(app: &Arc<App>, path: &Path) -> bool {
    let (told, mut events) = mpsc::channel(1);
    // Without a watcher the regular look still finds what changed.
    let _watcher = watch(path, told)
        .inspect_err(|error| tracing::warn!(%error, "the folder of auth.json can't be watched"));
    let mut changes = app.actor.changes();
    loop {
        if app.mirror.watched().as_deref() != Some(path) {
            return true;
        }
        step(app).await;
        loop {
            tokio::select! {
                () = app.phases.reached(Phase::Flushing) => return false,
                () = app.mirror.wake.notified() => break,
                () = tokio::time::sleep(ANYWAY) => break,
                Some(()) = events.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    let _again = events.try_recv();
                    break;
                },
                change = changes.recv() => match change {
                    // Every request moves some quota; that changes no file.
                    Ok(change) if matches!(change.topic, Topic::Quota(_)) => {},
                    Ok(_) | Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return false,
                },
            }
        }
    }
}

/// One look at the file.
async fn step(app: &Arc<App>) {
    let Some(_permit) = app.roster.truth().to_change().await else { return };
    let active = active(app, false).await;
    let looking = Arc::clone(app);
    let looked = blocking::disk(move || {
        looking.mirror.look(&looking.roster, &looking.config, active.as_ref())
    });
    match looked.await {
        Ok(Looked { adopted: Some(record) }) => {
            let _stopping = app.actor.command(Input::Upsert(app.roster.seed(&record))).await;
        },
        Ok(Looked { adopted: None }) => {},
        Err(fault) => tracing::warn!(%fault, "auth.json was not mirrored"),
    }
}

/// Tells when something happens to the file.
fn watch(path: &Path, told: mpsc::Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let name = path.file_name().map(ToOwned::to_owned);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let ours = event.is_ok_and(|event| {
            !event.kind.is_access()
                && event.paths.iter().any(|path| path.file_name() == name.as_deref())
        });
        if ours {
            // One waiting note is enough: it makes for a look at what is there then.
            let _full = told.try_send(());
        }
    })?;
    watcher.watch(path.parent().unwrap_or(path), notify::RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
