//! Decides whether a token is good and what a refresh token may still buy.
//!
//! A refresh token is spent by its first use; the successor belongs to the same
//! family. A second use outside the grace ends the whole family, access tokens
//! included. A rotation does not end the access tokens issued before it.
//!
//! It never talks HTTP: `issuer` and `backend` turn its verdicts into answers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::clock::UnixMs;
use super::config::{AccountSpec, SimConfig};
use super::jwt::{Issued, Validity, mint};
use super::state::AccountNo;

/// Tokens of each kind that are remembered; the oldest are forgotten.
const MAX_TOKENS: usize = 20_000;

/// Whether a login starts with a good access token or one past its `exp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    Fresh,
    Expired,
}

/// What the upstream thinks of a bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AccessVerdict {
    Good(AccountNo),
    Expired(AccountNo),
    Revoked(AccountNo),
    Unknown,
}

impl AccessVerdict {
    pub(super) fn account(self) -> Option<AccountNo> {
        match self {
            Self::Good(no) | Self::Expired(no) | Self::Revoked(no) => Some(no),
            Self::Unknown => None,
        }
    }
}

/// What a refresh token bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RefreshVerdict {
    Rotated(AccountNo, Box<Issued>),
    Replayed(AccountNo, Box<Issued>),
    /// `ended` is true for the use that ended the family.
    Reused {
        owner: AccountNo,
        ended: bool,
    },
    Expired(AccountNo),
    Invalidated(Option<AccountNo>),
}

/// One login and all its successors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Family(u64);

#[derive(Debug)]
struct Access {
    owner: AccountNo,
    family: Family,
    exp: UnixMs,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Live,
    Stale,
    Revoked,
}

#[derive(Debug)]
struct Refresh {
    owner: AccountNo,
    family: Family,
    use_: Use,
}

#[derive(Debug)]
enum Use {
    Unspent,
    Spent { at: UnixMs, successor: Box<Issued> },
    Expired,
}

/// Every token issued, and the families that ended.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    access: HashMap<String, Access>,
    refresh: HashMap<String, Refresh>,
    order: VecDeque<(String, String)>,
    ended: HashSet<Family>,
    serial: u64,
}

impl Tokens {
    /// A new login: the first tokens of a family.
    pub(super) fn login(
        &mut self,
        config: &SimConfig,
        account: (AccountNo, &AccountSpec),
        freshness: Freshness,
    ) -> Issued {
        let family = Family(self.serial + 1);
        let now = UnixMs::now();
        let valid = match freshness {
            Freshness::Fresh => Validity { from: now, ttl: config.tokens_ttl },
            Freshness::Expired => {
                let from = now.before(config.tokens_ttl + Duration::from_secs(3600));
                Validity { from, ttl: config.tokens_ttl }
            },
        };
        self.issue(config, account, family, valid)
    }

    /// The same by a clock that is that many seconds ahead.
    pub(super) fn login_at(
        &mut self,
        config: &SimConfig,
        account: (AccountNo, &AccountSpec),
        ahead: i64,
    ) -> Issued {
        let from = super::login::shifted(UnixMs::now(), ahead);
        let family = Family(self.serial + 1);
        self.issue(config, account, family, Validity { from, ttl: config.tokens_ttl })
    }

    /// What the upstream thinks of `token` as a bearer.
    pub(super) fn judge(&self, token: &str) -> AccessVerdict {
        let Some(access) = self.access.get(token) else { return AccessVerdict::Unknown };
        let ended = self.ended.contains(&access.family);
        match access.standing {
            Standing::Revoked => AccessVerdict::Revoked(access.owner),
            _ if ended => AccessVerdict::Revoked(access.owner),
            Standing::Stale => AccessVerdict::Expired(access.owner),
            Standing::Live if access.exp <= UnixMs::now() => AccessVerdict::Expired(access.owner),
            Standing::Live => AccessVerdict::Good(access.owner),
        }
    }

    /// Whose refresh token this is, without spending it.
    pub(super) fn refresh_owner(&self, token: &str) -> Option<AccountNo> {
        self.refresh.get(token).map(|refresh| refresh.owner)
    }

