//! The rules that no compiler checks, checked by reading the repository.
//!
//! `UPDATE=1 cargo test -p cma-tests --test it tidy` rewrites what is generated.

use cma_proto::error::ErrorCode;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A file has one subject; what is longer than this has several.
const MAX_LINES: usize = 800;
/// Files that may be longer, and why.
const LONG: [(&str, &str); 0] = [];

/// The daemon's floors, lowest first: who may not look at whom.
const GROUND: [&str; 12] = [
    "config", "network", "names", "dirs", "clock", "sys", "fault", "crash", "disk", "trouble",
    "truth", "gather",
];
const KEEPERS: [&str; 8] =
    ["actor", "roster", "vault", "store", "cache", "ledger", "budgets", "tokens"];
const ROOMS: [&str; 8] =
    ["proxy", "ipc", "renewal", "upstream", "launch", "login", "mirror", "handover"];
/// The stairs between rooms, and from the actor to the task that it starts.
const STAIRS: [(&str, &str); 15] = [
    ("proxy", "upstream"),
    // What the old daemon still serves gets its tokens from the new one.
    ("renewal", "handover"),
    ("handover", "renewal::Fresh"),
    ("ipc", "handover"),
    // Its tests build a whole pool.
    ("login", "renewal::Renewer"),
    ("upstream", "proxy::body"),
    ("ipc", "proxy::trace"),
    ("ipc", "launch"),
    ("ipc", "mirror"),
    ("ipc", "proxy::aux"),
    ("ipc", "proxy::surface"),
    ("ipc", "renewal::PERMANENT"),
    ("ipc", "renewal::UNKNOWN"),
    ("launch", "proxy::keys"),
    ("actor", "renewal::Renewer"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The repository's files, by git; without one (a source archive) all that lie there.
fn files() -> Vec<String> {
    let git = Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output();
    let listed: Vec<String> = match git {
        Ok(git) if git.status.success() => git
            .stdout
            .split(|byte| *byte == 0)
            .map(|name| String::from_utf8_lossy(name).into())
            .collect(),
        _ => {
            let mut found = Vec::new();
            walk(&root(), &mut found);
            found
        },
    };
    listed.into_iter().filter(|file| root().join(file).is_file()).collect()
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if ["target", ".git", "node_modules"].iter().any(|skipped| name == *skipped) {
            continue;
        }
        if path.is_dir() {
            walk(&path, found);
        } else if let Ok(path) = path.strip_prefix(root()) {
            found.push(path.to_string_lossy().replace('\\', "/"));
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|file| file.ends_with(".rs"));
    rust.map(|file| (read(&file), file)).map(|(text, file)| (file, text)).collect()
}

/// Fails with all findings at once.
fn none(rule: &str, findings: impl IntoIterator<Item = String>) {
    let findings: Vec<_> = findings.into_iter().collect();
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

#[test]
fn files_are_short() {
    let allowed = |file: &str| LONG.iter().any(|(long, _why)| *long == file);
    let long = sources()
        .into_iter()
        .map(|(file, text)| (text.lines().count(), file))
        .filter(|(lines, file)| *lines > MAX_LINES && !allowed(file))
        .map(|(lines, file)| format!("{file}: {lines} lines, {MAX_LINES} allowed"));
    none("a file with several subjects (split it, or say in `LONG` why not)", long);
    let gone = LONG.iter().filter(|(file, _why)| !root().join(file).exists());
    none("listed in `LONG` and not there", gone.map(|(file, _why)| (*file).to_owned()));
}

#[test]
fn every_module_says_what_it_is() {
    let silent = sources()
        .into_iter()
        .filter(|(file, text)| !text.starts_with("//!") && !file.ends_with("/tests.rs"))
        .map(|(file, _text)| file);
    none("a module without `//!` on its first line", silent);
}

#[test]
fn nothing_unfinished_is_left() {
    // Put together here, so that this file is not a finding.
    let words = ["todo", "dbg", "unimplemented"].map(|word| format!("{word}!("));
    let ignored = format!("#[{}", "ignore");
    let found: Vec<_> = sources()
        .iter()
        .flat_map(|(file, text)| text.lines().enumerate().map(move |(at, line)| (file, at, line)))
        .filter(|(_, _, line)| {
            words.iter().any(|word| line.contains(word)) || line.trim_start().starts_with(&ignored)
        })
        .map(|(file, at, line)| format!("{file}:{}: {}", at + 1, line.trim()))
        .collect();
    none("unfinished", found);
}

#[test]
fn daemon_modules_keep_to_their_floor() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        let Some(path) = file.strip_prefix("daemon/src/") else { continue };
        let module = path.split(['/', '.']).next().unwrap_or_default();
        for used in mentions(&text) {
            let target = used.split("::").next().unwrap_or_default();
            let stair = STAIRS.iter().any(|(from, to)| {
                *from == module && (used == *to || used.starts_with(&format!("{to}::")))
            });
            let (room, keeper) = (ROOMS.contains(&target), KEEPERS.contains(&target));
            let allowed = target == module
                || stair
                || if GROUND.contains(&module) {
                    GROUND.contains(&target)
                } else if KEEPERS.contains(&module) {
                    !room
                } else {
                    !ROOMS.contains(&module) || !room || keeper
                };
            if !allowed {
                broken.push(format!("{file} uses `crate::{used}`"));
            }
        }
    }
    none("a look up or sideways (see docs/architecture.md; a stair goes into `STAIRS`)", broken);
}

/// What a file uses of its crate, two segments deep, in `use` trees and in paths.
fn mentions(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, " "])
        .collect();
    let mut found = BTreeSet::new();
    for (at, word) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if !before.is_alphanumeric() && before != '_' && before != ':' {
            tree(&code[at + word.len()..], "", &mut found);
        }
    }
    found
}

