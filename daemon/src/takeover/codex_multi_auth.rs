//! The files of codex-multi-auth 2.8.7: accounts (versions 1 and 3), flagged ones, project pools,
//! and what lies beside them.
//!
//! An accounts file that can't be read is looked for in its journal and its three backups, in the
//! order in which its own program does that; a reset marker means that there are no accounts, and
//! nothing is revived.

use super::{Draft, Harvest, Into, file, json, kept, token::Raw};
use crate::store::record::Gone;
use cma_proto::takeover::MULTI_AUTH_FILE;
use ring::digest;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
};

pub(super) const FORMAT: &str = "codex-multi-auth";

/// The flagged ones, by the name of now and that of before.
const FLAGGED: [&str; 2] =
    ["openai-codex-flagged-accounts.json", "openai-codex-blocked-accounts.json"];
/// More than one person's projects.
const MAX_PROJECTS: usize = 256;

/// What a policy file says of one account.
#[derive(Debug, Clone, Default)]
struct Policy {
    tags: Vec<String>,
    remark: Option<String>,
    rests: bool,
}

/// A file with the suffix of one of its companions.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// Everything in one of its folders.
pub(super) fn folder(folder: &Path, harvest: &mut Harvest) {
    let accounts = folder.join(MULTI_AUTH_FILE);
    let there = |path: &Path| path.symlink_metadata().is_ok();
    let flagged = FLAGGED.iter().map(|name| folder.join(name)).find(|path| there(path));
    let companions = [".wal", ".bak", ".bak.1", ".bak.2", ".reset-intent"];
    let any = there(&accounts) || companions.iter().any(|suffix| there(&beside(&accounts, suffix)));
    let projects = projects(folder);
    if !any && flagged.is_none() && projects.is_empty() {
        return;
    }
    let owner = owner(folder);
    let policies = policies(&folder.join("account-policies.json"));
    if any {
        pool(&accounts, None, &policies, owner.as_deref(), harvest);
    }
    if let Some(flagged) = flagged {
        let mut into = Into::new(harvest, FORMAT, &flagged);
        match file::json(&flagged) {
            Ok(value) => {
                accounts_of(&value, None, &policies, owner.as_deref(), true, &mut into);
                into.read();
            },
            Err(reason) => into.failed("refused", reason),
        }
    }
    for (key, path) in projects {
        pool(&path, Some(&key), &policies, owner.as_deref(), harvest);
    }
    kept::beside(folder, harvest);
}

/// One accounts file, by its own way of recovering.
fn pool(
    path: &Path,
    project: Option<&str>,
    policies: &BTreeMap<String, Policy>,
    owner: Option<&str>,
    harvest: &mut Harvest,
) {
    let mut into = Into::new(harvest, FORMAT, path);
    if beside(path, ".reset-intent").symlink_metadata().is_ok() {
        into.notes
            .push("its accounts were deleted there on purpose; nothing is revived".to_owned());
        return into.read();
    }
    let whole = |value: Value| if is_pool(&value) { Ok(value) } else { Err(wrong(&value)) };
    let first = file::json(path).and_then(whole);
    let value = match first {
        Ok(value) => value,
        Err(reason) => {
            let spare = [".wal", ".bak", ".bak.1", ".bak.2"].into_iter().find_map(|suffix| {
                let value = file::json(&beside(path, suffix)).ok()?;
                let value = if suffix == ".wal" { journal(&value)? } else { value };
                is_pool(&value).then_some((suffix, value))
            });
            let Some((suffix, value)) = spare else { return into.failed("refused", reason) };
            into.notes.push(format!("{reason}; read from its `{suffix}` instead"));
            value
        },
    };
    accounts_of(&value, project, policies, owner, false, &mut into);
    into.read();
}

