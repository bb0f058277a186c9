//! What other programs have besides logins, in words of our own.
//!
//! Some of it has no use here yet: it is kept in `takeover/kept.json` (0600, checksummed), in a neutral
//! form with a layout number, described in `docs/takeover.md`. Each part is picked field by field,
//! by type; nothing is copied whole, so that no credential can come along.

use super::{Harvest, Into, codex_multi_auth::FORMAT, file, json, opencode_plugin};
use crate::{dirs, fault::Fault, store::Store};
use cma_proto::takeover::KeptInfo;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

/// Of the file as a whole.
const LAYOUT: u32 = 1;
/// As much of one ledger as is read; a row is about 500 bytes.
const MAX_LEDGER: u64 = 64 * 1024 * 1024;
/// A row is far below; what is longer is none.
const MAX_ROW: u64 = 64 * 1024;
/// Days, models, projects and accounts multiply; beyond this it is no person's ledger.
const MAX_SUMS: usize = 50_000;
/// Entries of one file.
const MAX_ENTRIES: usize = 10_000;
/// Ledgers are archived; more than this is not one person's.
const MAX_LEDGERS: usize = 64;

/// One part of what was found.
#[derive(Debug)]
pub(crate) struct Kept {
    what: &'static str,
    format: &'static str,
    path: PathBuf,
    count: usize,
    /// None where nothing here will ever use it.
    data: Option<Value>,
    reason: &'static str,
}

impl Kept {
    pub(crate) fn info(&self) -> KeptInfo {
        KeptInfo {
            what: self.what.to_owned(),
            path: self.path.display().to_string(),
            count: u32::try_from(self.count).unwrap_or(u32::MAX),
            fate: if self.data.is_some() { "kept" } else { "no_equivalent" }.to_owned(),
            reason: self.reason.to_owned(),
        }
    }
}

/// The file `takeover/kept.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    layout: u32,
    parts: Vec<Part>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    what: String,
    format: String,
    path: String,
    /// Seconds since 1970.
    taken_at: u64,
    data: Value,
}

/// Makes the parts durable; one taken again replaces its former self. Blocks on the disk.
///
/// # Errors
/// [`ErrorCode::Store`](cma_proto::error::ErrorCode::Store).
pub(crate) fn save(store: &Store, root: &Path, kept: &[Kept], now: u64) -> Result<(), Fault> {
    let mut parts = kept.iter().filter_map(|one| {
        Some(Part {
            what: one.what.to_owned(),
            format: one.format.to_owned(),
            path: one.path.display().to_string(),
            taken_at: now,
            data: one.data.clone()?,
        })
    });
    let Some(first) = parts.next() else { return Ok(()) };
    let folder = root.join("takeover");
    dirs::private_dir(&folder)?;
    let path = folder.join("kept.json");
    let mut file: File = store.get(&path)?.unwrap_or_default();
    file.layout = LAYOUT;
    for part in std::iter::once(first).chain(parts) {
        file.parts.retain(|old| (&old.what, &old.path) != (&part.what, &part.path));
        file.parts.push(part);
    }
    store.put(&path, &file)
}

/// How one file is read into its neutral form: the entries' number and themselves.
type Read = fn(&Value) -> (usize, Value);

/// The files beside the predecessor's accounts.
const BESIDE: [(&str, &str, Read, &str); 5] = [
    ("budgets", "budget-guards.json", budgets, "no budgets here yet"),
    ("routing profiles", "routing-profiles.json", profiles, "no profiles here yet"),
    (
        "policy weights",
        "account-policies.json",
        weights,
        "tags, remarks and pauses are taken over; weights wait",
    ),
    ("quota cache", "quota-cache.json", quota, "upstream tells the truth with the first answer"),
    (
        "local client tokens",
        "local-client-tokens.json",
        clients,
        "only their hashes exist; no server here takes them yet",
    ),
];

