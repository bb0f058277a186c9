//! What would come of each login found: compared with the pool, and with the other files.
//!
//! Newer is what the tokens' own claims say: when they were made, else when they end. A chain whose
//! refresh token this pool has already sent is never taken again. What the claims leave open is
//! `conflicting`, and the pool keeps its own. Pure: looks at nothing but its arguments.

use super::{Found, token::issued_at};
use crate::store::record::{Record, Tokens};
use cma_core::identity::AccountId;
use secrecy::ExposeSecret as _;
use std::{cmp::Ordering, sync::Arc};

/// How a login stands to what the pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    New,
    Newer,
    Same,
    Older,
    Conflicting,
}

impl State {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Newer => "newer",
            Self::Same => "same",
            Self::Older => "older",
            Self::Conflicting => "conflicting",
        }
    }

    /// Whether the pool takes the credential.
    pub(crate) const fn takes(self) -> bool {
        matches!(self, Self::New | Self::Newer)
    }
}

/// The outcome for one login of the harvest, in its order.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) state: State,
    pub(crate) reason: String,
}

/// What all files together say of one account besides its credential.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choices {
    pub(crate) label: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) remark: Option<String>,
    pub(crate) enabled: Option<bool>,
    /// Pools it is in; empty is the global one.
    pub(crate) pools: Vec<String>,
}

/// The outcome for each login; `known` is what the pool has, or had before it was removed.
pub(crate) fn plan(
    found: &[Found],
    known: impl Fn(&AccountId) -> Option<Arc<Record>>,
) -> Vec<Line> {
    let best = |id: &AccountId| {
        let same = found.iter().enumerate().filter(|(_, one)| one.login.id() == *id);
        // The first of equals.
        same.reduce(|a, b| if rank(b.1).cmp(&rank(a.1)) == Ordering::Greater { b } else { a })
    };
    let line = |(at, one): (usize, &Found)| {
        let id = one.login.id();
        let known = known(&id);
        match best(&id).filter(|(best, _)| *best != at) {
            None => compare(one, known.as_deref()),
            Some((_, best)) => beside(one, best, known.as_deref()),
        }
    };
    found.iter().enumerate().map(line).collect()
}

/// What makes one copy of an account worth more than another.
fn rank(one: &Found) -> (bool, bool, Option<u64>, Option<u64>, Option<u64>) {
    let renewable = one.login.tokens.refresh_token.is_some();
    let claims = (one.login.issued_at, one.login.claims.expires_at);
    (renewable, one.gone.is_none(), claims.0, claims.1, one.touched_at)
}

/// A login that is not the best of its account.
fn beside(one: &Found, best: &Found, known: Option<&Record>) -> Line {
    let path = best.path.display();
    if same_chain(&one.login.tokens, &best.login.tokens) {
        return line(State::Same, format!("the same login as in `{path}`"));
    }
    let own = known.filter(|known| known.knows(one.login.tokens.refresh_token.as_ref()));
    if let Some(known) = own {
        return compare(one, Some(known));
    }
    if rank(one) == rank(best) {
        let reason = format!(
            "another login of the account in `{path}`, and nothing says which is newer: that one counts"
        );
        return line(State::Conflicting, reason);
    }
    line(State::Older, format!("a newer login of the account is in `{path}`"))
}

/// One login against what the pool has of its account.
pub(crate) fn compare(one: &Found, known: Option<&Record>) -> Line {
    let Some(known) = known else {
        let reason = if one.gone.is_some() {
            "not in the pool; it comes set aside, as it was there"
        } else {
            "not in the pool"
        };
        return line(State::New, reason.to_owned());
    };
    let tokens = &one.login.tokens;
    if same_chain(tokens, &known.tokens) {
        return line(State::Same, "the pool has this very login".to_owned());
    }
    if known.knows(tokens.refresh_token.as_ref()) {
        return line(
            State::Older,
            "its refresh token was spent here: the pool has what came of it".to_owned(),
        );
    }
    if one.gone.is_some() {
        return line(
            State::Older,
            "it was set aside there; the pool keeps its own login".to_owned(),
        );
    }
    if known.gone.is_some() {
        return line(State::Newer, "the pool's login is gone; this is another one".to_owned());
    }
    if tokens.refresh_token.is_none() && known.tokens.refresh_token.is_some() {
        return line(State::Older, "it can't be renewed; the pool's login can".to_owned());
    }
    let pairs = [
        ("made", one.login.issued_at, issued_at(&known.tokens.access_token)),
        ("valid", one.login.claims.expires_at, known.expires_at),
    ];
    for (word, theirs, ours) in pairs {
        match theirs.zip(ours).map(|(theirs, ours)| theirs.cmp(&ours)) {
            Some(Ordering::Greater) => {
                return line(State::Newer, format!("it was {word} later than the pool's login"));
            },
            Some(Ordering::Less) => {
                return line(State::Older, format!("it was {word} earlier than the pool's login"));
            },
            Some(Ordering::Equal) | None => {},
        }
    }
    line(
        State::Conflicting,
        "another login of an account in the pool, and nothing says which is newer: the pool keeps \
         its own; `cmactl import FILE` takes this one"
            .to_owned(),
    )
}

const fn line(state: State, reason: String) -> Line {
    Line { state, reason }
}

fn same_chain(a: &Tokens, b: &Tokens) -> bool {
    match (&a.refresh_token, &b.refresh_token) {
        (Some(a), Some(b)) => a.expose_secret() == b.expose_secret(),
        (None, None) => a.access_token.expose_secret() == b.access_token.expose_secret(),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// What the files say of an account: the first that says something counts, tags and pools add up.
pub(crate) fn choices(found: &[Found], id: &AccountId) -> Choices {
    let mut choices = Choices::default();
    let mut global = false;
    for one in found.iter().filter(|one| one.login.id() == *id) {
        choices.label = choices.label.or_else(|| one.label.clone());
        choices.remark = choices.remark.or_else(|| one.remark.clone());
        choices.enabled = choices.enabled.or(one.enabled);
        for tag in &one.tags {
            if !choices.tags.contains(tag) {
                choices.tags.push(tag.clone());
            }
        }
        match &one.pool {
            None => global = true,
            Some(key) if !choices.pools.contains(key) => choices.pools.push(key.clone()),
            Some(_) => {},
        }
    }
    if global && !choices.pools.is_empty() {
        choices.pools.insert(0, "global".to_owned());
    }
    choices
}
