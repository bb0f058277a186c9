//! Taking over what other programs have: their logins, names, choices.
//!
//! Each format has a module that turns a file into [`Found`] accounts; `plan` compares these with the
//! pool and with each other; the roster takes them. A source is opened read only, never locked,
//! never changed; a damaged one is one line of the report and stops no other. No credential leaves
//! these types: reports are made of names, ids and reasons.
//!
//! Formats as they were observed: codex-multi-auth 2.8.7, the OpenCode plugin opencode-multi-auth
//! 1.4 to 1.6 and its forks, OpenCode 1.18, Codex CLI 0.149 to 0.169.

mod auth_json;
mod codex_multi_auth;
pub(crate) mod export;
mod file;
mod json;
mod kept;
mod opencode_auth;
mod opencode_plugin;
pub(crate) mod plan;
mod sealed;
#[cfg(test)]
mod tests;
mod token;

pub(crate) use kept::{Kept, save};
pub(crate) use token::Login;

use crate::store::record::Gone;
use cma_proto::takeover::{Kind, Scan, SourceInfo};
use secrecy::SecretString;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A report has to fit into one answer.
const MAX_FOUND: usize = 1000;

/// One account as a file gives it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) login: Login,
    /// What the other program calls it.
    pub(crate) name: String,
    pub(crate) label: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) remark: Option<String>,
    /// Whether it may serve; none where the format has no such word.
    pub(crate) enabled: Option<bool>,
    /// Set where the other program gave the login up.
    pub(crate) gone: Option<Gone>,
    /// The project pool's key; none for the global pool.
    pub(crate) pool: Option<String>,
    /// Whether the other program was bound to it.
    pub(crate) pinned: bool,
    /// Last use or renewal that the file tells, seconds since 1970.
    pub(crate) touched_at: Option<u64>,
    pub(crate) format: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) notes: Vec<String>,
}

/// A login that can't be used, and why.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) name: String,
    pub(crate) email: Option<String>,
    pub(crate) reason: String,
    pub(crate) format: &'static str,
    pub(crate) path: PathBuf,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(crate) struct Harvest {
    pub(crate) sources: Vec<SourceInfo>,
    pub(crate) found: Vec<Found>,
    pub(crate) unusable: Vec<Unusable>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) notes: Vec<String>,
}

/// What one account's fields come to, before it is known whose file it was in.
#[derive(Debug, Default)]
struct Draft {
    name: String,
    label: Option<String>,
    tags: Vec<String>,
    remark: Option<String>,
    enabled: Option<bool>,
    gone: Option<Gone>,
    pool: Option<String>,
    pinned: bool,
    touched_at: Option<u64>,
    notes: Vec<String>,
    raw: token::Raw,
}

/// A file that is being read into the harvest.
struct Into<'a> {
    harvest: &'a mut Harvest,
    format: &'static str,
    path: &'a Path,
    accounts: u32,
    notes: Vec<String>,
}

impl<'a> Into<'a> {
    const fn new(harvest: &'a mut Harvest, format: &'static str, path: &'a Path) -> Self {
        Self { harvest, format, path, accounts: 0, notes: Vec::new() }
    }

    /// Adds an account, usable or not.
    fn add(&mut self, draft: Draft) {
        self.accounts += 1;
        if self.harvest.found.len() + self.harvest.unusable.len() >= MAX_FOUND {
            if self.harvest.notes.is_empty() {
                let note = format!("more than {MAX_FOUND} logins: the rest was left out");
                self.harvest.notes.push(note);
            }
            return;
        }
        let email = draft.raw.email.clone();
        let name = [Some(draft.name), email.clone()]
            .into_iter()
            .flatten()
            .find(|name| !name.is_empty())
            .unwrap_or_else(|| "unnamed".to_owned());
        match token::login(draft.raw) {
            Ok((login, said)) => {
                let mut notes = draft.notes;
                notes.extend(said);
                self.harvest.found.push(Found {
                    login,
                    name,
                    label: draft.label,
                    tags: draft.tags,
                    remark: draft.remark,
                    enabled: draft.enabled,
                    gone: draft.gone,
                    pool: draft.pool,
                    pinned: draft.pinned,
                    touched_at: draft.touched_at,
                    format: self.format,
                    path: self.path.to_path_buf(),
                    notes,
                });
            },
            Err(reason) => self.refuse(name, email, reason),
        }
    }

    /// Adds a login that can't be used.
    fn refuse(
        &mut self,
        name: String,
        email: Option<String>,
        reason: impl std::convert::Into<String>,
    ) {
        self.harvest.unusable.push(Unusable {
            name,
            email,
            reason: reason.into(),
            format: self.format,
            path: self.path.to_path_buf(),
        });
    }

    /// The file is read.
    fn read(self) {
        let state = if self.accounts == 0 { "empty" } else { "read" };
        self.close(state, None);
    }

