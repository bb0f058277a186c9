//! Sealing at rest: who can open the root, and how it gets from clear to sealed and back.
//!
//! One random key seals every file ([`super::crypt`]). `seal.json` (in clear, a copy beside it) holds
//! that key, itself sealed under what a person has: a passphrase, or a key in the system's keyring
//! together with a recovery code, because keyrings are forgotten. Changing a passphrase (`rekey`)
//! makes a new file key as well, so an old copy of `seal.json` opens nothing that is written later.
//!
//! A change goes in three steps, each durable: `seal.json` says what is going on and holds every key
//! needed; then file after file is rewritten, each atomically; then `seal.json` says that it is done
//! and forgets what isn't needed any more. Killed anywhere in between, a root is in a mixed state that
//! loads (sealed files with the key, the others as they are), and the next opening goes on where it
//! stopped. While sealing is announced nothing new is written in clear.
//!
//! What lay on disk in clear is overwritten before it goes, where the file has no other name. That
//! reaches the blocks on a disk that writes in place; a copy-on-write file system or an SSD may keep
//! old blocks, and no program can change that from above.
//!
//! Not sealed: `config.toml` (the person's), `cache/` (quota figures), `log/`, `run/`, `root.key` (see
//! [`Store::secret`]).

use super::{
    Store, atomic,
    crypt::{self, Kdf, Key},
    disk::{Lock, Sealed, locked},
    keyring::Keyring,
    record::{self, Unfit},
};
use crate::{clock, fault::Fault};
use cma_proto::error::ErrorCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
};

/// Folders whose files are truth, with all that is below them.
const FOLDERS: [&str; 6] = ["accounts", "removed", "backups", "damaged", "flagged", "projects"];
/// Files of truth in the root itself.
const FILES: [&str; 8] = [
    "state.json",
    "state.previous.json",
    "choosing.json",
    "mirror/state.json",
    "takeover/kept.json",
    "threads/pins.json",
    "budgets.json",
    "tokens.json",
];
/// Shorter ones are guessed in hours, whatever the derivation costs.
const MIN_PASSPHRASE: usize = 8;
/// Letters of a recovery code: no two look alike. 32 of them, five bits each.
const LETTERS: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// 160 bits.
const RECOVERY_LETTERS: usize = 32;

/// Where a change of the seal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Everything is sealed.
    On,
    /// Being sealed, or sealed anew under another key.
    Sealing,
    /// Being written in clear.
    Unsealing,
}

/// `seal.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SealFile {
    stage: Stage,
    /// Since when, seconds since 1970.
    since: u64,
    /// The root's port, so that a locked daemon listens where running CLIs look for it.
    port: Option<u16>,
    /// The key that new files are sealed under.
    key: String,
    slots: Vec<Slot>,
}

/// One way to open the root.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Slot {
    by: By,
    /// Of a passphrase or a recovery code.
    kdf: Option<Kdf>,
    /// Under which name the keyring has the key.
    entry: Option<String>,
    /// Each file key, sealed under this slot's.
    keys: Vec<Wrapped>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    Passphrase,
    Keyring,
    Recovery,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wrapped {
    id: String,
    /// Hex of a sealed key.
    sealed: String,
}

/// The open keys.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    writing: Option<String>,
    keys: Vec<(String, Key)>,
}

/// What a person chose to open the root with.
#[derive(Debug, Clone)]
pub(crate) enum Method {
    Passphrase(SecretString),
    Keyring,
}

/// What a change or a look says.
#[derive(Debug, Default)]
pub(crate) struct SealReport {
    /// `off`, `on`, `locked`, `sealing`, `unsealing`.
    pub(crate) state: &'static str,
    pub(crate) by: Vec<&'static str>,
    pub(crate) since: Option<u64>,
    pub(crate) sealed: u32,
    pub(crate) plain: u32,
    pub(crate) recovery: Option<SecretString>,
}

impl Ring {
    /// The key for new files; none when they are written in clear.
    pub(super) fn writing(&self) -> Option<(&str, &Key)> {
        let id = self.writing.as_deref()?;
        Some((id, self.key(id)?))
    }

    pub(super) fn key(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|(known, _key)| known == id).map(|(_id, key)| key)
    }
}

impl By {
    const fn word(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::Keyring => "keyring",
            Self::Recovery => "recovery",
        }
    }
}

