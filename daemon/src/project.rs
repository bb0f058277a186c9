//! Projects: what is kept of each, and what a folder means for a launch in it.
//!
//! An account has one record, in the root's `accounts/`, whatever number of pools it is in; the
//! record itself names them (`Record::pools`). So one credential has one owner and one renewal by
//! construction: a project's pool refers, it never copies a login, and everything that keeps logins
//! safe (generations, recovery, the renewal's note) holds for a project's accounts without a second
//! way through the code. What is kept here, in `projects/<key>/project.json`, is only what a person
//! said of the project: its pin, its workspaces, which policy files count.
//!
//! What a launch may be served by ([`Bounds`]) is decided once, when it starts, and goes into its
//! key: a running CLI can't wander into another pool, and a policy file that is changed under it
//! changes nothing for it.

mod place;
mod policy;

pub(crate) use place::{Place, locate};
pub(crate) use policy::{Found, Policy, Which};

use crate::{
    clock,
    fault::Fault,
    roster::{self, Roster},
    store::{Store, atomic, record::Record},
};
use cma_core::{
    identity::AccountId,
    project::is_key,
    scope::{GLOBAL, Pools, Scope},
    select::Need,
};
use cma_proto::{endpoint::Root, error::ErrorCode};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Contents of policy files that a person judged, for each project; the oldest go first. Branches
/// and worktrees may differ in theirs.
const MAX_JUDGED: usize = 16;

/// What a launch may be served by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bounds {
    /// The pool.
    pub(crate) scope: Scope,
    /// Workspaces the launch allows; empty allows all.
    pub(crate) workspaces: Arc<[Arc<str>]>,
    /// Accounts the launch allows; none allows all.
    pub(crate) accounts: Option<Arc<[AccountId]>>,
    /// The project that the launch is in, where its pool is the global one: for the books alone.
    pub(crate) project: Option<Arc<str>>,
}

impl Bounds {
    /// The project whose work a launch is.
    pub(crate) fn books(&self) -> Option<&Arc<str>> {
        self.scope.key().or(self.project.as_ref())
    }

    /// The place of an account that may ever serve (see [`Scope::place`]); none for one that
    /// may not.
    pub(crate) fn place(&self, record: &Record) -> Option<u8> {
        let workspace = self.workspaces.is_empty()
            || self.workspaces.iter().any(|one| **one == *record.workspace);
        let named = self
            .accounts
            .as_ref()
            .is_none_or(|named| named.iter().any(|id| id.as_str() == record.id));
        (workspace && named).then(|| self.scope.place(&Pools::of(&record.pools))).flatten()
    }

    /// What a request of the launch needs, but for what the request itself says.
    pub(crate) fn need(&self) -> Need {
        Need {
            workspaces: Arc::clone(&self.workspaces),
            accounts: self.accounts.clone(),
            scope: self.scope.clone(),
            project: self.books().cloned(),
            ..Need::default()
        }
    }

    /// The name under which a thread's account is remembered: a project's own, so that a thread
    /// that is resumed elsewhere finds its account here again.
    pub(crate) fn session(&self, session: Option<&Arc<str>>) -> Option<Arc<str>> {
        match self.scope.key() {
            None => session.cloned(),
            Some(key) => session.map(|session| format!("{key}/{session}").into()),
        }
    }
}

/// A project as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Project {
    /// Names it.
    pub(crate) key: String,
    /// Its main folder when it was last seen.
    pub(crate) path: String,
    /// Seconds since 1970.
    pub(crate) made_at: u64,
    /// The pinned account and since when (seconds since 1970).
    pub(crate) pin: Option<(String, u64)>,
    /// Workspaces that new launches are limited to; empty for no limit of its own.
    #[serde(default)]
    pub(crate) workspaces: Vec<String>,
    /// What a person said of policy files, newest last.
    #[serde(default)]
    pub(crate) judged: Vec<Judged>,
}

/// What a person said of one content of a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Judged {
    /// Its SHA-256.
    pub(crate) sha256: String,
    /// Whether it counts.
    pub(crate) allowed: bool,
    /// Seconds since 1970.
    pub(crate) at: u64,
}

