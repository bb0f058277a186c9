//! Loss of power at each call that changes the disk, and every state it may legally leave.
//!
//! What the daemon does to the disk is on a tape (`disk::tape`). For each prefix of it: what was not
//! yet made durable (`fsync` of a file for its bytes, of a folder for its names) is kept, dropped,
//! or there in part, in every combination; where these are too many, in a seeded sample
//! (`CMA_POWER_SEED`). Each resulting root is then loaded by the daemon's own start.

use super::*;
use crate::{
    dirs,
    disk::tape::{self, Call},
    store::record::RenewalNote,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use cma_proto::endpoint::Root;
use secrecy::ExposeSecret as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// Combinations at one moment that are all tried; of more, this many are drawn.
const EXHAUSTIVE: usize = 2_000;

/// What is known of an account, all of which must survive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    generation: u64,
    refresh: String,
    label: Option<String>,
    enabled: bool,
    gone: bool,
}

/// What a person, or the issuer, was told is so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    accounts: BTreeMap<String, Seen>,
    /// The generation that may have been sent without an answer.
    notes: BTreeMap<String, u64>,
    pin: Option<String>,
    port: Option<u16>,
    secret: Option<Vec<u8>>,
}

/// Loads a root as a start does and says what is in it.
fn load(path: &Path) -> Result<Told, Fault> {
    let root = Root::at(path);
    dirs::prepare(&root)?;
    let store = Store::new(&root);
    store.sweep()?;
    let mut told = Told::default();
    for record in store.accounts()? {
        let id = AccountId::from_written(&record.id);
        if let Some(note) = store.renewal_note(&id)?
            && note.generation == record.generation
        {
            told.notes.insert(record.id.clone(), note.generation);
        }
        told.accounts.insert(record.id.clone(), seen(&record));
    }
    let state = store.state()?;
    told.pin = state.pin.map(|(id, _since)| id);
    told.port = state.port;
    told.secret = std::fs::read(path.join("root.key")).ok();
    Ok(told)
}

fn seen(record: &Record) -> Seen {
    let refresh = record.tokens.refresh_token.as_ref();
    Seen {
        generation: record.generation,
        refresh: refresh.map(|token| token.expose_secret().to_owned()).unwrap_or_default(),
        label: record.label.clone(),
        enabled: record.enabled,
        gone: record.gone.is_some(),
    }
}

/// A fast folder: what is tested is an order of calls, not a disk.
fn folder() -> tempfile::TempDir {
    let fast = Path::new("/dev/shm");
    if fast.is_dir() { tempfile::tempdir_in(fast) } else { tempfile::tempdir() }.unwrap()
}

fn jwt(user: &str, serial: &str) -> String {
    let payload = serde_json::json!({
        "exp": 4_000_000_000_u64, "email": format!("{user}@example.test"), "jti": serial,
        "https://api.openai.com/auth": { "chatgpt_user_id": user, "chatgpt_account_id": "w" },
    });
    format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(payload.to_string()))
}

/// A root in use, and what it told at which place of the tape.
struct Use {
    dir: tempfile::TempDir,
    roster: Roster,
    calls: Vec<Call>,
    told: Vec<(usize, Told)>,
}