/// What has no use here, and why.
const NOTHING: [(&str, &str, &str); 3] = [
    ("counters", "runtime-observability.json", "`cmactl status` has its own"),
    ("desktop binding", "app-bind/runtime-rotation-app-bind.json", "undo it with its own program"),
    ("set-up marks", "first-run-setup.json", "there is no set-up here"),
];

/// Everything beside the predecessor's accounts.
pub(super) fn beside(folder: &Path, harvest: &mut Harvest) {
    for (what, name, read, reason) in BESIDE {
        part(what, &folder.join(name), read, reason, harvest);
    }
    // The first that is there, newest layout first.
    let settings = ["settings.json", "dashboard-settings.json", "config.json"];
    if let Some(path) = settings.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
        self::settings(&path, harvest);
    }
    ledgers(&folder.join("usage"), harvest);
    for (what, name, reason) in NOTHING {
        let path = folder.join(name);
        if path.exists() {
            harvest.kept.push(Kept { what, format: FORMAT, path, count: 1, data: None, reason });
        }
    }
}

/// A file of the predecessor's settings.
pub(super) fn settings(path: &Path, harvest: &mut Harvest) {
    part("settings", path, settings_of, "they are another program's knobs", harvest);
}

fn part(what: &'static str, path: &Path, read: Read, reason: &'static str, harvest: &mut Harvest) {
    if path.symlink_metadata().is_err() {
        return;
    }
    match file::json(path) {
        Ok(value) if value.is_object() => {
            let (count, data) = read(&value);
            let kept =
                Kept { what, format: FORMAT, path: path.into(), count, data: Some(data), reason };
            harvest.kept.push(kept);
        },
        Ok(_other) => Into::new(harvest, FORMAT, path).failed("refused", "it is no JSON object"),
        Err(reason) => Into::new(harvest, FORMAT, path).failed("refused", reason),
    }
}