impl Slot {
    fn new(by: By, own: &Key, keys: &[(String, Key)]) -> Result<Self, Fault> {
        let wrap = |(id, key): &(String, Key)| {
            let sealed = crypt::seal(own, by.word(), &format!("key/{id}"), key.bytes())?;
            Ok(Wrapped { id: id.clone(), sealed: crypt::hex(&sealed) })
        };
        let keys = keys.iter().map(wrap).collect::<Result<_, Fault>>()?;
        Ok(Self { by, kdf: None, entry: None, keys })
    }

    /// All its keys; `None` when `own` is not the one they were sealed under.
    fn open(&self, own: &Key) -> Option<Vec<(String, Key)>> {
        let open = |wrapped: &Wrapped| {
            let sealed = crypt::unhex(&wrapped.sealed)?;
            let header = crypt::header(&sealed)?;
            let plain = crypt::open(own, &header, &sealed)?;
            (header.label == format!("key/{}", wrapped.id)).then_some(())?;
            Some((wrapped.id.clone(), Key::from_bytes(&plain)?))
        };
        self.keys.iter().map(open).collect()
    }
}

impl Store {
    fn seal_file(&self) -> PathBuf {
        self.root.join("seal.json")
    }

    /// Finds out whether the root is sealed. Before anything else is read.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when it is and both copies of `seal.json` are damaged.
    pub(crate) fn look_for_seal(&self) -> Result<(), Fault> {
        let (path, copy) = (self.seal_file(), self.root.join("seal.previous.json"));
        let read = |path: &Path| -> Result<Option<SealFile>, Fault> {
            match std::fs::read(path) {
                Ok(bytes) => match record::decode(&bytes) {
                    Ok((file, _schema)) => Ok(Some(file)),
                    Err(unfit) => Err(unfit.fault(path)),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Fault::file(path, "read", &error)),
            }
        };
        let file = match (read(&path), read(&copy)) {
            (Ok(Some(file)), _) => Some(file),
            (Ok(None), Ok(None)) => None,
            (broken, Ok(Some(file))) => {
                let what = if broken.is_ok() { "it is missing" } else { "it is not whole" };
                self.set_aside(&path, what)?;
                atomic::write(&path, &record::encode(&file)?)?;
                self.disk
                    .repairs
                    .lock()
                    .push(format!("`seal.json` was damaged ({what}) and was mended from its copy"));
                Some(file)
            },
            (Err(fault), _) | (_, Err(fault)) => return Err(fault),
        };
        *self.disk.lock.write() = file.map_or(Lock::None, Lock::Locked);
        Ok(())
    }

    /// Opens a locked root with a passphrase or a recovery code, and finishes what was under way.
    /// Takes a good part of a second.
    ///
    /// # Errors
    /// [`ErrorCode::Denied`] for a wrong one; nothing is changed then.
    pub(crate) fn unlock(&self, passphrase: &SecretString) -> Result<(), Fault> {
        let Lock::Locked(file) = self.lock_now() else { return Ok(()) };
        for slot in &file.slots {
            let Some(kdf) = &slot.kdf else { continue };
            let own = match slot.by {
                By::Recovery => kdf.key(&as_code(passphrase))?,
                By::Passphrase | By::Keyring => kdf.key(passphrase)?,
            };
            if let Some(keys) = slot.open(&own) {
                return self.opened(file.clone(), keys);
            }
        }
        let recovery = file.slots.iter().any(|slot| slot.by == By::Recovery);
        let what = if recovery { "the recovery code" } else { "the passphrase" };
        Err(Fault::new(
            ErrorCode::Denied,
            format!("that is not {what} of this root; nothing was changed"),
            "run `cmactl unlock` and try again",
        ))
    }

    /// Opens a locked root with the system's keyring.
    ///
    /// # Errors
    /// [`ErrorCode::Denied`] with the reason when the keyring doesn't have the key.
    pub(crate) fn unlock_by(&self, keyring: &Result<Keyring, String>) -> Result<(), Fault> {
        let Lock::Locked(file) = self.lock_now() else { return Ok(()) };
        let slot =
            file.slots.iter().find_map(|slot| slot.entry.as_ref().map(|entry| (slot, entry)));
        let Some((slot, entry)) = slot else { return Err(locked()) };
        let failed = |why: &str| {
            Fault::new(
                ErrorCode::Denied,
                format!("the root is sealed, and the system's keyring doesn't open it: {why}"),
                "run `cmactl unlock` and give the recovery code, then `cmactl seal rekey`",
            )
        };
        let keyring = keyring.as_ref().map_err(|why| failed(why))?;
        let kept = keyring.load(entry).map_err(|why| failed(&why))?;
        let kept = kept.ok_or_else(|| failed("it has no key for this root"))?;
        let own = Key::from_hex(kept.expose_secret())
            .and_then(|own| slot.open(&own))
            .ok_or_else(|| failed("its key is another"))?;
        self.opened(file.clone(), own)
    }