impl Use {
    /// The first start of a root.
    fn begin() -> Self {
        let dir = folder();
        drop(tape::take());
        let root = Root::at(&dir.path().join("root"));
        dirs::prepare(&root).unwrap();
        let store = Store::new(&root);
        store.secret().unwrap();
        let config = Arc::new(Config::load(&root, |_name| None).unwrap());
        let roster = Roster::load(store, config, Arc::default()).unwrap();
        let mut begun = Self { dir, roster, calls: Vec::new(), told: vec![(0, Told::default())] };
        begun.tell();
        begun.act(|roster| roster.save_port(4711).unwrap());
        begun
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Notes what has been told by now.
    fn tell(&mut self) {
        self.calls.extend(tape::take());
        let told = load(&self.root()).unwrap();
        drop(tape::take());
        self.told.push((self.calls.len(), told));
    }

    fn act<T>(&mut self, act: impl FnOnce(&Roster) -> T) -> T {
        let done = act(&self.roster);
        self.tell();
        done
    }

    fn import(&mut self, user: &str, serial: &str, label: &str) -> AccountId {
        let path = self.dir.path().join("auth.json");
        let login = serde_json::json!({ "tokens": {
            "id_token": jwt(user, serial), "access_token": jwt(user, serial),
            "refresh_token": format!("refresh-{user}-{serial}"),
        }});
        std::fs::write(&path, login.to_string()).unwrap();
        self.act(|roster| roster.import(&path, Some(label)).unwrap());
        AccountId::of(user, "w")
    }

    /// The steps of a renewal, each confirmed before the next.
    fn renew(&mut self, id: &AccountId, answered: bool) {
        let known = self.roster.get(id).unwrap();
        let note = RenewalNote { generation: known.generation, sent_at: 7, attempts: 1 };
        self.act(|roster| roster.store().note_renewal(id, &note).unwrap());
        let from = Generation(known.generation);
        if !answered {
            self.act(|roster| roster.set_gone(id, from, "unknown", 7).unwrap());
            return;
        }
        let serial = format!("r{}", known.generation);
        let user = known.user.clone();
        let new = Renewed {
            tokens: Tokens {
                id_token: jwt(&user, &serial).into(),
                access_token: jwt(&user, &serial).into(),
                refresh_token: Some(format!("refresh-{user}-{serial}").into()),
            },
            expires_at: Some(4_000_000_000),
            plan: None,
            email: None,
        };
        self.act(|roster| roster.renewed(id, from, new).unwrap());
    }
}

/// A name's change in one folder.
type Set = (PathBuf, String, Option<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Folder,
}

/// The bytes of a file: those that are durable, and those written.
#[derive(Debug, Clone, Default)]
struct Bytes {
    durable: Vec<u8>,
    written: Vec<u8>,
}

/// A disk as its rules know it: durable names, and changes that are not durable yet.
#[derive(Debug, Clone, Default)]
struct Disk {
    files: Vec<Bytes>,
    /// By path: what the name stands for now, durable or not.
    now: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    pending: Vec<Vec<Set>>,
}

impl Disk {
    fn change(&mut self, sets: Vec<(PathBuf, Option<Entry>)>) {
        let mut change = Vec::new();
        for (path, entry) in sets {
            apply(&mut self.now, &path, entry);
            let folder = path.parent().unwrap().to_path_buf();
            change.push((folder, path.file_name().unwrap().to_str().unwrap().to_owned(), entry));
        }
        self.pending.push(change);
    }

    fn file(&mut self, path: &Path) -> &mut Bytes {
        let Some(Entry::File(no)) = self.now.get(path) else { panic!("no file {path:?}") };
        &mut self.files[*no]
    }

    fn call(&mut self, call: &Call) {
        match call {
            Call::Create(path) => {
                self.files.push(Bytes::default());
                let entry = Entry::File(self.files.len() - 1);
                self.change(vec![(path.clone(), Some(entry))]);
            },
            Call::Write(path, bytes) => self.file(path).written.clone_from(bytes),
            Call::Sync(path) => {
                let file = self.file(path);
                file.durable = file.written.clone();
            },
            Call::Rename(from, to) => {
                let entry = self.now.get(from).copied();
                self.change(vec![(from.clone(), None), (to.clone(), entry)]);
            },
            Call::Link(from, to) => {
                let entry = self.now.get(from).copied();
                self.change(vec![(to.clone(), entry)]);
            },
            Call::Unlink(path) => self.change(vec![(path.clone(), None)]),
            Call::MakeFolder(path) => self.change(vec![(path.clone(), Some(Entry::Folder))]),
            Call::SyncFolder(folder) => {
                let pending = std::mem::take(&mut self.pending);
                for change in pending {
                    if change.iter().any(|(within, _, _)| within == folder) {
                        for (within, name, entry) in change {
                            apply(&mut self.durable, &within.join(name), entry);
                        }
                    } else {
                        self.pending.push(change);
                    }
                }
            },
        }
    }

