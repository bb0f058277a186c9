//! Taking over other programs' logins: every format comes to exactly the accounts that the table
//! says, no source changes by a byte, no token gets anywhere but into the vault.
//!
//! The fixtures and the table are made by `tests/fixtures/takeover/make.mjs`.

use cma_core::identity::AccountId;
use cma_proto::{
    client::Client,
    codec::Codec,
    endpoint::Root,
    message::{Reply, Request},
    takeover::{FoundInfo, Passphrase, Report, Scan, TakeoverReply, TakeoverRequest},
};
use cma_tests::{
    http::Door,
    sim::{AccountSpec, SimConfig},
    world::{Ran, World, eventually, files, signal},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// Mutants of each file.
const MUTANTS: u64 = 24;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/takeover")
}

fn table() -> Value {
    serde_json::from_slice(&fs::read(fixtures().join("expect.json")).unwrap()).unwrap()
}

/// A world, and a folder outside of it with a copy of the fixtures, which hold the canary.
struct Bench {
    world: World,
    foreign: tempfile::TempDir,
    table: Value,
    /// Daemons of roots that the world doesn't know.
    daemons: Mutex<Vec<u32>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in self.daemons.lock().drain(..) {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if program.file_name().is_some_and(|name| name == "cmad") {
                signal(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

type Photo = BTreeMap<PathBuf, (Vec<u8>, SystemTime, u32)>;

impl Bench {
    fn new() -> Self {
        let world = World::new(SimConfig::default());
        let foreign = tempfile::Builder::new().prefix("cma-foreign-").tempdir().unwrap();
        for file in files(&fixtures()) {
            let to = foreign.path().join(file.strip_prefix(fixtures()).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&file, &to).unwrap();
        }
        Self { world, foreign, table: table(), daemons: Mutex::default() }
    }

    fn passphrase(&self) -> &str {
        self.table["passphrase"].as_str().unwrap()
    }

    fn scan(&self, from: Option<&Path>) -> Scan {
        Scan {
            apply: false,
            from: from.map(|from| from.display().to_string()),
            home: self.world.path("home").display().to_string(),
            codex_home: self.world.codex_home().display().to_string(),
            environment: Vec::new(),
            passphrase: Some(Passphrase::new(self.passphrase().to_owned())),
        }
    }

    fn client(&self) -> Client {
        Client::connect(&Root::at(&self.world.root()), "test", Codec::Bincode).unwrap()
    }

    /// `cmactl` with the passphrase in its environment, for a root of its own.
    fn ctl(&self, root: &Path, args: &[&str]) -> Ran {
        let mut command = self.world.command("cmactl");
        command.env("CMA_IMPORT_PASSPHRASE", self.passphrase()).arg("--root").arg(root).args(args);
        let ran = self.world.finish(command);
        let lock = fs::read_to_string(root.join("run/daemon.lock")).unwrap_or_default();
        self.daemons.lock().extend(lock.trim().parse::<u32>());
        self.no_canary(ran)
    }

    fn no_canary(&self, ran: Ran) -> Ran {
        let canary = self.table["canary"].as_str().unwrap();
        assert!(!ran.stdout.contains(canary), "stdout: {}", ran.stdout);
        assert!(!ran.stderr.contains(canary), "stderr: {}", ran.stderr);
        for text in [&ran.stdout, &ran.stderr] {
            assert!(!text.contains(self.passphrase().trim()), "the passphrase is in {text}");
        }
        ran
    }

    /// Searches a root's files outside the vault.
    fn no_canary_outside_the_vault(&self, root: &Path, sources: &[PathBuf]) {
        let canary = self.table["canary"].as_str().unwrap().as_bytes();
        let passphrase = self.passphrase().trim().as_bytes();
        let vault = ["accounts", "removed", "backups"].map(|name| root.join(name));
        for file in files(root) {
            if vault.iter().any(|vault| file.starts_with(vault)) || sources.contains(&file) {
                continue;
            }
            let bytes = fs::read(&file).unwrap();
            for secret in [canary, passphrase] {
                assert!(memchr::memmem::find(&bytes, secret).is_none(), "in {}", file.display());
            }
        }
    }
}

fn ask(client: &mut Client, scan: Scan) -> Report {
    match client.call(&Request::Takeover(TakeoverRequest::Scan(scan))).unwrap() {
        Reply::Takeover(reply) => match *reply {
            TakeoverReply::Report(report) => report,
            TakeoverReply::Exported(_) => panic!("an export"),
        },
        other => panic!("{other:?}"),
    }
}

/// Every byte, time of change and mode under a folder.
fn photo(folder: &Path) -> Photo {
    use std::os::unix::fs::MetadataExt as _;
    files(folder)
        .into_iter()
        .map(|file| {
            let meta = fs::metadata(&file).unwrap();
            (file.clone(), (fs::read(&file).unwrap(), meta.modified().unwrap(), meta.mode()))
        })
        .collect()
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// One line of a report against one of the table.
#[track_caller]
fn check(what: &str, found: &FoundInfo, wanted: &Value) {
    let state = text(wanted, "state").unwrap();
    assert_eq!(found.state, state, "{what}: {found:?}");
    assert_eq!(found.taken, state == "new", "{what}: {found:?}");
    if state == "unusable" {
        let reason = text(wanted, "reason").unwrap();
        assert!(found.reason.contains(reason), "{what}: {found:?}");
        assert_eq!(found.account, None, "{what}");
        return;
    }
    let (user, workspace) = (text(wanted, "user").unwrap(), text(wanted, "workspace").unwrap());
    let id = AccountId::of(user, workspace);
    assert_eq!(found.account.as_deref(), Some(id.as_str()), "{what}: {found:?}");
    assert_eq!(found.workspace.as_deref(), Some(workspace), "{what}");
    assert_eq!(found.email.as_deref(), Some(&*format!("{user}@example.test")), "{what}");
    assert_eq!(found.pool.as_deref(), text(wanted, "pool"), "{what}");
    assert_eq!(found.flagged, wanted["flagged"] == true, "{what}: {found:?}");
    if let Some(note) = text(wanted, "note") {
        assert!(found.notes.iter().any(|line| line.contains(note)), "{what}: {found:?}");
    }
    if found.taken {
        assert_eq!(found.label.as_deref(), text(wanted, "label"), "{what}: {found:?}");
        assert_eq!(json!(found.tags), *wanted.get("tags").unwrap_or(&json!([])), "{what}");
        assert_eq!(found.enabled, wanted["enabled"] != false, "{what}: {found:?}");
        assert_eq!(found.plan.as_deref(), text(wanted, "plan").or(Some("plus")), "{what}");
    }
}

/// The pool of a root against the table's new accounts.
#[track_caller]
fn check_pool(what: &str, status: &Value, wanted: &[Value]) {
    let accounts = status["accounts"].as_array().unwrap();
    let new: Vec<_> = wanted.iter().filter(|one| one["state"] == "new").collect();
    assert_eq!(accounts.len(), new.len(), "{what}: {status}");
    for (account, wanted) in accounts.iter().zip(new) {
        let id = AccountId::of(text(wanted, "user").unwrap(), text(wanted, "workspace").unwrap());
        assert_eq!(account["id"], id.as_str(), "{what}");
        assert_eq!(text(account, "label"), text(wanted, "label"), "{what}");
        assert_eq!(account["enabled"], wanted["enabled"] != false, "{what}");
        let gone = account["state"] == "needs_login";
        assert_eq!(gone, wanted["flagged"] == true, "{what}: {account}");
    }
    let pin = wanted.iter().find(|one| one["pinned"] == true).map(|one| {
        AccountId::of(text(one, "user").unwrap(), text(one, "workspace").unwrap()).to_string()
    });
    assert_eq!(text(&status["pin"], "account"), pin.as_deref(), "{what}");
}

#[test]
fn every_file_is_previewed_as_the_table_says() {
    let bench = Bench::new();
    bench.world.ctl("daemon start").ok();
    let before = photo(bench.foreign.path());
    let mut client = bench.client();
    let table = bench.table["files"].as_object().unwrap();
    assert!(table.len() >= 60, "{} files", table.len());
    for (name, wanted) in table {
        let path = bench.foreign.path().join("files").join(name);
        let report = ask(&mut client, bench.scan(Some(&path)));
        assert_eq!(report.sources.len(), 1, "{name}: {report:?}");
        let source = &report.sources[0];
        assert_eq!(source.state, wanted["source"], "{name}: {source:?}");
        let said = source.reason.is_some();
        assert_eq!(said, matches!(&*source.state, "refused" | "sealed"), "{name}: {source:?}");
        let accounts = wanted["accounts"].as_array().unwrap();
        assert_eq!(report.accounts.len(), accounts.len(), "{name}: {report:?}");
        let (unusable, usable): (Vec<_>, Vec<_>) =
            accounts.iter().partition(|one| one["state"] == "unusable");
        for (found, wanted) in report.accounts.iter().zip(usable.into_iter().chain(unusable)) {
            check(name, found, wanted);
        }
        let canary = bench.table["canary"].as_str().unwrap();
        assert!(!format!("{report:?}").contains(canary), "{name}: {report:?}");
    }
    // Looking takes nothing.
    assert_eq!(bench.world.status()["accounts"], json!([]));
    assert_eq!(photo(bench.foreign.path()), before);
    bench.no_canary_outside_the_vault(&bench.world.root(), &[]);
    bench.world.assert_clean();
}

#[test]
fn every_file_is_taken_over_to_exactly_its_accounts() {
    let bench = Bench::new();
    let roots = tempfile::tempdir().unwrap();
    let before = photo(bench.foreign.path());
    let table = bench.table["files"].as_object().unwrap();
    for (name, wanted) in table.iter().filter(|(_, wanted)| wanted["source"] == "read") {
        let root = roots.path().join(name);
        let path = bench.foreign.path().join("files").join(name);
        let path = path.to_str().unwrap();
        let report = bench.ctl(&root, &["import", "--apply", "--from", path, "--json"]).ok().json();
        assert_eq!(report["applied"], true, "{name}");
        let accounts = wanted["accounts"].as_array().unwrap();
        check_pool(name, &bench.ctl(&root, &["status", "--json"]).ok().json(), accounts);
        // Again: everything is the same now, and nothing is taken twice.
        let again = bench.ctl(&root, &["import", "--yes", "--from", path, "--json"]).ok().json();
        for account in again["accounts"].as_array().unwrap() {
            assert_eq!(account["taken"], false, "{name}: {account}");
        }
        check_pool(name, &bench.ctl(&root, &["status", "--json"]).ok().json(), accounts);
        bench.ctl(&root, &["daemon", "stop", "--now"]).ok();
        bench.no_canary_outside_the_vault(&root, &[]);
    }
    assert_eq!(photo(bench.foreign.path()), before);
}

#[test]
fn the_usual_places_are_found_and_taken_over_whole() {
    for (name, wanted) in table()["homes"].as_object().unwrap() {
        let bench = Bench::new();
        let from = bench.foreign.path().join("homes").join(name);
        let home = bench.world.path("home");
        let sources: Vec<_> = files(&from)
            .into_iter()
            .map(|file| {
                let to = home.join(file.strip_prefix(&from).unwrap());
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(&file, &to).unwrap();
                to
            })
            .collect();
        let kept = |photo: Photo| -> Photo {
            photo.into_iter().filter(|(file, _)| sources.contains(file)).collect()
        };
        let before = kept(photo(&home));
        assert_eq!(before.len(), sources.len());
        let root = bench.world.root();
        // A first start says what there is.
        let offer = bench.ctl(&root, &["status"]).ok();
        let offered = offer.stderr.contains("`cmactl import --preview`");
        assert!(offered, "{name}: {}", offer.stderr);
        let preview = bench.ctl(&root, &["import", "--preview", "--json"]).ok().json();
        let applied = bench.ctl(&root, &["import", "--apply", "--json"]).ok().json();
        let accounts = wanted["accounts"].as_array().unwrap();
        for report in [&preview, &applied] {
            let found: Vec<FoundInfo> = serde_json::from_value(report["accounts"].clone()).unwrap();
            assert_eq!(found.len(), accounts.len(), "{name}: {report}");
            for (found, wanted) in found.iter().zip(accounts) {
                check(name, found, wanted);
            }
            let fates = |fate: &str| -> Vec<&str> {
                let kept = report["kept"].as_array().unwrap().iter();
                kept.filter(|one| one["fate"] == fate).filter_map(|one| text(one, "what")).collect()
            };
            assert_eq!(json!(fates("kept")), wanted["kept"], "{name}: {report}");
            assert_eq!(json!(fates("no_equivalent")), wanted["nothing"], "{name}: {report}");
        }
        // Of all pools: `status` shows the global one.
        let all = bench.ctl(&root, &["export", "--json"]).ok().json();
        assert_eq!(
            all["accounts"].as_array().unwrap().len(),
            accounts.iter().filter(|one| one["state"] == "new").count(),
            "{name}: {all}"
        );
        bench.ctl(&root, &["daemon", "stop", "--now"]).ok();
        assert_eq!(kept(photo(&home)), before, "{name}: a source changed");
        bench.no_canary_outside_the_vault(&root, &sources);
        check_kept(name, &root, wanted);
    }
}

/// What is kept for later is whole, private and in our own words.
fn check_kept(name: &str, root: &Path, wanted: &Value) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = root.join("takeover/kept.json");
    let parts = wanted["kept"].as_array().unwrap();
    if parts.is_empty() {
        assert!(!path.exists(), "{name}");
        return;
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let content = &file["content"];
    assert_eq!(content["layout"], 1);
    let part = |what: &str| {
        let parts = content["parts"].as_array().unwrap();
        let part = parts.iter().find(|part| part["what"] == what);
        part.unwrap_or_else(|| panic!("{name}: no {what} in {content}"))["data"].clone()
    };
    for what in parts {
        part(what.as_str().unwrap());
    }
    if name == "everything" {
        assert_eq!(part("budgets")[0]["max_requests"], 100);
        assert_eq!(part("routing profiles")[0]["preferred_tags"], json!(["paid"]));
        assert_eq!(part("quota cache")[0]["primary"]["used_percent"], 20.0);
        assert_eq!(part("settings")["proxy"]["fetch_timeout_ms"], 60000);
        let ledger = part("usage ledger");
        assert_eq!((&ledger["rows"], &ledger["damaged_rows"]), (&json!(3), &json!(1)));
        assert_eq!(ledger["sums"][0]["requests"], 2);
        assert_eq!(ledger["sums"][0]["tokens"]["input"], 10);
        assert!(part("local client tokens")[0]["hash"].as_str().unwrap().starts_with("sha256:"));
    }
}

/// Truncated, flipped, doubled: never a panic, never a change of the source, never a token told.
#[test]
fn damaged_files_are_a_line_of_the_report_and_nothing_more() {
    let bench = Bench::new();
    bench.world.ctl("daemon start").ok();
    let pid = bench.world.daemon_pid();
    let mut client = bench.client();
    let mut random = fastrand::Rng::with_seed(20_261_121);
    let mut read = 0_u32;
    for name in bench.table["files"].as_object().unwrap().keys() {
        let whole = fs::read(fixtures().join("files").join(name)).unwrap();
        for round in 0..MUTANTS {
            let mut bytes = whole.clone();
            match round % 4 {
                0 => bytes.truncate(random.usize(0..=whole.len())),
                1 | 2 if !bytes.is_empty() => {
                    for _ in 0..random.usize(1..8) {
                        let at = random.usize(0..bytes.len());
                        bytes[at] ^= 1 << random.u8(0..8);
                    }
                },
                _ => {
                    let at = random.usize(0..=bytes.len());
                    let piece: Vec<u8> = bytes.iter().take(random.usize(0..64)).copied().collect();
                    bytes.splice(at..at, piece);
                },
            }
            let path = bench.foreign.path().join(format!("mutant-{name}"));
            fs::write(&path, &bytes).unwrap();
            let report = ask(&mut client, bench.scan(Some(&path)));
            assert_eq!(report.sources.len(), 1, "{name} round {round}: {report:?}");
            read += u32::from(report.sources[0].state == "read");
            assert_eq!(fs::read(&path).unwrap(), bytes, "{name} round {round}");
        }
    }
    assert!(read > 100, "only {read} mutants were readable at all");
    assert_eq!(bench.world.daemon_pid(), pid, "the daemon is the same one");
    assert_eq!(bench.world.status()["accounts"], json!([]));
    let log = fs::read_to_string(bench.world.root().join("log/cmad.jsonl")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

/// What isn't a regular readable file of a login's size.
#[test]
fn odd_files_neither_hold_nor_hurt() {
    let bench = Bench::new();
    let dir = bench.foreign.path().join("odd");
    fs::create_dir(&dir).unwrap();
    let pipe = dir.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let huge = dir.join("huge.json");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let link = dir.join("link.json");
    std::os::unix::fs::symlink(bench.foreign.path().join("files/cma-v3.json"), &link).unwrap();
    let round = dir.join("round.json");
    std::os::unix::fs::symlink(&round, &round).unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    bench.world.ctl("daemon start").ok();
    let mut client = bench.client();
    for (path, reason) in [
        (pipe, "not a regular file"),
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (huge, "larger than 4 MiB"),
        (round, "can't be read"),
        (dir.join("folder"), "no file of a known format"),
        (dir.join("missing"), "it is not there"),
    ] {
        let report = ask(&mut client, bench.scan(Some(&path)));
        let source = &report.sources[0];
        assert_eq!(source.state, "refused", "{source:?}");
        assert!(source.reason.as_deref().unwrap().contains(reason), "{source:?}");
        assert!(report.accounts.is_empty());
    }
    let report = ask(&mut client, bench.scan(Some(&link)));
    assert_eq!((report.sources[0].state.as_str(), report.accounts.len()), ("read", 2));
    // A person's own mistake is found before any daemon is asked.
    let ran = bench.ctl(&bench.world.root(), &["import", "--preview", "--from", "/no/such"]);
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    bench.world.assert_clean();
}

#[test]
fn a_sealed_store_opens_with_its_passphrase_and_no_other() {
    let bench = Bench::new();
    let path = bench.foreign.path().join("files/plugin-sealed.json");
    let run = |passphrase: Option<&str>, apply: &str| {
        let mut command = bench.world.command("cmactl");
        command.args(["import", apply, "--json", "--from"]).arg(&path);
        if let Some(passphrase) = passphrase {
            command.env("CMA_IMPORT_PASSPHRASE", passphrase);
        }
        bench.no_canary(bench.world.finish(command))
    };
    for (passphrase, reason) in [
        (None, "CMA_IMPORT_PASSPHRASE"),
        (Some("wrong"), "passphrase is wrong"),
        (Some(" "), "set"),
    ] {
        let ran = run(passphrase, "--apply");
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let source = &ran.json()["sources"][0];
        assert_eq!(source["state"], "sealed");
        assert!(source["reason"].as_str().unwrap().contains(reason), "{source}");
    }
    let ran = run(Some(bench.passphrase()), "--apply").ok();
    assert_eq!(ran.json()["accounts"].as_array().unwrap().len(), 2);
    assert_eq!(bench.world.status()["accounts"].as_array().unwrap().len(), 2);
    bench.no_canary_outside_the_vault(&bench.world.root(), &[]);
}

/// A pool file of the predecessor with one login of the simulated upstream.
fn predecessor(login: &str, label: &str) -> Value {
    let login: Value = serde_json::from_str(login).unwrap();
    let tokens = &login["tokens"];
    json!({ "version": 3, "activeIndex": 0, "accounts": [{
        "accountLabel": label, "accountId": tokens["account_id"], "addedAt": 1,
        "accessToken": tokens["access_token"], "refreshToken": tokens["refresh_token"],
    }]})
}

/// What was taken over serves; a chain that was spent since is never taken again.
#[test]
fn a_login_taken_over_serves_and_its_old_copy_stays_old() {
    let bench = Bench::new();
    let (world, sim) = (&bench.world, bench.world.sim());
    let path = bench.foreign.path().join("pool.json");
    fs::write(&path, predecessor(&sim.auth_json_expired("a"), "Mine").to_string()).unwrap();
    let path = path.to_str().unwrap();
    let take = |apply: &str| world.run("cmactl", ["import", apply, "--from", path, "--json"]);
    assert_eq!(take("--preview").ok().json()["accounts"][0]["state"], "new");
    assert_eq!(take("--apply").ok().json()["accounts"][0]["taken"], true);
    // It had expired: the daemon renews it, which spends the file's refresh token.
    eventually("it is renewed", || world.account("Mine")["generation"] == 2);
    let door = Door::of(world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    for _ in 0..2 {
        let report = take("--apply").ok().json();
        let found = &report["accounts"][0];
        assert_eq!((&found["state"], &found["taken"]), (&json!("older"), &json!(false)), "{found}");
        assert!(text(found, "reason").unwrap().contains("spent"), "{found}");
    }
    world.ctl("daemon restart").ok();
    assert_eq!(take("--apply").ok().json()["accounts"][0]["state"], "older");
    // Removed and taken over again: what became of it comes back, not the spent copy.
    world.ctl("remove Mine --yes").ok();
    take("--apply").ok();
    assert_eq!(world.account("Mine")["generation"], 2);
    let door = Door::of(world);
    assert!(door.send(&door.turn()).unwrap().is_complete());
    world.assert_clean();
}

/// A program that still runs is named, with its process and the way out.
#[test]
fn a_login_that_a_running_program_owns_comes_with_a_warning() {
    let bench = Bench::new();
    let folder = bench.foreign.path().join("old");
    fs::create_dir_all(folder.join("refresh-leases")).unwrap();
    fs::copy(
        bench.foreign.path().join("files/cma-v3.json"),
        folder.join("openai-codex-accounts.json"),
    )
    .unwrap();
    let proxy = folder.join("runtime-rotation-app-helper.1.json");
    let own = std::process::id();
    bench.world.ctl("daemon start").ok();
    let mut client = bench.client();
    for (state, pid, runs) in
        [("running", own, true), ("stopped", own, false), ("running", 0x7fff_fff0, false)]
    {
        fs::write(&proxy, json!({ "state": state, "pid": pid }).to_string()).unwrap();
        let report = ask(&mut client, bench.scan(Some(&folder)));
        assert_eq!(report.accounts.len(), 2, "{report:?}");
        let notes = report.accounts[0].notes.join("\n");
        assert_eq!(notes.contains(&format!("is running (process {pid})")), runs, "{notes}");
        assert!(notes.contains("`cmactl login`"), "{notes}");
        assert!(report.accounts[0].taken, "with a warning, not refused");
    }
    fs::remove_file(&proxy).unwrap();
    let lease = folder.join("refresh-leases/00.lock");
    fs::write(lease, json!({ "pid": own, "expiresAt": 1 }).to_string()).unwrap();
    let report = ask(&mut client, bench.scan(Some(&folder)));
    assert!(report.accounts[0].notes.join("\n").contains("is running"), "{report:?}");
    bench.world.assert_clean();
}

/// The person's own words in the pool count more than another program's.
#[test]
fn what_was_said_here_stays_and_what_was_not_is_filled_in() {
    let bench = Bench::new();
    let files = bench.foreign.path().join("files");
    let take = |name: &str| {
        let path = files.join(name).display().to_string();
        bench
            .ctl(&bench.world.root(), &["import", "--apply", "--json", "--from", &path])
            .ok()
            .json()
    };
    take("codex-chatgpt.json");
    bench.world.ctl("disable u1@example.test").ok();
    let report = take("plugin-v2.json");
    assert_eq!(report["accounts"][0]["state"], "same");
    // Its name was open; that it is disabled was said here.
    let one = bench.world.account("one");
    assert_eq!(one["enabled"], false);
    bench.world.ctl("label one home").ok();
    take("cma-v3.json");
    assert_eq!(bench.world.account("home")["id"], one["id"]);
    // A newer login of it takes the place of the older one, whatever file it is in.
    let report = take("cma-one-twice.json");
    let found = report["accounts"].as_array().unwrap();
    assert_eq!(found[1]["state"], "newer", "{report}");
    assert_eq!(bench.world.account("home")["generation"], 2);
    let report = take("codex-chatgpt.json");
    assert_eq!(report["accounts"][0]["state"], "older", "{report}");
    assert_eq!(bench.world.account("home")["generation"], 2);
}

#[test]
fn an_export_tells_no_secret_unless_asked_and_can_be_read_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    let world = &bench.world;
    world.sim().add_account(AccountSpec::new("b"));
    world.import_all();
    world.ctl("switch b").ok();
    world.ctl("disable a").ok();
    for words in ["export", "export --json"] {
        let inventory = world.ctl(words).ok().json();
        assert_eq!(inventory["format"], "cma-export");
        assert_eq!(inventory["accounts"][1]["label"], "b");
        assert!(!inventory.to_string().contains("token\""), "{inventory}");
    }
    assert_eq!(world.ctl("export --secrets").code, 2);
    let to = bench.foreign.path().join("mine.json");
    let export = |to: &Path| world.ctl(&format!("export --secrets --to {}", to.display()));
    let ran = export(&to).ok();
    assert!(ran.stderr.contains("warning"), "{}", ran.stderr);
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    let first = fs::read(&to).unwrap();
    let ran = export(&to);
    assert_eq!(ran.code, 2, "nothing is overwritten: {}", ran.stderr);
    assert_eq!(fs::read(&to).unwrap(), first);
    // Into an empty pool.
    let other = tempfile::tempdir().unwrap();
    let root = other.path().join("root");
    let path = to.to_str().unwrap();
    bench.ctl(&root, &["import", "--apply", "--from", path]).ok();
    let theirs = bench.ctl(&root, &["status", "--json"]).ok().json();
    bench.ctl(&root, &["daemon", "stop", "--now"]).ok();
    let ours = world.status();
    let told = |status: &Value| {
        let accounts = status["accounts"].as_array().unwrap().iter();
        let of = |account: &Value| json!([account["id"], account["label"], account["enabled"]]);
        (accounts.map(of).collect::<Vec<_>>(), status["pin"]["account"].clone())
    };
    assert_eq!(told(&theirs), told(&ours));
    world.assert_clean();
}
