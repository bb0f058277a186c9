//! What two runs may differ in: ids, times, ports and folders, each replaced by a word for it.
//!
//! The list is whole: what isn't replaced here has to be equal. `docs/conformance.md` says the same
//! in words.

use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Folders of the Codex home that aren't compared, and why.
const APART: [(&str, &str); 5] = [
    ("multi-auth", "the pool's own"),
    ("tmp", "lock files of running CLIs, removed at their next start"),
    (".tmp", "the same"),
    ("shell_snapshots", "the environment, removed at the CLI's end or not"),
    ("skills", "unpacked from the CLI's own binary"),
];
/// Files that are compared by name only, by how they end, and why.
const BY_NAME: [(&str, &str); 3] = [
    (".sqlite", "times and ids throughout"),
    (".lock", "empty"),
    ("cloud-config-bundle-cache.json", "signed, with its time"),
];
/// Files that aren't compared, by what their names contain, and why.
const NEITHER: [(&str, &str); 3] = [
    ("auth.json", "each has its login where its way of signing in wants it"),
    ("auth.lock", "the same"),
    (".sqlite-", "journals that a later start removes"),
];
/// The least number that is a time (seconds since 1970 in 2001).
const TIMES: f64 = 1e9;

/// Replaces what two runs may differ in.
#[derive(Debug)]
pub(super) struct Normal {
    dir: String,
}

type Taken = (usize, String);

impl Normal {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.display().to_string() }
    }

    /// Text without ids, times, ports and folders.
    pub(super) fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        let mut before = ' ';
        while let Some(next) = rest.chars().next() {
            let taken = if before.is_ascii_alphanumeric() { None } else { self.at(rest) };
            let (len, word) = taken.unwrap_or_else(|| (next.len_utf8(), next.to_string()));
            before = rest[..len].chars().last().unwrap_or(' ');
            out.push_str(&word);
            rest = &rest[len..];
        }
        out
    }

    fn at(&self, text: &str) -> Option<Taken> {
        if text.starts_with(&self.dir) {
            return Some((self.dir.len(), "<dir>".to_owned()));
        }
        broken(text)
            .or_else(|| tool(text))
            .or_else(|| url(text))
            .or_else(|| uuid(text))
            .or_else(|| instant(text))
            .or_else(|| clock(text))
            .or_else(|| number(text))
            .or_else(|| epoch(text))
    }

    /// JSON without the same, and without members that are times by their name.
    pub(super) fn json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) if text.starts_with('{') => Value::String(self.line(text)),
            Value::String(text) => Value::String(self.text(text)),
            Value::Number(number) if number.as_f64().is_some_and(|it| it >= TIMES) => {
                Value::String("<time>".to_owned())
            },
            Value::Array(all) => all.iter().map(|one| self.json(one)).collect(),
            Value::Object(all) => {
                let kept = all.iter().filter(|(name, _)| !is_time(name));
                kept.map(|(name, value)| (self.text(name), self.json(value))).collect()
            },
            other => other.clone(),
        }
    }

    /// A line of JSON as far as it is some.
    pub(super) fn line(&self, line: &str) -> String {
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value.is_object() => self.json(&value).to_string(),
            _ => self.text(line),
        }
    }

    /// The files below the Codex home, by name, with their lines.
    pub(super) fn tree(&self, home: &Path) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::new();
        for file in cma_tests::world::files(home) {
            let Ok(name) = file.strip_prefix(home) else { continue };
            let top =
                name.components().next().map(|it| it.as_os_str().to_string_lossy().into_owned());
            let whole = name.to_string_lossy().into_owned();
            let apart = APART.iter().any(|(folder, _)| top.as_deref() == Some(folder));
            if apart || NEITHER.iter().any(|(part, _)| whole.contains(part)) {
                continue;
            }
            let lines = if BY_NAME.iter().any(|(end, _)| whole.ends_with(end)) {
                Vec::new()
            } else {
                self.lines(&file)
            };
            let name = self.text(&whole);
            let again = found.keys().filter(|known: &&String| known.starts_with(&name)).count();
            found.insert(if again == 0 { name } else { format!("{name} #{again}") }, lines);
        }
        found
    }

    fn lines(&self, file: &PathBuf) -> Vec<String> {
        let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
        match serde_json::from_str::<Value>(&text) {
            Ok(value) => vec![self.json(&value).to_string()],
            Err(_lines) => text.lines().map(|line| self.line(line)).collect(),
        }
    }
}

/// How a connection ended, in the words of the CLI's libraries: the daemon ends its own in the same
/// place, but it can't break in the same way.
fn broken(text: &str) -> Option<Taken> {
    const WAYS: [&str; 6] = [
        "IO error: Connection reset by peer (os error 104)",
        "websocket closed by server before response.completed",
        "WebSocket protocol error: Connection reset without closing handshake",
        "stream closed before response.completed",
        "Transport error: network error: error decoding response body",
        "Transport error: error decoding response body",
    ];
    WAYS.iter().find(|way| text.starts_with(**way)).map(|way| (way.len(), "<broken>".to_owned()))
}