/// How a policy file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It counts.
    Allowed,
    /// A person refused it: it doesn't count and nothing is said.
    Denied,
    /// Another content was allowed before.
    Changed,
    /// Nobody said anything.
    New,
}

impl Standing {
    /// As `--json` shows it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Changed => "changed",
            Self::New => "new",
        }
    }
}

impl Project {
    fn new(place: &Place) -> Self {
        Self {
            key: place.key.clone(),
            path: place.main.display().to_string(),
            made_at: clock::unix(),
            pin: None,
            workspaces: Vec::new(),
            judged: Vec::new(),
        }
    }

    fn standing(&self, found: &Found) -> Standing {
        match self.judged.iter().rev().find(|judged| judged.sha256 == found.sha256) {
            Some(judged) if judged.allowed => Standing::Allowed,
            Some(_denied) => Standing::Denied,
            None if self.judged.iter().any(|judged| judged.allowed) => Standing::Changed,
            None => Standing::New,
        }
    }
}

/// What a folder means for a launch in it.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// Who may serve it.
    pub(crate) bounds: Bounds,
    /// What the person should know, one line each.
    pub(crate) notes: Vec<String>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Projects {
    root: PathBuf,
    store: Store,
    known: RwLock<BTreeMap<String, Arc<Project>>>,
    /// Held for the whole of a change, disk included.
    writer: Mutex<()>,
}

impl Projects {
    /// Reads what the root holds of projects.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when a file is damaged: a pin or a refusal must not be lost silently.
    pub(crate) fn load(root: &Root, store: Store) -> Result<Self, Fault> {
        let root = root.path().to_path_buf();
        let projects = Self { root, store, known: RwLock::default(), writer: Mutex::new(()) };
        projects.read_in()?;
        Ok(projects)
    }