/// One file that a person named: any of its layouts.
pub(super) fn named(path: &Path, value: &Value, harvest: &mut Harvest) {
    let mut into = Into::new(harvest, FORMAT, path);
    let inner;
    let value = if is_journal(value) {
        let Some(found) = journal(value) else {
            return into.failed("refused", "its journal's checksum does not match");
        };
        inner = found;
        &inner
    } else {
        value
    };
    if !is_pool(value) {
        return into.failed("refused", wrong(value));
    }
    let flagged = path.file_name().and_then(OsStr::to_str).is_some_and(|name| {
        FLAGGED.iter().any(|flagged| name.starts_with(flagged.trim_end_matches(".json")))
    });
    let folder = path.parent().unwrap_or(path);
    let policies = policies(&folder.join("account-policies.json"));
    accounts_of(value, None, &policies, owner(folder).as_deref(), flagged, &mut into);
    into.read();
}

/// Version 2 never existed; another one is unknown.
fn is_pool(value: &Value) -> bool {
    matches!(json::number(value, "version"), Some(1 | 3))
        && value.get("accounts").is_some_and(Value::is_array)
}

fn wrong(value: &Value) -> String {
    match json::number(value, "version") {
        Some(1 | 3) => "it has no list of accounts".to_owned(),
        Some(version) => format!("version {version} of its layout is unknown"),
        None => "it names no version of its layout".to_owned(),
    }
}

/// Whether a value is a journal of an accounts file.
pub(super) fn is_journal(value: &Value) -> bool {
    ["checksum", "content", "path"].iter().all(|name| json::text(value, name).is_some())
}

/// What a journal holds, if it is whole.
fn journal(value: &Value) -> Option<Value> {
    let content = json::text(value, "content")?;
    let sum = hash(&content);
    let whole = json::text(value, "checksum")?.eq_ignore_ascii_case(&sum);
    whole.then(|| file::parse(content.as_bytes()).ok()).flatten()
}

/// SHA-256 as 64 hex digits.
fn hash(text: &str) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in digest::digest(&digest::SHA256, text.as_bytes()).as_ref() {
        // Writing to a String can't fail.
        let _infallible = write!(hex, "{byte:02x}");
    }
    hex
}

fn accounts_of(
    value: &Value,
    project: Option<&str>,
    policies: &BTreeMap<String, Policy>,
    owner: Option<&str>,
    flagged: bool,
    into: &mut Into<'_>,
) {
    let pinned = json::number(value, "pinnedAccountIndex");
    let list = value.get("accounts").and_then(Value::as_array).into_iter().flatten();
    for (at, account) in list.enumerate() {
        if !account.is_object() {
            into.accounts += 1;
            into.refuse(format!("account {}", at + 1), None, "it is no account");
            continue;
        }
        let mut draft = draft(account, flagged);
        draft.pool = project.map(str::to_owned);
        draft.pinned = !flagged && project.is_none() && pinned == u64::try_from(at).ok();
        if draft.name.is_empty() {
            draft.name = draft.raw.email.clone().unwrap_or_else(|| format!("account {}", at + 1));
        }
        if let Some(policy) = policy(policies, &draft.raw) {
            draft.tags.clone_from(&policy.tags);
            draft.remark.clone_from(&policy.remark);
            if policy.rests {
                draft.enabled = Some(false);
                draft.notes.push("its policy paused it there: it comes disabled".to_owned());
            }
        }
        let path = into.path.display();
        draft.notes.push(match owner {
            Some(owner) => format!(
                "{owner} and owns the same login: stop that program; `cmactl login` signs in afresh"
            ),
            None => format!(
                "`{path}` still holds the same login: use codex-multi-auth no more, or one of the \
                 two will spend the other's refresh token; `cmactl login` signs in afresh"
            ),
        });
        into.add(draft);
    }
}

