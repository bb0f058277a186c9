//! Reading and writing one file of truth: in clear, or sealed when the root is.
//!
//! Every file of truth passes here; what is locked can't be read and nothing is written over it. The
//! gate is held for one file at a time, so that a pass over all files (sealing) and the daily writes
//! never cross on one.

use super::{
    Store, atomic, crypt,
    record::{self, Unfit},
    seal::{Ring, SealFile},
};
use crate::{fault::Fault, truth::Given};
use cma_proto::error::ErrorCode;
use parking_lot::{Mutex, RwLock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};
use zeroize::Zeroizing;

/// What lies beside the accounts and is kept in memory: it is written anew as a whole.
const BESIDE: [&str; 6] = [
    "projects",
    "choosing.json",
    "mirror/state.json",
    "threads/pins.json",
    "budgets.json",
    "tokens.json",
];

/// Whether the root is sealed, and the keys when it is open.
#[derive(Debug, Clone, Default)]
pub(super) enum Lock {
    /// Nothing is sealed.
    #[default]
    None,
    /// Sealed, and nobody has given the key yet.
    Locked(SealFile),
    /// Sealed and open.
    Open(SealFile, Ring),
}

/// What all clones of a store share.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) lock: RwLock<Lock>,
    /// Held over the reading and writing of one file.
    pub(super) gate: Mutex<()>,
    /// What was found damaged since the start and what came of it, one line each.
    pub(super) repairs: Mutex<Vec<String>>,
    /// Whether another daemon writes here now.
    pub(super) given: Given,
    /// Why the root was not opened at the start, when something was tried.
    pub(super) why_locked: Mutex<Option<String>>,
    /// Whether the root was opened and what lies beside the accounts isn't all read since.
    pub(super) unread: AtomicBool,
}

impl Disk {
    pub(super) fn is_locked(&self) -> bool {
        matches!(&*self.lock.read(), Lock::Locked(_))
    }

    /// # Errors
    /// [`ErrorCode::Denied`] while the root is locked.
    pub(super) fn writable(&self) -> Result<(), Fault> {
        self.given.check()?;
        if self.is_locked() { Err(locked()) } else { Ok(()) }
    }

    /// A file's bytes as they go to disk.
    pub(super) fn dress(&self, path: &Path, plain: &[u8]) -> Result<Vec<u8>, Fault> {
        match &*self.lock.read() {
            Lock::None => Ok(plain.to_vec()),
            Lock::Locked(_) => Err(locked()),
            Lock::Open(_, ring) => match ring.writing() {
                Some((id, key)) => crypt::seal(key, id, &crypt::label(path), plain),
                None => Ok(plain.to_vec()),
            },
        }
    }

    /// What bytes from disk hold. `label` is what they have to be; none takes any.
    pub(super) fn undress(
        &self,
        bytes: Vec<u8>,
        label: Option<&str>,
    ) -> Result<Zeroizing<Vec<u8>>, Sealed> {
        if !crypt::is_sealed(&bytes) {
            return Ok(Zeroizing::new(bytes));
        }
        let Lock::Open(_, ring) = &*self.lock.read() else { return Err(Sealed::Locked) };
        let damaged = Sealed::Unfit(Unfit::Damaged("its seal is broken"));
        let Some(header) = crypt::header(&bytes) else { return Err(damaged) };
        if label.is_some_and(|label| label != header.label) {
            return Err(Sealed::Unfit(Unfit::Damaged("it was sealed as another file")));
        }
        let key = ring.key(&header.key).ok_or(damaged)?;
        crypt::open(key, &header, &bytes).ok_or(damaged)
    }
}

/// Why sealed bytes don't open.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sealed {
    Locked,
    Unfit(Unfit),
}

/// Why a file gives no record.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is there and can't be believed.
    Unfit(Unfit),
    /// The disk or the lock is in the way.
    Fault(Fault),
}

/// Nothing is done to a locked root.
pub(crate) fn locked() -> Fault {
    Fault::new(
        ErrorCode::Denied,
        "the root is sealed and locked",
        "run `cmactl unlock` and give its passphrase",
    )
}