    /// Reads all projects, unless the root is locked: no launch is served then, and this is called
    /// again when it is open.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn read_in(&self) -> Result<(), Fault> {
        if self.store.is_locked() {
            return Ok(());
        }
        let _writer = self.writer.lock();
        let mut known = BTreeMap::new();
        let folder = self.root.join("projects");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Fault::file(&folder, "read", &error)),
        };
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_key(&name) || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            atomic::sweep(&entry.path())?;
            let path = entry.path().join("project.json");
            let Some(project) = self.store.get::<Project>(&path)? else { continue };
            if project.key != name {
                return Err(Fault::new(
                    ErrorCode::Store,
                    format!("`{}` is of the project {}", path.display(), project.key),
                    format!("move it away: `mv {0} {0}.damaged`", path.display()),
                ));
            }
            known.insert(name, Arc::new(project));
        }
        *self.known.write() = known;
        Ok(())
    }

    /// All projects known, by key.
    pub(crate) fn all(&self) -> Vec<Arc<Project>> {
        self.known.read().values().cloned().collect()
    }

    /// One project.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Project>> {
        self.known.read().get(key).cloned()
    }

    /// The project of a folder. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] where there is no project, or no such folder.
    pub(crate) fn place(&self, dir: &str) -> Result<Place, Fault> {
        let nothing = |why: String| {
            Fault::new(
                ErrorCode::NotFound,
                why,
                "go into a repository, or make one with `git init`",
            )
        };
        match locate(Path::new(dir), &self.root) {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err(nothing(format!("`{dir}` is in no repository"))),
            Err(error) => Err(nothing(format!("`{dir}` can't be looked at: {error}"))),
        }
    }

    /// A project by its key, or by a folder in it. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub(crate) fn named(&self, text: &str) -> Result<Place, Fault> {
        match self.get(text) {
            Some(project) => Ok(Place {
                key: project.key.clone(),
                main: project.path.clone().into(),
                tree: project.path.clone().into(),
                forged: None,
            }),
            None if is_key(text) => Err(Fault::new(
                ErrorCode::NotFound,
                format!("there is no project `{text}`"),
                "run `cmactl project list` to see them",
            )),
            None => self.place(text),
        }
    }

    /// Changes what is kept of a project, which is made if need be. Blocks on the disk.
    pub(crate) fn edit(
        &self,
        place: &Place,
        edit: impl FnOnce(&mut Project),
    ) -> Result<Arc<Project>, Fault> {
        let _writer = self.writer.lock();
        let known = self.get(&place.key);
        let mut project = known.map_or_else(|| Project::new(place), |known| (*known).clone());
        project.path = place.main.display().to_string();
        edit(&mut project);
        self.save(project)
    }

    /// An account is no more: no project is pinned to it. Blocks on the disk.
    pub(crate) fn unpin(&self, id: &AccountId) -> Result<(), Fault> {
        let _writer = self.writer.lock();
        for project in self.all() {
            if project.pin.as_ref().is_some_and(|(pin, _since)| pin == id.as_str()) {
                self.save(Project { pin: None, ..(*project).clone() })?;
            }
        }
        Ok(())
    }

    /// Says whether a policy file's present content counts. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] without such a file, [`ErrorCode::Config`] for one that is to be
    /// allowed and can't be understood.
    pub(crate) fn judge(&self, place: &Place, allowed: bool) -> Result<(Found, Standing), Fault> {
        let found = policy::find(&place.tree).ok_or_else(|| {
            Fault::new(
                ErrorCode::NotFound,
                format!("there is no `{}` in `{}`", policy::FILE, place.tree.display()),
                "write one first",
            )
        })?;
        if let (Err(why), true) = (&found.policy, allowed) {
            return Err(Fault::new(
                ErrorCode::Config,
                format!("`{}` can't count: {why}", found.path.display()),
                "mend that line; a policy has `pool`, `fallback`, `workspaces`, `accounts`",
            ));
        }
        let sha256 = found.sha256.clone();
        let project = self.edit(place, |project| {
            project.judged.retain(|judged| judged.sha256 != sha256);
            project.judged.push(Judged { sha256, allowed, at: clock::unix() });
            let over = project.judged.len().saturating_sub(MAX_JUDGED);
            project.judged.drain(..over);
        })?;
        let standing = project.standing(&found);
        Ok((found, standing))
    }

    /// The policy file of a working tree and how it stands. Blocks on the disk.
    pub(crate) fn policy(&self, place: &Place) -> Option<(Found, Standing)> {
        let found = policy::find(&place.tree)?;
        let known = self.get(&place.key);
        let standing = known.map_or(Standing::New, |project| project.standing(&found));
        Some((found, standing))
    }

    /// Forgets a project. Blocks on the disk.
    pub(crate) fn forget(&self, key: &str) -> Result<(), Fault> {
        let _writer = self.writer.lock();
        if !is_key(key) {
            return Ok(());
        }
        let folder = self.root.join("projects").join(key);
        atomic::remove(&folder.join("project.json"))?;
        // A folder that somebody put something into stays.
        drop(std::fs::remove_dir(&folder));
        self.known.write().remove(key);
        Ok(())
    }

    /// What a launch in a folder may be served by. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::NeedsLogin`] when the project's pool must serve and can't ever.
    pub(crate) fn choose(&self, dir: &str, roster: &Roster) -> Result<Choice, Fault> {
        let everywhere = roster.state().workspaces;
        let place = match locate(Path::new(dir), &self.root) {
            Ok(Some(place)) => place,
            // It might be in a project: then the global pool is the wrong one.
            Err(error) if !self.known.read().is_empty() => {
                return Err(Fault::new(
                    ErrorCode::NotFound,
                    format!("it can't be seen which project `{dir}` is in: {error}"),
                    "go into a folder that can be read",
                ));
            },
            Ok(None) | Err(_) => {
                let bounds = Bounds { workspaces: shared(&everywhere), ..Bounds::default() };
                return Ok(Choice { bounds, notes: Vec::new() });
            },
        };
        let mut notes = Vec::new();
        if let Some(why) = place.forged.filter(|_why| !self.known.read().is_empty()) {
            notes.push(place.apart(why));
        }
        let project = self.get(&place.key);
        let policy = match self.policy(&place) {
            Some((Found { policy: Ok(policy), .. }, Standing::Allowed)) => policy,
            Some((Found { policy: Err(why), path, .. }, Standing::Allowed)) => {
                notes.push(format!("`{}` doesn't count: {why}", path.display()));
                Policy::default()
            },
            Some((found, standing @ (Standing::New | Standing::Changed))) => {
                notes.push(uncounted(&found, standing, &place));
                Policy::default()
            },
            Some((_, Standing::Denied)) | None => Policy::default(),
        };
        let own = !roster.members(&place.key).is_empty();
        let scope = match policy.pool {
            Some(Which::Global) => Scope::Global,
            Some(Which::Project) => scope(&place, policy.fallback),
            None if own => scope(&place, policy.fallback),
            None => Scope::Global,
        };
        if !own && scope == self::scope(&place, false) {
            return Err(Fault::new(
                ErrorCode::NeedsLogin,
                format!("the pool of the project `{}` has no account", place.main.display()),
                "run `cmactl import --project` there",
            ));
        }
        let limit = project.map(|project| project.workspaces.clone()).unwrap_or_default();
        let limit = if limit.is_empty() { everywhere } else { limit };
        let workspaces = both(&policy.workspaces, &limit).ok_or_else(|| {
            Fault::new(
                ErrorCode::NeedsLogin,
                format!(
                    "no workspace is both in the policy of `{}` and in the limit you set",
                    place.tree.display()
                ),
                "run `cmactl workspace show` to see the limit",
            )
        })?;
        let accounts = (!policy.accounts.is_empty()).then(|| {
            let named = |record: &&Arc<Record>| {
                policy.accounts.iter().any(|name| roster::is_called(record, name))
            };
            let all = roster.all();
            all.iter().filter(named).map(|record| AccountId::from_written(&record.id)).collect()
        });
        let project = scope.key().is_none().then(|| place.key.as_str().into());
        let bounds = Bounds { scope, workspaces: shared(&workspaces), accounts, project };
        if bounds.accounts.is_some() && !roster.all().iter().any(|one| bounds.place(one).is_some())
        {
            return Err(Fault::new(
                ErrorCode::NeedsLogin,
                format!(
                    "no account that the policy of `{}` names is in its pool",
                    place.tree.display()
                ),
                "run `cmactl project show` there to see both",
            ));
        }
        Ok(Choice { bounds, notes })
    }

    /// Disk, then memory. The caller holds the writer lock.
    fn save(&self, project: Project) -> Result<Arc<Project>, Fault> {
        let folder = self.root.join("projects");
        crate::dirs::private_dir(&folder)?;
        let folder = folder.join(&project.key);
        crate::dirs::private_dir(&folder)?;
        self.store.put(&folder.join("project.json"), &project)?;
        let project = Arc::new(project);
        self.known.write().insert(project.key.clone(), Arc::clone(&project));
        Ok(project)
    }
}