    /// Whether it is the system's keyring that opens the root.
    pub(crate) fn opens_by_keyring(&self) -> bool {
        match &*self.disk.lock.read() {
            Lock::Locked(file) | Lock::Open(file, _) => {
                file.slots.iter().any(|slot| slot.by == By::Keyring)
            },
            Lock::None => false,
        }
    }

    fn opened(&self, file: SealFile, keys: Vec<(String, Key)>) -> Result<(), Fault> {
        let writing = (file.stage != Stage::Unsealing).then(|| file.key.clone());
        *self.disk.lock.write() = Lock::Open(file, Ring { writing, keys });
        self.sweep()?;
        self.settle_seal()
    }

    /// Seals everything.
    ///
    /// # Errors
    /// [`ErrorCode::Negative`] when it is sealed; [`ErrorCode::BadRequest`] for a bad passphrase or
    /// without a working keyring. A fault of the disk leaves a mixed state that the next start
    /// finishes.
    pub(crate) fn seal_on(
        &self,
        by: &Method,
        keyring: &Result<Keyring, String>,
    ) -> Result<SealReport, Fault> {
        if !matches!(self.lock_now(), Lock::None) {
            return Err(Fault::new(
                ErrorCode::Negative,
                "the root is sealed already",
                "run `cmactl seal rekey` to open it with something else from now on",
            ));
        }
        self.auto_backup("seal-on")?;
        self.seal_under(by, keyring, Vec::new())
    }

    /// Seals everything under a new key.
    ///
    /// # Errors
    /// As [`Store::seal_on`]; [`ErrorCode::Denied`] while locked.
    pub(crate) fn rekey(
        &self,
        by: &Method,
        keyring: &Result<Keyring, String>,
    ) -> Result<SealReport, Fault> {
        let (file, ring) = self.open_now()?;
        self.auto_backup("seal-rekey")?;
        let report = self.seal_under(by, keyring, ring.keys)?;
        forget(&file, keyring);
        Ok(report)
    }

    /// Writes everything in clear.
    ///
    /// # Errors
    /// [`ErrorCode::Negative`] when nothing is sealed, [`ErrorCode::Denied`] while locked.
    pub(crate) fn seal_off(&self, keyring: &Result<Keyring, String>) -> Result<SealReport, Fault> {
        let (mut file, mut ring) = self.open_now()?;
        self.auto_backup("seal-off")?;
        file.stage = Stage::Unsealing;
        self.write_seal(&file)?;
        ring.writing = None;
        *self.disk.lock.write() = Lock::Open(file.clone(), ring);
        self.settle_seal()?;
        forget(&file, keyring);
        self.seal_report()
    }

    /// How the seal stands, and how many files are in which form.
    pub(crate) fn seal_report(&self) -> Result<SealReport, Fault> {
        let (file, state) = match self.lock_now() {
            Lock::None => (None, "off"),
            Lock::Locked(file) => (Some(file), "locked"),
            Lock::Open(file, _) => {
                let state = match file.stage {
                    Stage::On => "on",
                    Stage::Sealing => "sealing",
                    Stage::Unsealing => "unsealing",
                };
                (Some(file), state)
            },
        };
        let mut report = SealReport { state, ..SealReport::default() };
        if let Some(file) = file {
            report.by = file.slots.iter().map(|slot| slot.by.word()).collect();
            report.since = Some(file.since);
        }
        for path in self.truth()? {
            match std::fs::read(&path) {
                Ok(bytes) if crypt::is_sealed(&bytes) => report.sealed += 1,
                Ok(_) => report.plain += 1,
                // Removed between the look and the reading.
                Err(_) => {},
            }
        }
        Ok(report)
    }

    pub(super) fn port_of_the_seal(&self) -> Option<u16> {
        match &*self.disk.lock.read() {
            Lock::Locked(file) | Lock::Open(file, _) => file.port,
            Lock::None => None,
        }
    }