fn draft(account: &Value, flagged: bool) -> Draft {
    let label = json::name(account, "accountLabel");
    let flagged_at = json::millis(account, "flaggedAt");
    let gone = (flagged || flagged_at.is_some()).then(|| {
        let reason = json::line(account, "flaggedReason")
            .or_else(|| json::line(account, "lastError"))
            .map_or_else(String::new, |reason| format!(": {reason}"));
        Gone {
            cause: format!("set aside by codex-multi-auth{reason}"),
            since: flagged_at.unwrap_or_default(),
        }
    });
    let mut notes = Vec::new();
    if json::millis(account, "authInvalidatedAt").is_some() && gone.is_none() {
        notes.push("its access token was revoked once; the next renewal tells".to_owned());
    }
    let workspaces = account.get("workspaces").and_then(Value::as_array).map_or(0, Vec::len);
    if workspaces > 1 {
        notes.push(format!(
            "it knew {workspaces} workspaces; a login here is of one: `cmactl login --org` adds more"
        ));
    }
    Draft {
        name: label.clone().unwrap_or_default(),
        label,
        tags: Vec::new(),
        remark: None,
        enabled: Some(json::flag(account, "enabled") != Some(false)),
        gone,
        pool: None,
        pinned: false,
        touched_at: json::millis(account, "lastUsed").max(json::millis(account, "addedAt")),
        notes,
        raw: Raw {
            access: json::text(account, "accessToken"),
            refresh: json::text(account, "refreshToken"),
            id_token: json::text(account, "idToken"),
            workspace: json::line(account, "accountId"),
            email: json::line(account, "email"),
        },
    }
}

/// A policy's key is a hash of the account id, else of the address.
fn policy<'a>(policies: &'a BTreeMap<String, Policy>, raw: &Raw) -> Option<&'a Policy> {
    let of = |text: &String| policies.get(&format!("sha256:{}", hash(text)));
    let by_id = raw.workspace.as_ref().and_then(of);
    by_id.or_else(|| raw.email.as_ref().and_then(|email| of(&email.trim().to_lowercase())))
}

fn policies(path: &Path) -> BTreeMap<String, Policy> {
    let value = file::json(path).unwrap_or_default();
    let map = value.get("accounts").and_then(Value::as_object).into_iter().flatten();
    map.map(|(key, policy)| {
        let rests = ["paused", "drained"].iter().any(|name| json::flag(policy, name) == Some(true));
        let read =
            Policy { tags: json::words(policy, "tags"), remark: json::line(policy, "note"), rests };
        (key.clone(), read)
    })
    .collect()
}

/// The pools of projects: key and accounts file.
fn projects(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut found: Vec<_> = std::fs::read_dir(folder.join("projects"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let key = entry.file_name().into_string().ok()?;
            let path = entry.path().join(MULTI_AUTH_FILE);
            let plain = key.bytes().all(|byte| byte.is_ascii_graphic()) && key.len() <= 64;
            (plain && path.symlink_metadata().is_ok()).then_some((key, path))
        })
        .take(MAX_PROJECTS)
        .collect();
    found.sort();
    found
}

/// Who runs there now, by the process ids that its files name.
fn owner(folder: &Path) -> Option<String> {
    let live = |path: &Path| {
        let value = file::json(path).ok()?;
        let running = json::text(&value, "state").is_none_or(|state| state == "running");
        json::number(&value, "pid").filter(|pid| running && file::lives(*pid))
    };
    let named = |folder: PathBuf, fits: fn(&str) -> bool| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let files = entries.filter(move |entry| entry.file_name().to_str().is_some_and(fits));
        files.map(|entry| entry.path()).take(64).collect::<Vec<_>>()
    };
    let proxies = named(folder.to_path_buf(), |name| {
        name.starts_with("runtime-rotation-app-helper") && name.ends_with(".json")
    });
    let routers = named(folder.join("app-bind"), |name| name.ends_with("-status.json"));
    let leases = named(folder.join("refresh-leases"), |name| name.ends_with(".lock"));
    let pid = proxies.iter().chain(&routers).chain(&leases).find_map(|path| live(path))?;
    Some(format!("codex-multi-auth is running (process {pid})"))
}
