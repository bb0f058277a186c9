//! Backups: all accounts and choices at one moment, in one file of `backups/`.
//!
//! One file, so that it is whole or not there; with a checksum, sealed when the root is. A person
//! makes them by name; before anything that rewrites more than one file one is made by itself, and of
//! these the newest [`KEPT`] stay.
//!
//! A restore adds what the pool has no longer; it never takes anything away. Where both have an
//! account, the pool's is kept, unless its login is gone and the backup's is provably the same
//! credential's better state. About refresh tokens the rule of [`super::repair`] holds: from a backup
//! one is used only when the pool's own papers (the account itself, or its file in `removed/`) say that
//! it is the newest and was not sent. Otherwise the account serves with its access token while that
//! lives, and then says that it needs a login.

use super::{State, Store, disk::Unread, record::Record, repair};
use crate::{clock, fault::Fault};
use cma_core::identity::AccountId;
use cma_proto::error::ErrorCode;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

/// How many automatic backups stay.
pub(crate) const KEPT: usize = 10;
/// A backup's name is a file's name.
const MAX_NAME: usize = 64;

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Backup {
    /// Seconds since 1970.
    pub(crate) made_at: u64,
    /// What it was made before; none when a person made it.
    pub(crate) before: Option<String>,
    pub(crate) state: State,
    pub(crate) accounts: Vec<Record>,
}

/// A backup as a list shows it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) made_at: u64,
    pub(crate) before: Option<String>,
    pub(crate) accounts: usize,
    pub(crate) bytes: u64,
    pub(crate) damaged: Option<String>,
}

/// What a backup's account is worth now.
#[derive(Debug)]
pub(crate) enum Worth {
    /// Its refresh token is the newest, and was not sent.
    Whole(Record),
    /// Everything but that.
    Stripped(Record),
}

impl Store {
    fn backup_file(&self, name: &str) -> Result<PathBuf, Fault> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                "a backup's name has 1 to 64 letters, digits, `-` and `_`",
                "run `cmactl backup list` to see the names there are",
            ));
        }
        Ok(self.root.join("backups").join(format!("{name}.json")))
    }

    /// Keeps everything under a name.
    ///
    /// # Errors
    /// [`ErrorCode::Negative`] when there is one of that name: a backup is never replaced.
    pub(crate) fn backup(&self, name: &str, before: Option<&str>) -> Result<Listed, Fault> {
        self.disk.writable()?;
        let path = self.backup_file(name)?;
        crate::dirs::private_dir(&self.root.join("backups"))?;
        if path.exists() {
            return Err(Fault::new(
                ErrorCode::Negative,
                format!("there is a backup `{name}` already, and it stays as it is"),
                "choose another name, or leave it out",
            ));
        }
        let backup = Backup {
            made_at: clock::unix(),
            before: before.map(ToOwned::to_owned),
            state: self.state()?,
            accounts: self.accounts()?,
        };
        self.put(&path, &backup)?;
        Ok(self.listed(&path))
    }

    /// The backup that precedes a change of several files; the oldest of its kind go.
    pub(crate) fn auto_backup(&self, before: &str) -> Result<Option<String>, Fault> {
        if self.accounts()?.is_empty() {
            return Ok(None);
        }
        let now = clock::unix();
        let name = (0_u32..1000)
            .map(|n| {
                if n == 0 {
                    format!("auto-{now}-{before}")
                } else {
                    format!("auto-{now}-{n}-{before}")
                }
            })
            .find(|name| self.backup_file(name).is_ok_and(|path| !path.exists()))
            .ok_or_else(|| Fault::internal("no free name for a backup"))?;
        self.backup(&name, Some(before))?;
        self.prune(KEPT)?;
        Ok(Some(name))
    }

    /// All backups, newest first; damaged ones among them.
    pub(crate) fn backups(&self) -> Result<Vec<Listed>, Fault> {
        let mut all: Vec<_> =
            self.backup_files()?.into_iter().map(|path| self.listed(&path)).collect();
        all.sort_by(|a, b| (b.made_at, &b.name).cmp(&(a.made_at, &a.name)));
        Ok(all)
    }

    /// What a backup holds.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Store`] when it is damaged.
    pub(crate) fn open_backup(&self, name: &str) -> Result<Backup, Fault> {
        let path = self.backup_file(name)?;
        self.get(&path)?.ok_or_else(|| {
            Fault::new(
                ErrorCode::NotFound,
                format!("there is no backup `{name}`"),
                "run `cmactl backup list` to see them",
            )
        })
    }

    /// Removes automatic backups but the newest `keep`; says which.
    pub(crate) fn prune(&self, keep: usize) -> Result<Vec<String>, Fault> {
        let all = self.backups()?;
        let old = all.iter().filter(|listed| listed.before.is_some()).skip(keep);
        old.map(|listed| {
            self.drop_file(&self.backup_file(&listed.name)?)?;
            Ok(listed.name.clone())
        })
        .collect()
    }

    /// What a backup's account is worth, by what the root knows of it otherwise.
    pub(crate) fn worth(&self, kept: &Record, current: Option<&Record>) -> Worth {
        let removed = self.removed_account(&AccountId::from_written(&kept.id));
        let known: Vec<&Record> = current.into_iter().chain(removed.as_ref()).collect();
        let newest = known.iter().map(|record| record.generation).max();
        let same = known.iter().any(|record| {
            Some(record.generation) == newest
                && record.generation == kept.generation
                && record.gone.is_none()
                && record.same_refresh_token(kept)
        });
        if same {
            return Worth::Whole(kept.clone());
        }
        // A number higher than any that is known: an older one would be taken for stale.
        let generation = kept.generation.max(newest.unwrap_or(0));
        Worth::Stripped(repair::lost(&Record { generation, ..kept.clone() }))
    }

    /// An account in the newest backup that has it and can be read.
    pub(super) fn newest_backup_of(&self, id: &str) -> Option<Record> {
        self.whole_backups()
            .find_map(|backup| backup.accounts.into_iter().find(|record| record.id == id))
    }

    pub(super) fn newest_backup_state(&self) -> Option<State> {
        self.whole_backups().next().map(|backup| backup.state)
    }

    fn whole_backups(&self) -> impl Iterator<Item = Backup> {
        let all = self.backups().unwrap_or_default();
        all.into_iter().filter_map(|listed| self.open_backup(&listed.name).ok())
    }

    fn backup_files(&self) -> Result<Vec<PathBuf>, Fault> {
        let folder = self.root.join("backups");
        let failed = |error: io::Error| Fault::file(&folder, "read", &error);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                files.push(path);
            }
        }
        Ok(files)
    }

    fn listed(&self, path: &Path) -> Listed {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let meta = std::fs::metadata(path);
        let mut listed = Listed {
            name,
            made_at: 0,
            before: None,
            accounts: 0,
            bytes: meta.map_or(0, |meta| meta.len()),
            damaged: None,
        };
        match self.try_get::<Backup>(path) {
            Ok(Some((backup, _schema))) => {
                listed.made_at = backup.made_at;
                listed.before = backup.before;
                listed.accounts = backup.accounts.len();
            },
            Ok(None) => listed.damaged = Some("it is gone".to_owned()),
            Err(Unread::Unfit(unfit)) => listed.damaged = Some(unfit.fault(path).refusal.message),
            Err(Unread::Fault(fault)) => listed.damaged = Some(fault.refusal.message),
        }
        listed
    }
}