    /// Uses a refresh token.
    pub(super) fn spend<'a>(
        &mut self,
        config: &SimConfig,
        token: &str,
        spec: impl FnOnce(AccountNo) -> Option<&'a AccountSpec>,
    ) -> RefreshVerdict {
        let now = UnixMs::now();
        let Some(refresh) = self.refresh.get(token) else {
            return RefreshVerdict::Invalidated(None);
        };
        let (owner, family) = (refresh.owner, refresh.family);
        let ended = self.ended.contains(&family);
        match &refresh.use_ {
            Use::Spent { at, successor } => {
                let in_grace = at.until(now) < config.grace;
                if !ended && in_grace && self.is_unspent(&successor.refresh_token) {
                    return RefreshVerdict::Replayed(owner, successor.clone());
                }
                RefreshVerdict::Reused { owner, ended: self.ended.insert(family) }
            },
            _ if ended => RefreshVerdict::Invalidated(Some(owner)),
            Use::Expired => RefreshVerdict::Expired(owner),
            Use::Unspent => {
                let Some(spec) = spec(owner) else {
                    return RefreshVerdict::Invalidated(Some(owner));
                };
                let valid = Validity { from: now, ttl: config.tokens_ttl };
                let issued = Box::new(self.issue(config, (owner, spec), family, valid));
                if let Some(refresh) = self.refresh.get_mut(token) {
                    refresh.use_ = Use::Spent { at: now, successor: issued.clone() };
                }
                RefreshVerdict::Rotated(owner, issued)
            },
        }
    }

    /// Ends the family `token` belongs to; whose it was, if it was going on.
    pub(super) fn revoke(&mut self, token: &str) -> Option<AccountNo> {
        let (owner, family) = match (self.refresh.get(token), self.access.get(token)) {
            (Some(refresh), _) => (refresh.owner, refresh.family),
            (None, Some(access)) => (access.owner, access.family),
            (None, None) => return None,
        };
        self.ended.insert(family).then_some(owner)
    }

    /// Ends every family of `owner`; how many were going on.
    pub(super) fn revoke_families(&mut self, owner: AccountNo) -> u64 {
        let families: HashSet<Family> =
            self.refresh.values().filter(|r| r.owner == owner).map(|r| r.family).collect();
        let mut count = 0;
        for family in families {
            count += u64::from(self.ended.insert(family));
        }
        count
    }

    pub(super) fn expire_access(&mut self, owner: AccountNo) {
        self.restate(owner, Standing::Stale);
    }

    pub(super) fn revoke_access(&mut self, owner: AccountNo) {
        self.restate(owner, Standing::Revoked);
    }

    pub(super) fn expire_refresh(&mut self, owner: AccountNo) {
        for refresh in self.refresh.values_mut().filter(|r| r.owner == owner) {
            if matches!(refresh.use_, Use::Unspent) {
                refresh.use_ = Use::Expired;
            }
        }
    }

    fn restate(&mut self, owner: AccountNo, standing: Standing) {
        for access in self.access.values_mut().filter(|a| a.owner == owner) {
            access.standing = standing;
        }
    }

    fn is_unspent(&self, token: &str) -> bool {
        self.refresh.get(token).is_some_and(|r| matches!(r.use_, Use::Unspent))
    }

    fn issue(
        &mut self,
        config: &SimConfig,
        (owner, spec): (AccountNo, &AccountSpec),
        family: Family,
        valid: Validity,
    ) -> Issued {
        self.serial += 1;
        let issued = mint(config, spec, self.serial, valid);
        let access = Access { owner, family, exp: issued.exp, standing: Standing::Live };
        self.access.insert(issued.access_token.clone(), access);
        let refresh = Refresh { owner, family, use_: Use::Unspent };
        self.refresh.insert(issued.refresh_token.clone(), refresh);
        self.order.push_back((issued.access_token.clone(), issued.refresh_token.clone()));
        if self.order.len() > MAX_TOKENS
            && let Some((access, refresh)) = self.order.pop_front()
        {
            self.access.remove(&access);
            self.refresh.remove(&refresh);
        }
        issued
    }
}
