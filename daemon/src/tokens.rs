//! Named tokens for programs on this machine: who has one, until when, and who has it no more.
//!
//! The token itself is made and checked by [`crate::proxy::keys`] and never kept: here is only its
//! number, its name and its end. One whose number isn't here opens nothing, so that taking a token away
//! is taking its number out; while a sealed root is locked, none does.

use crate::{clock, fault::Fault, store::Store};
use cma_proto::{endpoint::Root, error::ErrorCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// More programs than this are no longer told apart by a person.
const MAX_TOKENS: usize = 200;
/// Letters of a name.
const MAX_NAME: usize = 64;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Its number, which stands in it.
    pub(crate) id: u64,
    /// What its person calls it.
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    /// The same.
    pub(crate) expires_at: u64,
    /// The key of the project that it is for.
    #[serde(default)]
    pub(crate) project: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    tokens: Vec<Token>,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Tokens(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: Mutex<BTreeMap<u64, Token>>,
    store: Store,
    path: PathBuf,
    /// Held for the whole of a change, disk included.
    writer: Mutex<()>,
}

impl Tokens {
    /// Reads a root's tokens; a locked root's are read when it is open ([`Self::read_in`]).
    ///
    /// # Errors
    /// [`ErrorCode::Store`] when the file is damaged.
    pub(crate) fn load(root: &Root, store: Store) -> Result<Self, Fault> {
        let (known, path) = (Mutex::default(), root.path().join("tokens.json"));
        let tokens = Self(Arc::new(Inner { known, store, path, writer: Mutex::new(()) }));
        tokens.read_in()?;
        Ok(tokens)
    }

    /// Reads all tokens. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn read_in(&self) -> Result<(), Fault> {
        if self.0.store.is_locked() {
            return Ok(());
        }
        let _writer = self.0.writer.lock();
        let file = self.0.store.get::<File>(&self.0.path)?.unwrap_or_default();
        *self.0.known.lock() = file.tokens.into_iter().map(|token| (token.id, token)).collect();
        Ok(())
    }

    /// Whether a token of that number is still good.
    pub(crate) fn holds(&self, id: u64) -> bool {
        self.0.known.lock().contains_key(&id)
    }

    /// Whether there is one of that name.
    pub(crate) fn named(&self, name: &str) -> bool {
        self.0.known.lock().values().any(|token| token.name == name)
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Token> {
        let mut all: Vec<Token> = self.0.known.lock().values().cloned().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Keeps a new token. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] for a name that makes no sense, [`ErrorCode::Negative`] for one that
    /// is taken.
    pub(crate) fn add(&self, token: Token) -> Result<(), Fault> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let name = &token.name;
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                "a token's name is of letters, digits, `.`, `_` and `-`, 64 at most",
                "say it like `cmactl token create editor`",
            ));
        }
        self.change(|known| {
            let now = clock::unix();
            // The name of one that is over is free again.
            known.retain(|_id, old| old.name != token.name || old.expires_at > now);
            if known.values().any(|old| old.name == token.name) {
                return Err(Fault::new(
                    ErrorCode::Negative,
                    format!("there is a token `{}` already", token.name),
                    format!("take another name, or run `cmactl token revoke {}` first", token.name),
                ));
            }
            if known.len() >= MAX_TOKENS {
                return Err(Fault::new(
                    ErrorCode::TooLarge,
                    format!("there are {MAX_TOKENS} tokens already"),
                    "take one away with `cmactl token revoke NAME`",
                ));
            }
            known.insert(token.id, token);
            Ok(())
        })
    }

    /// Takes a token away: from now on it opens nothing. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub(crate) fn revoke(&self, name: &str) -> Result<(), Fault> {
        self.change(|known| {
            let before = known.len();
            known.retain(|_id, token| token.name != name);
            if known.len() == before {
                return Err(unknown(name));
            }
            Ok(())
        })
    }

    /// Disk first: a token that was handed out is good after a crash, one that was taken away is not.
    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<u64, Token>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let _writer = self.0.writer.lock();
        let mut known = self.0.known.lock().clone();
        change(&mut known)?;
        self.0.store.put(&self.0.path, &File { tokens: known.values().cloned().collect() })?;
        *self.0.known.lock() = known;
        Ok(())
    }
}

/// There is no such token.
pub(crate) fn unknown(name: &str) -> Fault {
    Fault::new(
        ErrorCode::NotFound,
        format!("there is no token `{name}`"),
        "run `cmactl token list` to see them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u64, name: &str) -> Token {
        let now = clock::unix();
        Token { id, name: name.to_owned(), created_at: now, expires_at: now + 60, project: None }
    }

    #[test]
    fn a_token_holds_until_it_is_taken_away_and_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let load = || Tokens::load(&root, Store::new(&root)).unwrap();
        let tokens = load();
        tokens.add(token(1, "editor")).unwrap();
        tokens.add(token(2, "bot")).unwrap();
        assert_eq!(tokens.add(token(3, "bot")).unwrap_err().code(), ErrorCode::Negative);
        for bad in ["", "a b", &"x".repeat(65), "ä"] {
            assert_eq!(tokens.add(token(4, bad)).unwrap_err().code(), ErrorCode::BadRequest);
        }
        assert!(tokens.holds(1) && load().holds(2) && !tokens.holds(3));
        tokens.revoke("bot").unwrap();
        assert_eq!(tokens.revoke("bot").unwrap_err().code(), ErrorCode::NotFound);
        assert!(!tokens.holds(2) && !load().holds(2) && load().named("editor"));
        // The name of one that is over is free again.
        let over = Token { expires_at: 1, ..token(5, "short") };
        tokens.add(over).unwrap();
        tokens.add(token(6, "short")).unwrap();
        assert!(tokens.holds(6) && !tokens.holds(5));
    }
}
