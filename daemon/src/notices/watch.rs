//! What is news: the difference between two looks at the pool.
//!
//! A thing is told when it begins and not again before it has ended, and by the same account and kind
//! at most every [`AGAIN`], however the pool flutters.

use super::Notice;
use crate::config::notify::Kind;
use cma_core::{account::State, identity::AccountId, time::Wall};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The same thing is told at most this often, in milliseconds.
const AGAIN: u64 = 10 * 60_000;
/// An account that is out for less is not worth a word when it is back, in milliseconds.
const LONG: u64 = 5 * 60_000;
/// A pool that is low is so until it has this many percent more.
const MARGIN: f64 = 5.0;

/// One account at one look.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) id: AccountId,
    pub(super) name: Arc<str>,
    pub(super) state: State,
    /// Percent left of its fullest window.
    pub(super) left: f64,
    /// Whether anything is known of its windows.
    pub(super) known: bool,
    /// Until when it can't serve, where that ends by itself.
    pub(super) out_until: Option<Wall>,
}

impl Seen {
    fn serves(&self) -> bool {
        matches!(self.state, State::Ready | State::Refreshing | State::Waiting(..))
            && self.out_until.is_none()
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Watch {
    low: f64,
    was_low: bool,
    was_dry: bool,
    gone: BTreeSet<AccountId>,
    out: BTreeSet<AccountId>,
    told: BTreeMap<(Kind, Option<AccountId>), Wall>,
}

impl Watch {
    pub(super) const fn new(low: f64) -> Self {
        Self {
            low,
            was_low: false,
            was_dry: false,
            gone: BTreeSet::new(),
            out: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    /// Takes a look in; gives what is news.
    pub(super) fn next(&mut self, seen: &[Seen], now: Wall) -> Vec<Notice> {
        let mut news = Vec::new();
        for one in seen {
            self.login(one, &mut news);
            self.back(one, now, &mut news);
        }
        self.gone.retain(|id| seen.iter().any(|one| one.id == *id));
        self.out.retain(|id| seen.iter().any(|one| one.id == *id));
        self.pool(seen, now, &mut news);
        news.retain(|notice| self.is_due(notice, now));
        news
    }

    fn login(&mut self, one: &Seen, news: &mut Vec<Notice>) {
        let State::NeedsLogin(why, _since) = &one.state else {
            self.gone.remove(&one.id);
            return;
        };
        if self.gone.insert(one.id.clone()) {
            news.push(Notice {
                kind: Kind::NeedsLogin,
                title: format!("{} needs a login", one.name),
                text: format!("{why}. Run `cmactl login {}`.", one.id),
                account: Some(one.id.to_string()),
            });
        }
    }

    fn back(&mut self, one: &Seen, now: Wall, news: &mut Vec<Notice>) {
        match one.out_until {
            Some(until) if until.since(now).millis() >= LONG => {
                self.out.insert(one.id.clone());
            },
            Some(_) => {},
            None if one.serves() && self.out.remove(&one.id) => news.push(Notice {
                kind: Kind::Reset,
                title: format!("{} is back", one.name),
                text: "Its limit has reset; it can serve again.".to_owned(),
                account: Some(one.id.to_string()),
            }),
            None => {},
        }
    }

    fn pool(&mut self, seen: &[Seen], now: Wall, news: &mut Vec<Notice>) {
        let out = |one: &&Seen| !matches!(one.state, State::Disabled | State::Elsewhere);
        let all: Vec<&Seen> = seen.iter().filter(out).collect();
        let first = all.iter().filter_map(|one| one.out_until).min();
        let soon = first.is_some_and(|first| first.since(now).millis() < 60_000);
        let dry = !all.is_empty() && !all.iter().any(|one| one.serves());
        if dry && !soon && !self.was_dry {
            let text = match first {
                Some(first) => {
                    let minutes = first.since(now).millis().div_ceil(60_000);
                    format!("The first one is back in {minutes} min.")
                },
                None => "None comes back by itself. Run `cmactl status`.".to_owned(),
            };
            let title = "No account can serve".to_owned();
            news.push(Notice { kind: Kind::AllDry, title, text, account: None });
        }
        self.was_dry = dry && (self.was_dry || !soon);
        let serving = || all.iter().filter(|one| one.serves());
        if serving().next().is_none() || serving().any(|one| !one.known) {
            return;
        }
        let left = serving().map(|one| one.left).fold(0.0, f64::max);
        if left <= self.low && !self.was_low {
            news.push(Notice {
                kind: Kind::PoolLow,
                title: "The pool is low".to_owned(),
                text: format!("The best account has {left:.0} % left."),
                account: None,
            });
            self.was_low = true;
        } else if left > self.low + MARGIN {
            self.was_low = false;
        }
    }

    fn is_due(&mut self, notice: &Notice, now: Wall) -> bool {
        let about = (notice.kind, notice.account.as_deref().map(AccountId::from_written));
        let lately = |at: &Wall| now.since(*at).millis() < AGAIN && *at <= now;
        if self.told.get(&about).is_some_and(lately) {
            return false;
        }
        self.told.retain(|_about, at| lately(at));
        self.told.insert(about, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_core::cooldown::Cause;

    fn at(minutes: u64) -> Wall {
        Wall::from_secs(1_000_000 + minutes * 60)
    }

    fn seen(name: &str, state: State, left: f64) -> Seen {
        let out_until = match &state {
            State::Cooling(_, until) => Some(*until),
            _ => None,
        };
        Seen {
            id: AccountId::of(name, "w"),
            name: name.into(),
            state,
            left,
            known: true,
            out_until,
        }
    }

    fn limited(name: &str, until: Wall) -> Seen {
        seen(name, State::Cooling(Cause::UsageLimit(None), until), 0.0)
    }

    fn kinds(news: &[Notice]) -> Vec<Kind> {
        news.iter().map(|notice| notice.kind).collect()
    }

    #[test]
    fn each_thing_is_told_once_while_it_lasts() {
        let mut watch = Watch::new(10.0);
        let good = || seen("b", State::Ready, 80.0);
        let gone = || seen("a", State::NeedsLogin("revoked".into(), at(0)), 50.0);
        assert_eq!(watch.next(&[seen("a", State::Ready, 50.0), good()], at(0)), []);
        let news = watch.next(&[gone(), good()], at(1));
        assert_eq!(kinds(&news), [Kind::NeedsLogin]);
        assert!(news[0].text.contains("cmactl login"), "{news:?}");
        assert_eq!(watch.next(&[gone(), good()], at(2)), []);
        // It flutters: within ten minutes nobody hears of it again, later they do.
        watch.next(&[seen("a", State::Ready, 50.0), good()], at(3));
        assert_eq!(watch.next(&[gone(), good()], at(4)), []);
        watch.next(&[seen("a", State::Ready, 50.0), good()], at(30));
        assert_eq!(kinds(&watch.next(&[gone(), good()], at(31))), [Kind::NeedsLogin]);
    }

    #[test]
    fn a_limit_that_was_long_is_told_when_it_is_over() {
        let mut watch = Watch::new(10.0);
        let other = || seen("b", State::Ready, 80.0);
        assert_eq!(watch.next(&[limited("a", at(60)), other()], at(0)), []);
        assert_eq!(watch.next(&[limited("a", at(60)), other()], at(59)), []);
        let news = watch.next(&[seen("a", State::Ready, 100.0), other()], at(60));
        assert_eq!(kinds(&news), [Kind::Reset]);
        watch.next(&[limited("a", at(73)), other()], at(72));
        assert_eq!(watch.next(&[seen("a", State::Ready, 9.0), other()], at(74)), [], "a throttle");
    }

    #[test]
    fn a_pool_is_low_by_its_best_account_and_dry_when_none_serves() {
        let mut watch = Watch::new(10.0);
        let low = |left| [seen("a", State::Ready, left), seen("b", State::Ready, 3.0)];
        assert_eq!(watch.next(&low(11.0), at(0)), []);
        assert_eq!(kinds(&watch.next(&low(9.0), at(1))), [Kind::PoolLow]);
        assert_eq!(watch.next(&low(12.0), at(20)), [], "not yet over");
        assert_eq!(watch.next(&low(9.0), at(40)), []);
        let dry = [limited("a", at(120)), limited("b", at(90))];
        let news = watch.next(&dry, at(60));
        assert_eq!(kinds(&news), [Kind::AllDry]);
        assert!(news[0].text.contains("30 min"), "{news:?}");
        assert_eq!(watch.next(&dry, at(61)), []);
        let mut disabled = seen("c", State::Disabled, 100.0);
        disabled.known = false;
        assert_eq!(Watch::new(10.0).next(&[disabled], at(0)), [], "nobody wants that one to serve");
        let unknown = Seen { known: false, ..seen("a", State::Ready, 0.0) };
        assert_eq!(Watch::new(10.0).next(&[unknown], at(0)), [], "nothing known is not low");
        let soon = [limited("a", Wall::from_secs(1_000_030))];
        assert_eq!(Watch::new(10.0).next(&soon, at(0)), [], "a throttle of seconds");
    }
}