/// A project's pool as a scope.
fn scope(place: &Place, fallback: bool) -> Scope {
    Scope::Project { key: place.key.as_str().into(), fallback }
}

/// The line about a policy file that doesn't count.
fn uncounted(found: &Found, standing: Standing, place: &Place) -> String {
    let what = match standing {
        Standing::Changed => "has changed since you allowed it and doesn't count",
        Standing::New | Standing::Allowed | Standing::Denied => "is new and doesn't count",
    };
    format!(
        "`{}` {what}; read it, then run `cmactl allow {}` (or `cmactl deny`)",
        found.path.display(),
        place.tree.display()
    )
}

fn shared(names: &[String]) -> Arc<[Arc<str>]> {
    names.iter().map(|name| name.as_str().into()).collect()
}

/// What two limits allow together; empty is no limit. `None` when that is nothing.
pub(crate) fn both(one: &[String], other: &[String]) -> Option<Vec<String>> {
    if one.is_empty() || other.is_empty() {
        return Some([one, other].concat());
    }
    let common: Vec<String> = one.iter().filter(|name| other.contains(name)).cloned().collect();
    (!common.is_empty()).then_some(common)
}

/// The scope of a project by its key, as its own people see it.
pub(crate) fn own_scope(key: &str) -> Scope {
    if key == GLOBAL {
        return Scope::Global;
    }
    Scope::Project { key: key.into(), fallback: false }
}