/// What of a plugin's store is no login.
pub(super) fn of_plugin(path: &Path, value: &Value, harvest: &mut Harvest) {
    let mut data = Map::new();
    for name in ["rotationStrategy", "activeAlias"] {
        data.extend(json::name(value, name).map(|text| (snake(name), text.into())));
    }
    if let Some(settings) = value.get("settings") {
        data.extend(scalars(settings));
        let weights = settings.get("accountWeights").map(scalars).unwrap_or_default();
        if !weights.is_empty() {
            data.insert("account_weights".to_owned(), Value::Object(weights));
        }
    }
    if !data.is_empty() {
        harvest.kept.push(Kept {
            what: "rotation settings",
            format: opencode_plugin::FORMAT,
            path: path.to_path_buf(),
            count: data.len(),
            data: Some(Value::Object(data)),
            reason: "they are another program's knobs",
        });
    }
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// Yes, no, numbers and short words of an object, by names in our spelling.
fn scalars(value: &Value) -> Map<String, Value> {
    let fields = value.as_object().into_iter().flatten().take(MAX_ENTRIES);
    let plain = |(name, held): (&String, &Value)| {
        let held_in = json!({ "it": held });
        let held = match held {
            Value::Bool(_) | Value::Number(_) => held.clone(),
            Value::String(_) => Value::String(json::name(&held_in, "it")?),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        Some((snake(&json::label(name)?), held))
    };
    fields.filter_map(plain).collect()
}

/// The entries of the object `name`, each through `pick`.
fn entries(value: &Value, name: &str, pick: impl Fn(&str, &Value) -> Value) -> Vec<Value> {
    let map = value.get(name).and_then(Value::as_object).into_iter().flatten();
    map.filter(|(_key, held)| held.is_object())
        .filter_map(|(key, held)| Some(pick(&json::label(key)?, held)))
        .take(MAX_ENTRIES)
        .collect()
}

fn counted(list: Vec<Value>) -> (usize, Value) {
    (list.len(), Value::Array(list))
}

fn budgets(value: &Value) -> (usize, Value) {
    counted(entries(value, "limits", |key, held| {
        json!({
            "key": key,
            "window": json::name(held, "window"),
            "max_requests": json::number(held, "maxRequests"),
            "max_tokens": json::number(held, "maxTokens"),
            "max_cost_usd": held.get("maxCostUsd").and_then(Value::as_f64),
        })
    }))
}

fn profiles(value: &Value) -> (usize, Value) {
    counted(entries(value, "profiles", |key, held| {
        json!({
            "project": key,
            "name": json::name(held, "projectName"),
            "folder": json::line(held, "identityRoot"),
            "preferred_tags": json::words(held, "preferredTags"),
            "avoid_tags": json::words(held, "avoidTags"),
            "models_allowed": json::words(held, "modelAllowlist"),
            "models_denied": json::words(held, "modelDenylist"),
            "weights": held.get("accountWeightByKey").map(hashes).unwrap_or_default(),
            "budget": json::name(held, "budgetKey"),
        })
    }))
}

/// Numbers by account hash, which is longer than a label.
fn hashes(value: &Value) -> Map<String, Value> {
    let fields = value.as_object().into_iter().flatten();
    fields
        .filter(|(key, held)| key.starts_with("sha256:") && key.len() <= 71 && held.is_number())
        .take(MAX_ENTRIES)
        .map(|(key, held)| (key.clone(), held.clone()))
        .collect()
}

fn weights(value: &Value) -> (usize, Value) {
    let map = value.get("accounts").and_then(Value::as_object).into_iter().flatten();
    let weights: Map<String, Value> = map
        .filter(|(key, _)| key.starts_with("sha256:") && key.len() <= 71)
        .filter_map(|(key, held)| Some((key.clone(), held.get("weight")?.as_f64()?.into())))
        .take(MAX_ENTRIES)
        .collect();
    (weights.len(), Value::Object(weights))
}

fn quota(value: &Value) -> (usize, Value) {
    let window = |held: &Value, name: &str| {
        let window = held.get(name)?;
        Some(json!({
            "used_percent": window.get("usedPercent").and_then(Value::as_f64),
            "minutes": json::number(window, "windowMinutes"),
            "resets_at": json::millis(window, "resetAtMs"),
        }))
    };
    let entry = |by: &str, key: &str, held: &Value| {
        json!({
            by: key,
            "seen_at": json::millis(held, "updatedAt"),
            "plan": json::name(held, "planType"),
            "primary": window(held, "primary"),
            "secondary": window(held, "secondary"),
        })
    };
    let mut list = entries(value, "byAccountId", |key, held| entry("workspace", key, held));
    list.extend(entries(value, "byEmail", |key, held| entry("email", key, held)));
    counted(list)
}

fn clients(value: &Value) -> (usize, Value) {
    let list = value.get("tokens").and_then(Value::as_array).into_iter().flatten();
    let hash =
        |held: &Value| json::text(held, "tokenHash").filter(|hash| hash.starts_with("sha256:"));
    counted(
        list.filter_map(|held| {
            Some(json!({
                "id": json::name(held, "id")?,
                "label": json::name(held, "label"),
                "hash": hash(held).filter(|hash| hash.len() <= 71)?,
                "created_at": time(held, "createdAt"),
                "last_used_at": time(held, "lastUsedAt"),
                "revoked_at": time(held, "revokedAt"),
            }))
        })
        .take(MAX_ENTRIES)
        .collect(),
    )
}

/// A time as its file tells it: milliseconds, or text.
fn time(value: &Value, name: &str) -> Value {
    json::millis(value, name)
        .map(Value::from)
        .or_else(|| json::name(value, name).map(Value::from))
        .unwrap_or_default()
}

fn settings_of(value: &Value) -> (usize, Value) {
    let of = |name: &str| value.get(name).map(scalars).unwrap_or_default();
    let (mut proxy, shown) = (of("pluginConfig"), of("dashboardDisplaySettings"));
    // The older files are flat.
    if proxy.is_empty() && shown.is_empty() {
        proxy = scalars(value);
    }
    (proxy.len() + shown.len(), json!({ "proxy": proxy, "display": shown }))
}

/// What makes two rows one sum.
type Key = (String, [Option<String>; 5]);

/// The usage ledger and its archives, summed up by day, project, model, operation, outcome and
/// account.
fn ledgers(folder: &Path, harvest: &mut Harvest) {
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        name.starts_with("usage-ledger.") && name.ends_with(".jsonl")
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> =
        entries.map(|entry| entry.path()).filter(named).take(MAX_LEDGERS).collect();
    paths.sort();
    for path in paths {
        match ledger(&path) {
            Ok((rows, damaged, sums)) => {
                harvest.kept.push(Kept {
                    what: "usage ledger",
                    format: FORMAT,
                    path: path.clone(),
                    count: rows,
                    data: Some(json!({ "rows": rows, "damaged_rows": damaged, "sums": sums })),
                    reason: "summed up by day; no usage reports here yet",
                });
                if damaged > 0 {
                    let note = format!("`{}`: {damaged} rows are damaged", path.display());
                    harvest.notes.push(note);
                }
            },
            Err(reason) => Into::new(harvest, FORMAT, &path).failed("refused", reason),
        }
    }
}

fn ledger(path: &Path) -> Result<(usize, usize, Vec<Value>), String> {
    let mut lines = BufReader::new(file::open(path)?).take(MAX_LEDGER);
    let (mut rows, mut damaged) = (0, 0);
    let mut sums: BTreeMap<Key, (u64, BTreeMap<&'static str, u64>)> = BTreeMap::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.by_ref().take(MAX_ROW).read_until(b'\n', &mut line);
        if read.map_err(|error| format!("it can't be read: {error}"))? == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = file::parse(&line).ok();
        let Some((key, row)) = row.and_then(|row| Some((key(&row)?, row))) else {
            damaged += 1;
            continue;
        };
        rows += 1;
        if sums.len() >= MAX_SUMS && !sums.contains_key(&key) {
            continue;
        }
        let sum = sums.entry(key).or_default();
        sum.0 += 1;
        for (name, ours) in TOKENS {
            let count = row.get("tokens").and_then(|tokens| json::number(tokens, name));
            let total = sum.1.entry(ours).or_default();
            *total = total.saturating_add(count.unwrap_or_default());
        }
    }
    let told = |((day, [project, model, operation, outcome, account]), (requests, tokens)): (
        Key,
        (u64, BTreeMap<&'static str, u64>),
    )| {
        json!({
            "day": day, "project": project, "model": model, "operation": operation,
            "outcome": outcome, "account": account, "requests": requests, "tokens": tokens,
        })
    };
    Ok((rows, damaged, sums.into_iter().map(told).collect()))
}

/// Token counts of a row, and what they are called here.
const TOKENS: [(&str, &str); 4] = [
    ("inputTokens", "input"),
    ("outputTokens", "output"),
    ("cachedInputTokens", "cached"),
    ("reasoningTokens", "reasoning"),
];

fn key(row: &Value) -> Option<Key> {
    let day = match row.get("createdAt")? {
        Value::String(text) => text.get(..10)?.to_owned(),
        // Milliseconds: days since 1970, which sort alike.
        Value::Number(_) => format!("day {}", json::millis(row, "createdAt")? / 86_400),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let account = row.get("account").and_then(|account| json::text(account, "accountHash"));
    let account = account.filter(|hash| hash.starts_with("sha256:") && hash.len() <= 71);
    let [project, model, operation, outcome] =
        ["projectKey", "model", "operation", "outcome"].map(|name| json::name(row, name));
    Some((json::label(&day)?, [project, model, operation, outcome, account]))
}