    /// The file can't be read.
    fn failed(self, state: &str, reason: impl std::convert::Into<String>) {
        let reason = reason.into();
        self.close(state, Some(reason));
    }

    fn close(self, state: &str, reason: Option<String>) {
        self.harvest.sources.push(SourceInfo {
            format: self.format.to_owned(),
            path: self.path.display().to_string(),
            state: state.to_owned(),
            reason,
            accounts: self.accounts,
            notes: self.notes,
        });
    }
}

/// Looks where the scan says, and reads everything that is there. Blocks on the disk.
pub(crate) fn gather(scan: &Scan, now: u64) -> Harvest {
    let mut harvest = Harvest::default();
    let passphrase = scan.passphrase.clone().map(|typed| SecretString::from(typed.into_inner()));
    let passphrase = passphrase.as_ref();
    if let Some(from) = &scan.from {
        named(Path::new(from), passphrase, now, &mut harvest);
        return harvest;
    }
    let var = |name: &str| {
        scan.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let places =
        cma_proto::takeover::places(Path::new(&scan.home), Path::new(&scan.codex_home), var);
    let mut seen = Vec::new();
    for (kind, path) in places {
        // Two names of one file are one source.
        let whole = path.canonicalize().unwrap_or_else(|_missing| path.clone());
        if !path.exists() && path.symlink_metadata().is_err()
            || seen.contains(&(kind, whole.clone()))
        {
            continue;
        }
        seen.push((kind, whole));
        match kind {
            Kind::MultiAuth => codex_multi_auth::folder(&path, &mut harvest),
            Kind::Plugin => opencode_plugin::store(&path, passphrase, now, &mut harvest),
            Kind::OpenCode => one(&path, passphrase, now, Some(Kind::OpenCode), &mut harvest),
            Kind::Codex => one(&path, passphrase, now, Some(Kind::Codex), &mut harvest),
        }
    }
    let elsewhere = var("CODEX_MULTI_AUTH_CONFIG_PATH").map(PathBuf::from);
    if let Some(path) = elsewhere.filter(|path| path.is_absolute()) {
        kept::settings(&path, &mut harvest);
    }
    harvest
}

/// What a person named: a folder of the predecessor's, any folder with known files, or one file.
fn named(path: &Path, passphrase: Option<&SecretString>, now: u64, harvest: &mut Harvest) {
    if !path.is_dir() {
        return one(path, passphrase, now, None, harvest);
    }
    let before = harvest.sources.len();
    codex_multi_auth::folder(path, harvest);
    let store = path.join("accounts.json");
    if store.is_file() {
        opencode_plugin::store(&store, passphrase, now, harvest);
    }
    for name in ["auth.json", "opencode-multi-auth-codex-accounts.json"] {
        if path.join(name).is_file() {
            one(&path.join(name), passphrase, now, None, harvest);
        }
    }
    if harvest.sources.len() == before && harvest.kept.is_empty() {
        let reason = "the folder holds no file of a known format";
        Into::new(harvest, "unknown", path).failed("refused", reason);
    }
}

/// One file, told by its content; `expected` names it in a refusal.
fn one(
    path: &Path,
    passphrase: Option<&SecretString>,
    now: u64,
    expected: Option<Kind>,
    harvest: &mut Harvest,
) {
    let format = match expected {
        Some(Kind::Codex) => auth_json::FORMAT,
        Some(Kind::OpenCode) => opencode_auth::FORMAT,
        Some(Kind::MultiAuth) => codex_multi_auth::FORMAT,
        Some(Kind::Plugin) => opencode_plugin::FORMAT,
        None => "unknown",
    };
    let value = match file::json(path) {
        Ok(value) => value,
        Err(reason) => return Into::new(harvest, format, path).failed("refused", reason),
    };
    if json::flag(&value, "encrypted") == Some(true) {
        return opencode_plugin::value(path, &value, passphrase, now, harvest);
    }
    if json::text(&value, "format").as_deref() == Some(cma_proto::takeover::EXPORT_FORMAT) {
        return export::read(path, &value, harvest);
    }
    match value.get("accounts") {
        Some(Value::Array(_)) if json::number(&value, "version") == Some(2) => {
            opencode_plugin::value(path, &value, passphrase, now, harvest);
        },
        Some(Value::Array(_)) => codex_multi_auth::named(path, &value, harvest),
        Some(Value::Object(_)) => opencode_plugin::value(path, &value, passphrase, now, harvest),
        _ if codex_multi_auth::is_journal(&value) => codex_multi_auth::named(path, &value, harvest),
        _ if opencode_auth::is_one(&value) => opencode_auth::read(path, &value, harvest),
        _ if auth_json::is_one(&value) => auth_json::read(path, &value, harvest),
        _ => Into::new(harvest, format, path)
            .failed("refused", "it is no login file of a known format"),
    }
}