impl Store {
    /// What a file holds and the schema it was written by; `None` when there is none.
    pub(super) fn try_get<T: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<Option<(T, u32)>, Unread> {
        self.try_get_as(path, Some(&crypt::label(path)))
    }

    /// The same for a file whose name doesn't say what it is.
    pub(super) fn try_get_as<T: DeserializeOwned>(
        &self,
        path: &Path,
        label: Option<&str>,
    ) -> Result<Option<(T, u32)>, Unread> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Unread::Fault(Fault::file(path, "read", &error))),
        };
        let plain = self.disk.undress(bytes, label).map_err(|why| match why {
            Sealed::Locked => Unread::Fault(locked()),
            Sealed::Unfit(unfit) => Unread::Unfit(unfit),
        })?;
        record::decode(&plain).map(Some).map_err(Unread::Unfit)
    }

    /// What a file of truth holds; `None` when there is none.
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when it is damaged, from a newer version or can't be read,
    /// [`ErrorCode::Denied`] while the root is locked. The message names the file, never its content.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, Fault> {
        match self.try_get(path) {
            Ok(found) => Ok(found.map(|(content, _schema)| content)),
            Err(Unread::Unfit(unfit)) => Err(unfit.fault(path)),
            Err(Unread::Fault(fault)) => Err(fault),
        }
    }

    /// Replaces a file of truth, durably.
    ///
    /// # Errors
    /// As [`atomic::write`]; [`ErrorCode::Denied`] while the root is locked.
    pub(crate) fn put<T: Serialize>(&self, path: &Path, content: &T) -> Result<(), Fault> {
        self.disk.given.check()?;
        self.is_known(path)?;
        let plain = record::encode(content)?;
        let _gate = self.disk.gate.lock();
        atomic::write(path, &self.disk.dress(path, &plain)?)
    }

    /// Removes a file of truth, durably.
    ///
    /// # Errors
    /// As [`atomic::remove`]; [`ErrorCode::Denied`] while the root is locked.
    pub(crate) fn drop_file(&self, path: &Path) -> Result<(), Fault> {
        self.disk.writable()?;
        self.is_known(path)?;
        let _gate = self.disk.gate.lock();
        atomic::remove(path)
    }

    /// Keeps a file's content under a second name as well.
    pub(super) fn keep_aside(&self, path: &Path, aside: &Path) -> Result<(), Fault> {
        self.disk.writable()?;
        let _gate = self.disk.gate.lock();
        atomic::keep_aside(path, aside)
    }

    /// Whether what a file holds has been read, so that what replaces it isn't made of nothing.
    fn is_known(&self, path: &Path) -> Result<(), Fault> {
        let inside = path.strip_prefix(&self.root).unwrap_or(path);
        if self.is_unread() && BESIDE.iter().any(|name| inside.starts_with(name)) {
            return Err(Fault::new(
                ErrorCode::Denied,
                format!("`{}` was not read when the root was opened", path.display()),
                "run `cmactl unlock` again: it reads the rest, or says what is in the way",
            ));
        }
        Ok(())
    }

    /// Whether the root was opened and what lies beside the accounts isn't all read since.
    pub(crate) fn is_unread(&self) -> bool {
        self.disk.unread.load(Ordering::Acquire)
    }

    /// Says that it isn't, or that it is now.
    pub(crate) fn set_unread(&self, unread: bool) {
        self.disk.unread.store(unread, Ordering::Release);
    }

    /// Whether nothing can be read or written until somebody gives the key.
    pub(crate) fn is_locked(&self) -> bool {
        self.disk.is_locked()
    }

    /// # Errors
    /// [`ErrorCode::Denied`] while the root is locked.
    pub(crate) fn writable(&self) -> Result<(), Fault> {
        self.disk.writable()
    }

    /// Remembers why the root stays locked, for whoever asks.
    pub(crate) fn stays_locked(&self, why: &str) {
        *self.disk.why_locked.lock() = Some(why.to_owned());
    }

    /// Why the root was not opened at the start, when something was tried.
    pub(crate) fn why_locked(&self) -> Option<String> {
        self.disk.why_locked.lock().clone()
    }

    /// What was found damaged since the start and what came of it, one line each.
    pub(crate) fn repairs(&self) -> Vec<String> {
        self.disk.repairs.lock().clone()
    }
}