    pub(super) fn tell_seal_the_port(&self, port: Option<u16>) -> Result<(), Fault> {
        let Lock::Open(file, ring) = self.lock_now() else { return Ok(()) };
        if file.port == port {
            return Ok(());
        }
        let file = SealFile { port, ..file };
        self.write_seal(&file)?;
        *self.disk.lock.write() = Lock::Open(file, ring);
        Ok(())
    }

    fn lock_now(&self) -> Lock {
        self.disk.lock.read().clone()
    }

    fn open_now(&self) -> Result<(SealFile, Ring), Fault> {
        match self.lock_now() {
            Lock::Open(file, ring) => Ok((file, ring)),
            Lock::Locked(_) => Err(locked()),
            Lock::None => Err(Fault::new(
                ErrorCode::Negative,
                "the root is not sealed",
                "run `cmactl seal on` to seal it",
            )),
        }
    }

    fn seal_under(
        &self,
        by: &Method,
        keyring: &Result<Keyring, String>,
        old: Vec<(String, Key)>,
    ) -> Result<SealReport, Fault> {
        let mut id = [0; 8];
        crypt::fill(&mut id)?;
        let id = crypt::hex(&id);
        let mut keys = vec![(id.clone(), Key::random()?)];
        keys.extend(old);
        let (slots, recovery) = slots(by, keyring, &keys)?;
        let (since, port) = (clock::unix(), self.state()?.port);
        let file = SealFile { stage: Stage::Sealing, since, port, key: id.clone(), slots };
        self.write_seal(&file)?;
        *self.disk.lock.write() = Lock::Open(file, Ring { writing: Some(id), keys });
        self.settle_seal()?;
        Ok(SealReport { recovery, ..self.seal_report()? })
    }

    /// Goes on with a change that was announced, to its end. Files that lie in clear in a sealed
    /// root (copied in by hand) are sealed.
    pub(crate) fn settle_seal(&self) -> Result<(), Fault> {
        let Lock::Open(mut file, mut ring) = self.lock_now() else { return Ok(()) };
        for path in self.truth()? {
            self.convert(&path)?;
        }
        if file.stage == Stage::Unsealing {
            atomic::remove(&self.root.join("seal.previous.json"))?;
            atomic::remove(&self.seal_file())?;
            *self.disk.lock.write() = Lock::None;
            return Ok(());
        }
        if file.stage == Stage::On && ring.keys.len() == 1 {
            return Ok(());
        }
        file.stage = Stage::On;
        for slot in &mut file.slots {
            slot.keys.retain(|wrapped| wrapped.id == file.key);
        }
        ring.keys.retain(|(id, _key)| *id == file.key);
        self.write_seal(&file)?;
        *self.disk.lock.write() = Lock::Open(file, ring);
        Ok(())
    }

    /// Rewrites one file in the form that is wanted now. One that can't be opened stays as it is.
    fn convert(&self, path: &Path) -> Result<(), Fault> {
        let _gate = self.disk.gate.lock();
        let Lock::Open(_, ring) = self.lock_now() else { return Ok(()) };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Fault::file(path, "read", &error)),
        };
        let header = crypt::header(&bytes);
        let done = match (ring.writing(), &header) {
            (Some((id, _key)), Some(header)) => header.key == id,
            (Some(_), None) => crypt::is_sealed(&bytes),
            (None, _) => !crypt::is_sealed(&bytes),
        };
        if done {
            return Ok(());
        }
        let length = bytes.len();
        let plain = match self.disk.undress(bytes, None) {
            Ok(plain) => plain,
            Err(Sealed::Unfit(Unfit::Damaged(what))) => {
                tracing::warn!(file = %path.display(), what, "left as it is");
                return Ok(());
            },
            Err(Sealed::Unfit(Unfit::Newer(_)) | Sealed::Locked) => return Ok(()),
        };
        let label = header.map_or_else(|| crypt::label(path), |header| header.label);
        let old = File::options().write(true).open(path);
        match ring.writing() {
            Some((id, key)) => atomic::write(path, &crypt::seal(key, id, &label, &plain)?)?,
            None => atomic::write(path, &plain)?,
        }
        if let Ok(old) = old {
            scrub(&old, length);
        }
        Ok(())
    }

    /// Every file of truth. A copy of `seal.json` is not one: it has to be read before the key is
    /// there.
    fn truth(&self) -> Result<Vec<PathBuf>, Fault> {
        let mut files: Vec<_> = FILES.iter().map(|name| self.root.join(name)).collect();
        files.retain(|path| path.is_file());
        for name in FOLDERS {
            below(&self.root.join(name), &mut files)?;
        }
        Ok(files)
    }

    fn write_seal(&self, file: &SealFile) -> Result<(), Fault> {
        let bytes = record::encode(file)?;
        atomic::write(&self.seal_file(), &bytes)?;
        atomic::write(&self.root.join("seal.previous.json"), &bytes)
    }
}

