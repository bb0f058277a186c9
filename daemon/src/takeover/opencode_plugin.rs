//! The store of the OpenCode plugin (opencode-multi-auth): a map (with and without a version), the
//! array layout of its forks, and the sealed form of each.
//!
//! An unreadable store is looked for in its last-known-good copy and its backup, as the plugin does.

use super::{
    Draft, Harvest, Into, file, json, kept,
    sealed::{self, Shut},
    token::Raw,
};
use crate::store::record::Gone;
use secrecy::SecretString;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(super) const FORMAT: &str = "opencode-multi-auth";

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// A store where the plugin keeps it.
pub(super) fn store(
    path: &Path,
    passphrase: Option<&SecretString>,
    now: u64,
    harvest: &mut Harvest,
) {
    let whole = |value: Value| {
        let sealed = json::flag(&value, "encrypted") == Some(true);
        let map = value.get("accounts").is_some_and(|held| held.is_object() || held.is_array());
        if sealed || map { Ok(value) } else { Err("it has no accounts".to_owned()) }
    };
    let read = |path: &Path| file::json(path).and_then(whole);
    let (value_read, spare) = match read(path) {
        Ok(value) => (value, None),
        Err(reason) => {
            let spare = [".lkg", ".bak"]
                .into_iter()
                .find_map(|suffix| Some((read(&beside(path, suffix)).ok()?, suffix)));
            let Some((value, suffix)) = spare else {
                return Into::new(harvest, FORMAT, path).failed("refused", reason);
            };
            (value, Some(format!("{reason}; read from its `{suffix}` instead")))
        },
    };
    let before = harvest.sources.len();
    value(path, &value_read, passphrase, now, harvest);
    if let Some(source) = harvest.sources.get_mut(before) {
        source.notes.extend(spare);
    }
}

/// A store's content, sealed or clear.
pub(super) fn value(
    path: &Path,
    value: &Value,
    passphrase: Option<&SecretString>,
    now: u64,
    harvest: &mut Harvest,
) {
    if json::flag(value, "encrypted") != Some(true) {
        return clear(path, value, now, harvest);
    }
    let shut = match sealed::open(value, passphrase) {
        Ok(text) => match file::parse(&text) {
            Ok(inner) => return clear(path, &inner, now, harvest),
            Err(reason) => ("refused", format!("it opens, but {reason}")),
        },
        Err(Shut::NoPassphrase) => (
            "sealed",
            "it is sealed: set `CMA_IMPORT_PASSPHRASE`, or run this in a terminal to be asked"
                .to_owned(),
        ),
        Err(Shut::Wrong) => (
            "sealed",
            "it doesn't open: the passphrase is wrong, or the file is damaged".to_owned(),
        ),
        Err(Shut::Broken(what)) => ("refused", what.to_owned()),
    };
    Into::new(harvest, FORMAT, path).failed(shut.0, shut.1);
}

fn clear(path: &Path, value: &Value, now: u64, harvest: &mut Harvest) {
    let mut into = Into::new(harvest, FORMAT, path);
    let locked = beside(path, ".lock").is_dir();
    let forced = forced(value, now);
    let note = if locked {
        format!(
            "`{}` is locked by a running program (or by one that died): end that program; `cmactl \
             login` signs in afresh",
            path.display()
        )
    } else {
        format!(
            "`{}` still holds the same login: use the plugin no more, or one of the two will spend \
             the other's refresh token; `cmactl login` signs in afresh",
            path.display()
        )
    };
    let named: Vec<(Option<&str>, &Value)> = match value.get("accounts") {
        Some(Value::Object(map)) => {
            map.iter().map(|(alias, account)| (Some(alias.as_str()), account)).collect()
        },
        Some(Value::Array(list)) => list.iter().map(|account| (None, account)).collect(),
        _ => return into.failed("refused", "it has no accounts"),
    };
    for (alias, account) in named {
        if !account.is_object() {
            into.accounts += 1;
            into.refuse(alias.unwrap_or("unnamed").to_owned(), None, "it is no account");
            continue;
        }
        let mut draft = draft(alias, account);
        draft.pinned = forced.is_some() && forced == draft.label;
        draft.notes.push(note.clone());
        into.add(draft);
    }
    into.read();
    kept::of_plugin(path, value, harvest);
}

/// The alias to which the plugin was forced, if it still is.
fn forced(value: &Value, now: u64) -> Option<String> {
    let alias = json::name(value, "forcedAlias")?;
    json::millis(value, "forcedUntil").is_none_or(|until| until > now).then_some(alias)
}

fn draft(alias: Option<&str>, account: &Value) -> Draft {
    let email = json::line(account, "email");
    let own = json::name(account, "alias");
    // The array layout has no alias: the local part of the address is what its program shows.
    let of_email = || {
        alias.is_none().then(|| email.as_deref()?.split('@').next().and_then(json::label)).flatten()
    };
    let label = alias.and_then(json::label).or(own).or_else(of_email);
    let gone = (json::flag(account, "authInvalid") == Some(true)).then(|| Gone {
        cause: "its renewal was refused in opencode-multi-auth".to_owned(),
        since: json::millis(account, "authInvalidatedAt").unwrap_or_default(),
    });
    let mut notes = Vec::new();
    if let Some(reason) = json::line(account, "disableReason") {
        notes.push(format!("it was disabled there: {reason}"));
    }
    Draft {
        name: label.clone().unwrap_or_default(),
        label,
        tags: json::words(account, "tags"),
        remark: json::line(account, "notes"),
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
            email,
        },
    }
}