/// What the CLI says of a command: `Chunk ID: fba269`, `Wall time: 0.0392 seconds`.
fn tool(text: &str) -> Option<Taken> {
    for start in ["Chunk ID: ", "Wall time: "] {
        let Some(rest) = text.strip_prefix(start) else { continue };
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(rest.len());
        return Some((start.len() + end, format!("{start}<…>")));
    }
    None
}

/// Members whose values are times, spans, what a cache is known by, or sealed for one account.
fn is_time(name: &str) -> bool {
    let exact = [
        "timestamp",
        "secs",
        "nanos",
        "duration",
        "etag",
        "fetched_at",
        "identity",
        "process_id",
        "processId",
        "end_byte_offset",
        "encrypted_content",
        // What git says of the folder, which the CLI sends once it knows: a race of its own.
        "workspaces",
    ];
    exact.contains(&name)
        || name.ends_with("_ms")
        || name.ends_with("_seconds")
        || name.ends_with("Ms")
}

/// An address on loopback: the upstream's or the daemon's, by what it stands for.
fn url(text: &str) -> Option<Taken> {
    let start = ["http://127.0.0.1:", "ws://127.0.0.1:", "127.0.0.1:"]
        .into_iter()
        .find(|start| text.starts_with(start))?;
    let rest = &text[start.len()..];
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    if digits == 0 {
        return None;
    }
    let path = &rest[digits..];
    let end = path
        .find(|c: char| !(c.is_ascii_alphanumeric() || "/-_.~%".contains(c)))
        .unwrap_or(path.len());
    let path = &path[..end];
    let mut short = path;
    if let Some(own) = short.strip_prefix("/own/") {
        short = own.find('/').map_or("", |at| &own[at..]);
    }
    short = short.strip_prefix("/backend-api").unwrap_or(short);
    short = short.strip_prefix("/.").filter(|it| it.starts_with('/')).unwrap_or(short);
    let scheme = start.split("127").next().unwrap_or_default();
    Some((start.len() + digits + end, format!("{scheme}<upstream>{short}")))
}

fn uuid(text: &str) -> Option<Taken> {
    let part = text.get(..36)?;
    let good = part.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    good.then(|| (36, "<id>".to_owned()))
}

/// `2026-11-21T10:35:37.156768Z`, also as in file names, and its date alone as folders.
fn instant(text: &str) -> Option<Taken> {
    let shaped = |shape: &str| {
        text.len() >= shape.len()
            && text.bytes().zip(shape.bytes()).all(|(byte, like)| match like {
                b'0' => byte.is_ascii_digit(),
                b'?' => byte == b':' || byte == b'-',
                _ => byte == like,
            })
    };
    if shaped("0000-00-00T00?00?00") {
        let more = text[19..].find(|c: char| !(c.is_ascii_digit() || c == '.' || c == 'Z'));
        return Some((19 + more.unwrap_or(text.len() - 19), "<when>".to_owned()));
    }
    if shaped("0000/00/00/") {
        return Some((10, "<date>".to_owned()));
    }
    shaped("0000-00-00").then(|| (10, "<date>".to_owned()))
}

/// `3:04 AM`, and the same with a date before it: `Nov 22nd, 2026 3:04 AM`.
fn clock(text: &str) -> Option<Taken> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    if MONTHS.iter().any(|month| text.starts_with(month)) {
        let end = text.get(..26.min(text.len()))?.find('M')?;
        let (date, time) = text[..end].split_once(", ")?;
        let good = date.len() < 10 && time.contains(':');
        return good.then(|| (end + 1, "<clock>".to_owned()));
    }
    let end = text.get(..8.min(text.len()))?.find('M')? + 1;
    let words = &text[..end];
    let good = words.contains(':')
        && words.bytes().all(|byte| byte.is_ascii_digit() || b": APM".contains(&byte));
    good.then(|| (end, "<clock>".to_owned()))
}

/// `1795443586.6682317`, seconds since 1970.
fn epoch(text: &str) -> Option<Taken> {
    let (seconds, rest) = text.split_once('.')?;
    let after = rest.bytes().take_while(u8::is_ascii_digit).count();
    let good =
        seconds.len() == 10 && seconds.bytes().all(|byte| byte.is_ascii_digit()) && after > 2;
    good.then(|| (11 + after, "<when>".to_owned()))
}

/// `resp_sim_12`: the simulated upstream counts.
fn number(text: &str) -> Option<Taken> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
    let word = &text[..end.unwrap_or(text.len())];
    let at = word.find("_sim_")? + "_sim_".len();
    let digits = !word[at..].is_empty() && word[at..].bytes().all(|byte| byte.is_ascii_digit());
    if digits {
        return Some((word.len(), format!("{}<n>", &word[..at])));
    }
    None
}