/// The ways to open the root from now on, and a recovery code to be told once.
fn slots(
    by: &Method,
    keyring: &Result<Keyring, String>,
    keys: &[(String, Key)],
) -> Result<(Vec<Slot>, Option<SecretString>), Fault> {
    let bad = |what: String, hint: &str| Fault::new(ErrorCode::BadRequest, what, hint);
    match by {
        Method::Passphrase(passphrase) => {
            if passphrase.expose_secret().chars().count() < MIN_PASSPHRASE {
                return Err(bad(
                    format!("a passphrase has at least {MIN_PASSPHRASE} characters"),
                    "choose a longer one: four or five words are good",
                ));
            }
            Ok((vec![derived(By::Passphrase, passphrase, keys)?], None))
        },
        Method::Keyring => {
            let no = |why: String| {
                bad(
                    format!("the system's keyring can't be used: {why}"),
                    "run `cmactl seal on --passphrase` instead",
                )
            };
            let keyring = keyring.as_ref().map_err(|why| no(why.clone()))?;
            keyring.probe().map_err(no)?;
            let mut entry = [0; 8];
            crypt::fill(&mut entry)?;
            let entry = format!("root-{}", crypt::hex(&entry));
            let own = Key::random()?;
            keyring.store(&entry, &own.to_hex()).map_err(no)?;
            let code = code()?;
            let slot = Slot { entry: Some(entry), ..Slot::new(By::Keyring, &own, keys)? };
            let recovery = derived(By::Recovery, &as_code(&code), keys)?;
            Ok((vec![slot, recovery], Some(code)))
        },
    }
}

fn derived(by: By, secret: &SecretString, keys: &[(String, Key)]) -> Result<Slot, Fault> {
    let kdf = Kdf::fresh()?;
    let own = kdf.key(secret)?;
    Ok(Slot { kdf: Some(kdf), ..Slot::new(by, &own, keys)? })
}

/// A new recovery code, in groups of four.
fn code() -> Result<SecretString, Fault> {
    let mut bytes = [0; RECOVERY_LETTERS];
    crypt::fill(&mut bytes)?;
    let letter =
        |byte: &u8| char::from(LETTERS.get(usize::from(byte % 32)).copied().unwrap_or(b'A'));
    let letters: Vec<char> = bytes.iter().map(letter).collect();
    let groups: Vec<String> = letters.chunks(4).map(|group| group.iter().collect()).collect();
    Ok(groups.join("-").into())
}

/// A recovery code as it was meant: capitals, nothing between them.
fn as_code(typed: &SecretString) -> SecretString {
    let letters = typed.expose_secret().chars().filter(char::is_ascii_alphanumeric);
    letters.map(|c| c.to_ascii_uppercase()).collect::<String>().into()
}

/// Takes a root's key out of the keyring. One that stays there opens nothing any more.
fn forget(file: &SealFile, keyring: &Result<Keyring, String>) {
    let Ok(keyring) = keyring else { return };
    for entry in file.slots.iter().filter_map(|slot| slot.entry.as_deref()) {
        if let Err(why) = keyring.delete(entry) {
            tracing::warn!(why, "an old key stays in the keyring");
        }
    }
}

fn below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Fault> {
    let failed = |error: io::Error| Fault::file(folder, "read", &error);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A link leads out of the root: what it points at is not ours.
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            below(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Overwrites what has just lost its last name. Best effort: see the module's documentation.
#[cfg(unix)]
fn scrub(mut old: &File, length: usize) {
    use std::os::unix::fs::MetadataExt as _;
    let scrub = || -> io::Result<()> {
        if old.metadata()?.nlink() == 0 {
            old.rewind()?;
            old.write_all(&vec![0; length])?;
            old.sync_data()?;
        }
        Ok(())
    };
    let mut scrub = scrub;
    if let Err(error) = scrub() {
        tracing::warn!(%error, "an old file could not be overwritten");
    }
}

/// An open file can't lose its last name there.
#[cfg(windows)]
fn scrub(_old: &File, _length: usize) {}