    /// The names after a loss of power that let those changes through whose bit is set.
    fn names(&self, through: usize) -> BTreeMap<PathBuf, Entry> {
        let mut names = self.durable.clone();
        for (bit, change) in self.pending.iter().enumerate() {
            if through >> bit & 1 == 1 {
                for (folder, name, entry) in change {
                    apply(&mut names, &folder.join(name), *entry);
                }
            }
        }
        names
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Entry>, path: &Path, entry: Option<Entry>) {
    match entry {
        Some(entry) => drop(names.insert(path.to_path_buf(), entry)),
        None => drop(names.remove(path)),
    }
}

/// What may be left of bytes that were written and not made durable.
fn remains(bytes: &Bytes) -> Vec<Vec<u8>> {
    let written = &bytes.written;
    if bytes.durable == *written {
        return vec![written.clone()];
    }
    let zeros = |from: usize| {
        let mut torn = written.clone();
        torn[from..].fill(0);
        torn
    };
    let half = written.len() / 2;
    vec![
        bytes.durable.clone(),
        written[..half].to_vec(),
        written[..written.len() - 1].to_vec(),
        zeros(0),
        zeros(half),
        written.clone(),
    ]
}

/// All states that may be found after a loss of power now, or a sample of them.
fn states(disk: &Disk, rng: &mut fastrand::Rng) -> Vec<BTreeMap<PathBuf, Option<Vec<u8>>>> {
    let choices = 1_usize << disk.pending.len().min(40);
    let left: Vec<_> = disk.files.iter().map(remains).collect();
    let parts = left.iter().fold(1_usize, |parts, remains| parts.saturating_mul(remains.len()));
    let pick = |names: usize, mut part: usize| {
        let content: Vec<_> = left
            .iter()
            .map(|remains| {
                let chosen = &remains[part % remains.len()];
                part /= remains.len();
                chosen.clone()
            })
            .collect();
        let whole = |entry: &Entry| match entry {
            Entry::File(no) => Some(content[*no].clone()),
            Entry::Folder => None,
        };
        disk.names(names).iter().map(|(path, entry)| (path.clone(), whole(entry))).collect()
    };
    if choices.saturating_mul(parts) <= EXHAUSTIVE {
        (0..choices)
            .flat_map(|names| (0..parts).map(move |part| (names, part)))
            .map(|(n, p)| pick(n, p))
            .collect()
    } else {
        (0..EXHAUSTIVE).map(|_| pick(rng.usize(0..choices), rng.usize(0..parts))).collect()
    }
}

/// Makes a state real. What lies below a folder that is not there is not there.
fn make(state: &BTreeMap<PathBuf, Option<Vec<u8>>>, from: &Path, to: &Path) {
    for (path, content) in state {
        let path = to.join(path.strip_prefix(from).unwrap());
        if !path.parent().unwrap().is_dir() {
            continue;
        }
        match content {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => drop(disk_folder(&path)),
        }
    }
}

fn disk_folder(path: &Path) -> bool {
    crate::disk::make_folder(path).unwrap()
}

/// Checks what was loaded against what had been told and what was being done.
fn check(found: &Told, before: &Told, after: &Told, removed: &dyn Fn(&str) -> bool) {
    for (id, was) in &before.accounts {
        match (found.accounts.get(id), after.accounts.get(id)) {
            (Some(is), Some(will)) => assert!(is == was || is == will, "{is:?}: {was:?} {will:?}"),
            (Some(is), None) => assert_eq!(is, was),
            (None, None) => assert!(removed(id), "{id} was lost while it was removed"),
            (None, Some(_)) => panic!("{id} was lost"),
        }
        let known = |told: &Told| told.notes.get(id).copied();
        let same = found.accounts.get(id) == Some(was);
        if same && known(before).is_some() && known(after) == known(before) {
            assert_eq!(known(found), known(before), "{id}: forgot that its token was sent");
        }
    }
    for (id, is) in &found.accounts {
        if !before.accounts.contains_key(id) {
            assert_eq!(Some(is), after.accounts.get(id), "an account that nobody made");
        }
    }
    for (id, note) in &found.notes {
        let noted = [before, after].iter().any(|told| told.notes.get(id) == Some(note));
        assert!(noted, "{id}: a note that nobody made");
    }
    assert!(found.pin == before.pin || found.pin == after.pin, "pin {:?}", found.pin);
    assert!(found.port == before.port || found.port == after.port, "port {:?}", found.port);
    let kept = found.secret == before.secret || found.secret == after.secret;
    assert!(kept, "the root's secret");
}

/// Replays a loss of power at each place of the tape. Returns how many states were looked at.
fn replay(used: &Use) -> usize {
    replay_from(used, used.dir.path())
}

/// The same for a tape made below another folder.
fn replay_from(used: &Use, origin: &Path) -> usize {
    let seed = std::env::var("CMA_POWER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("CMA_POWER_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut disk = Disk::default();
    let mut looked = BTreeSet::new();
    for at in 0..=used.calls.len() {
        if at > 0 {
            disk.call(&used.calls[at - 1]);
        }
        let told = used.told.partition_point(|(place, _told)| *place <= at) - 1;
        let before = &used.told[told].1;
        let after = used.told.get(told + 1).map_or(before, |(_place, told)| told);
        for state in states(&disk, &mut rng) {
            if !looked.insert((told, state.clone())) {
                continue;
            }
            let dir = folder();
            make(&state, origin, dir.path());
            let root = dir.path().join("root");
            let found = load(&root).unwrap_or_else(|fault| {
                panic!("after call {at} {:?}: {fault}", used.calls.get(at.wrapping_sub(1)))
            });
            let removed = |id: &str| {
                let store = Store::new(&Root::at(&root));
                store.removed_account(&AccountId::from_written(id)).is_some()
            };
            check(&found, before, after, &removed);
            drop(tape::take());
        }
    }
    looked.len()
}

#[test]
fn a_renewal_survives_a_loss_of_power_at_each_call() {
    let mut used = Use::begin();
    let a = used.import("a", "1", "a");
    used.renew(&a, true);
    used.renew(&a, true);
    let looked = replay(&used);
    eprintln!("{} calls, {looked} states", used.calls.len());
    assert!(looked > 60, "{looked} states of {} calls", used.calls.len());
    assert_eq!(used.told.last().unwrap().1.accounts[a.as_str()].refresh, "refresh-a-r2");
}

#[test]
fn what_people_do_survives_a_loss_of_power_at_each_call() {
    let mut used = Use::begin();
    let a = used.import("a", "1", "a");
    let b = used.import("b", "1", "b");
    used.act(|roster| roster.save_pin(Some((&b, 5))).unwrap());
    used.act(|roster| roster.set_label(&a, "other").unwrap());
    used.act(|roster| roster.edit(&a, |record| record.enabled = false).unwrap());
    used.renew(&b, false);
    used.import("b", "2", "b");
    used.act(|roster| roster.save_pin(None).unwrap());
    used.act(|roster| roster.remove(&a).unwrap());
    used.import("a", "2", "back");
    let looked = replay(&used);
    eprintln!("{} calls, {looked} states", used.calls.len());
    assert!(looked > 120, "{looked} states of {} calls", used.calls.len());
    let told = &used.told.last().unwrap().1;
    assert_eq!((told.accounts.len(), told.notes.len()), (2, 0));
    assert!(told.accounts[a.as_str()].enabled && !told.accounts[b.as_str()].gone);
}

/// The simulation notices what it is for: without one kind of call the same use loses something.
#[test]
fn a_disk_layer_that_forgets_to_sync_is_found_out() {
    let mut used = Use::begin();
    let a = used.import("a", "1", "a");
    used.renew(&a, true);
    used.act(|roster| roster.remove(&a).unwrap());
    replay(&used);
    type Kind = fn(&Call) -> bool;
    let kinds: [Kind; 2] =
        [|call| matches!(call, Call::Sync(_)), |call| matches!(call, Call::SyncFolder(_))];
    for forgotten in kinds {
        let kept = |calls: &[Call]| calls.iter().filter(|call| !forgotten(call)).count();
        let told =
            used.told.iter().map(|(at, told)| (kept(&used.calls[..*at]), told.clone())).collect();
        let calls = used.calls.iter().filter(|call| !forgotten(call)).cloned().collect();
        let broken = Use {
            dir: folder(),
            roster: Roster::load(
                used.roster.store.clone(),
                Arc::clone(&used.roster.config),
                Arc::default(),
            )
            .unwrap(),
            calls,
            told,
        };
        let root = used.dir.path();
        let found =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| replay_from(&broken, root)));
        assert!(found.is_err(), "a loss that nobody noticed");
    }
}

/// A renewal that was under way when its account left: what came of it waits aside and comes back.
#[test]
fn a_renewal_that_ends_after_its_account_left_is_kept_aside() {
    let mut used = Use::begin();
    let a = used.import("a", "1", "a");
    let login = std::fs::read(used.dir.path().join("auth.json")).unwrap();
    used.act(|roster| roster.remove(&a).unwrap());
    let new = Renewed {
        tokens: Tokens {
            id_token: jwt("a", "r1").into(),
            access_token: jwt("a", "r1").into(),
            refresh_token: Some("refresh-a-r1".to_owned().into()),
        },
        expires_at: None,
        plan: None,
        email: None,
    };
    let told = used.act(|roster| roster.renewed(&a, Generation(1), new).unwrap_err());
    assert_eq!(told.code(), ErrorCode::NotFound);
    assert!(used.roster.get(&a).is_none(), "it stays out of the pool");
    std::fs::write(used.dir.path().join("auth.json"), login).unwrap();
    let path = used.dir.path().join("auth.json");
    used.act(|roster| roster.import(&path, None).unwrap());
    let back = &used.told.last().unwrap().1.accounts[a.as_str()];
    assert_eq!((back.generation, back.refresh.as_str()), (2, "refresh-a-r1"));
}