/// Reads one path or brace group and returns what follows it.
fn tree<'a>(text: &'a str, prefix: &str, found: &mut BTreeSet<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if rest.is_empty() {
                return rest;
            }
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let before = rest.len();
            rest = tree(rest, prefix, found);
            if rest.len() == before {
                return "";
            }
        }
    }
    let end =
        text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = match (prefix.is_empty(), name) {
        (true, name) => name.to_owned(),
        (false, "self") => prefix.to_owned(),
        (false, name) => format!("{prefix}::{name}"),
    };
    match rest.strip_prefix("::") {
        Some(deeper) => tree(deeper, &path, found),
        None => {
            found.insert(path.split("::").take(2).collect::<Vec<_>>().join("::"));
            rest
        },
    }
}

#[test]
fn mentions_are_read_from_trees_and_paths() {
    let text = "use crate::{\n  a::{self, B, c::D},\n  e,\n};\nuse x_crate::no;\n// crate::no\nlet y = crate::f::g();";
    assert_eq!(
        mentions(text).into_iter().collect::<Vec<_>>(),
        ["a", "a::B", "a::c", "e", "f::g"].map(String::from)
    );
}

/// The names under `[dependencies]` (for any target) of a manifest.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in read(manifest).lines() {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.trim_end_matches(']').rsplit('.').next() == Some("dependencies");
        } else if let Some((name, _rest)) = line.split_once(['.', ' ', '=']).filter(|_| inside) {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn foundations_stay_small() {
    let only = |manifest: &str, allowed: &[&str]| {
        let more = dependencies(manifest).into_iter().filter(|name| !allowed.contains(&&**name));
        none(&format!("dependencies that {manifest} may not have"), more);
    };
    // `bytes` is a dependency of `http`: pieces of a body, no way to get them.
    only(
        "daemon/core/Cargo.toml",
        &["bytes", "fastrand", "http", "memchr", "serde", "serde_json", "simdutf8", "thiserror"],
    );
    only("proto/Cargo.toml", &["bincode", "serde", "serde_json", "interprocess", "rustix"]);
    only("shims/Cargo.toml", &["cma-proto"]);
    assert!(
        !dependencies("ctl/Cargo.toml").iter().any(|name| name == "cma-core" || name == "tokio")
    );
    assert!(dependencies("daemon/Cargo.toml").len() > 5, "the reading of manifests works");
}

#[test]
fn every_scenario_file_is_listed() {
    let main = read("tests/it/main.rs");
    let lost = files()
        .into_iter()
        .filter_map(|file| Some(file.strip_prefix("tests/it/")?.strip_suffix(".rs")?.to_owned()))
        .filter(|name| name != "main" && !name.contains('/'))
        .filter(|name| !main.lines().any(|line| line.trim() == format!("mod {name};")));
    none("files of tests/it that main.rs doesn't list, so that they never run", lost);
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    let folders = ["work", "farm", "root"].map(|folder| format!("/{folder}/"));
    let inner = |c: char| c.is_alphanumeric() || "_-./~}>*".contains(c);
    let mut found = Vec::new();
    for file in files() {
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        for (at, line) in text.lines().enumerate() {
            let starts = folders.iter().any(|folder| {
                line.match_indices(folder.as_str()).any(|(at, _)| !line[..at].ends_with(inner))
            });
            if starts {
                found.push(format!("{file}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    none("paths of the machine this was written on", found);
}

/// FNV-1a, 64 bit: tells a change, not an attack.
fn digest(text: &str) -> String {
    let hash =
        text.bytes().filter(|byte| *byte != b'\r').fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{hash:016x}")
}

/// Compares a part of a document with what it should be; `UPDATE=1` rewrites it.
fn generated(document: &str, begin: &str, end: &str, wanted: &str) {
    let text = read(document);
    let part = text.split_once(begin).and_then(|(before, rest)| {
        let (part, after) = rest.split_once(end)?;
        Some((before, part, after))
    });
    let (before, part, after) = part.unwrap_or_else(|| panic!("{document} has no `{begin}…{end}`"));
    if part == wanted {
        return;
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join(document), format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        return;
    }
    panic!(
        "{document} says\n{part}\nand it should be\n{wanted}\n\
         Run `UPDATE=1 cargo test -p cma-tests --test it tidy` and read the diff."
    );
}

#[test]
fn the_protocols_description_is_of_these_messages() {
    // A change of `message.rs` that is not a comment is a new protocol version: bincode is
    // positional. Whoever updates the digest has thought of that, and of the page's text.
    let wanted = digest(&read("proto/src/message.rs"));
    generated("docs/protocol.md", "<!-- digest of proto/src/message.rs: ", " -->", &wanted);
    let versions = format!("{} to {}", cma_proto::PROTOCOL_MIN, cma_proto::PROTOCOL);
    generated("docs/protocol.md", "<!-- versions: ", " -->", &versions);
}

#[test]
fn the_table_of_errors_is_that_of_the_code() {
    use std::fmt::Write as _;
    let source = read("proto/src/error.rs");
    let (_, codes) = source.split_once("codes! {\n").unwrap();
    let mut table = "\n| code | exit | meaning |\n| --- | ---: | --- |\n".to_owned();
    for code in ErrorCode::ALL {
        let entry = format!(" = {}, \"{}\";", code.exit_code(), code.name());
        let (before, _) = codes.split_once(&entry).unwrap_or_else(|| panic!("no `{entry}`"));
        let meaning: Vec<_> = before
            .lines()
            .rev()
            .skip(1)
            .map_while(|line| line.trim().strip_prefix("/// "))
            .collect();
        let meaning = meaning.into_iter().rev().collect::<Vec<_>>().join(" ");
        writeln!(table, "| `{}` | {} | {meaning} |", code.name(), code.exit_code()).unwrap();
    }
    generated("docs/errors.md", "<!-- codes -->", "<!-- end of codes -->", &table);
}
