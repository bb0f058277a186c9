//! Which account serves a request: one comparison, used to choose, to explain and to forecast.
//!
//! Every account gets a [`Key`]; the smallest eligible one wins. The order of its fields is the
//! order of what people care about: their own choice, the warm prompt cache, an account that works,
//! what is to be kept in reserve, and then what the [`Strategy`] says. `explain` prints the same
//! keys, so there is no second opinion that could drift.
//!
//! Pure and without allocation while it chooses: what a choice leaves behind ([`Choice`]) is small
//! copies of these keys, put into words only when somebody asks.

use crate::{
    account::{Account, Login, State},
    affinity::{Affinity, Home},
    cooldown::Cause,
    identity::AccountId,
    quota::Window,
    scope::Scope,
    strategy::{Profile, Rules, Strategy},
    time::{Now, Wall},
    warmth::Warmth,
};
use std::sync::Arc;

/// Cached tokens from which on a thread stays with an account that is nearly out. Read anew they
/// cost ten times what they cost cached (OpenAI's price list: 90 % off), so from here on a move
/// costs more than a small turn does; below it, moving early costs less than being cut off.
pub const WORTH_STAYING: u32 = 8 * 1024;
/// A turn longer ago than this many choices is as good as never.
const LONGEST_AGO: u32 = u32::MAX - 1;
/// Nothing owed, in the middle of a rank's range.
const EVEN: u32 = u32::MAX / 2;
/// Accounts kept out that a choice remembers; more are counted.
const REMEMBERED: usize = 32;

/// What a request needs.
#[derive(Debug, Clone, Default)]
pub struct Need {
    /// Session of the thread, for affinity.
    pub session: Option<Arc<str>>,
    /// The thread itself; none is the session.
    pub thread: Option<Arc<str>>,
    /// The turn it is part of.
    pub turn: Option<Arc<str>>,
    /// A call beside the thread's turns: it goes where the thread is at home, and moves it nowhere.
    pub guest: bool,
    /// Model asked for.
    pub model: Option<Arc<str>>,
    /// Accounts already tried for this request.
    pub exclude: Vec<AccountId>,
    /// Accounts that can't have this request at all, however often it is tried, with what keeps them out.
    pub unfit: Vec<(AccountId, Bar)>,
    /// The account to stay with, for a retry on the same one.
    pub only: Option<AccountId>,
    /// Workspaces the launch allows; empty allows all.
    pub workspaces: Arc<[Arc<str>]>,
    /// Accounts the launch allows; none allows all.
    pub accounts: Option<Arc<[AccountId]>>,
    /// The pool it is served from.
    pub scope: Scope,
    /// The project whose wishes count; the pool's own when none.
    pub project: Option<Arc<str>>,
}

impl Need {
    /// Whether the launch may ever use an account.
    fn permits(&self, account: &Account) -> Result<(), Bar> {
        if self.scope.place(&account.pools).is_none() {
            return Err(Bar::OtherPool);
        }
        if self.accounts.as_ref().is_some_and(|allowed| !allowed.contains(&account.id)) {
            return Err(Bar::NotNamed);
        }
        if !self.workspaces.is_empty() && !self.workspaces.contains(&account.workspace) {
            return Err(Bar::Workspace);
        }
        Ok(())
    }
}

impl Need {
    /// The name of its thread.
    pub fn thread(&self) -> Option<&Arc<str>> {
        self.thread.as_ref().or(self.session.as_ref())
    }
}

/// What is compared, first field first, smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// 0 when its person moved the thread here, 1 when its turn runs here, 2 else.
    pub held: u8,
    /// 0 when it is in the request's own pool, 1 when it only steps in for that.
    pub away: u8,
    /// 0 when the person pinned it.
    pub pin: u8,
    /// 0 when the thread ran on it last, 1 when its session did, 2 else.
    pub affinity: u8,
    /// 0 when its token can be sent as it is.
    pub token: u8,
    /// 0 when nothing failed on the way to it lately.
    pub shaky: u8,
    /// 0 when the project prefers its tags, 2 when it avoids them.
    pub taste: u8,
    /// 0 enough headroom, 1 low, 2 critical.
    pub reserve: u8,
    /// What the strategy looks at; see [`Strategy::ranks`].
    pub ranks: [u32; 3],
    /// Position in the person's list.
    pub order: u32,
    /// By which strategy; the same for all of a choice.
    pub strategy: Strategy,
}

impl Key {
    /// Names and values, in order of comparison, for a person.
    pub fn shown(&self) -> Vec<(String, String)> {
        let yes = |zero: u8, yes: &str, no: &str| if zero == 0 { yes } else { no }.to_owned();
        let reserve = ["enough", "low", "critical"];
        let taste = ["preferred", "-", "avoided"];
        let word = |words: [&str; 3], at: u8| {
            words.get(usize::from(at)).copied().unwrap_or("?").to_owned()
        };
        let away = (self.away > 0).then(|| ("pool", "steps in for the project's".to_owned()));
        let tags = (self.taste != 1).then(|| ("tags", word(taste, self.taste)));
        let head = [
            ("pin", yes(self.pin, "pinned", "-")),
            ("affinity", {
                let warm = ["this thread's account", "its session's account"];
                warm.get(usize::from(self.affinity)).copied().unwrap_or("-").to_owned()
            }),
            ("token", yes(self.token, "ready", "must be renewed first")),
            ("path", yes(self.shaky, "fine", "failed lately")),
        ];
        let ranks = self.strategy.ranks().into_iter().zip(self.ranks);
        let ranks = ranks.filter(|((name, _), _)| !name.is_empty()).map(|((name, _), rank)| {
            let said = match name {
                "used" => format!("{} %", f64::from(rank) / 10.0),
                "last turn" => format!("{} choices ago", LONGEST_AGO.saturating_sub(rank)),
                "crowding" => format!("{:.2}", f64::from(rank) / 1000.0),
                "owed" => format!("{:.2}", (f64::from(EVEN) - f64::from(rank)) / 1000.0),
                "weight" => yes(u8::from(rank > 0), "has one", "none"),
                _ if rank == u32::MAX => "not known".to_owned(),
                _ => rank.to_string(),
            };
            (name, said)
        });
        let held = ["moved here", "its turn runs here"].get(usize::from(self.held));
        let held = held.map(|held| ("thread", (*held).to_owned()));
        held.into_iter()
            .chain(away)
            .chain(head)
            .chain(tags)
            .chain([("headroom", word(reserve, self.reserve))])
            .chain(ranks)
            .chain([("order", self.order.to_string())])
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// The first field in which `self` is better than `other`, for a person.
    pub fn decided_against(&self, other: &Self) -> &'static str {
        let ranks = self.strategy.ranks();
        let by_rank = ranks.iter().zip(self.ranks.iter().zip(other.ranks));
        let by_rank = by_rank.filter(|(_, (ours, theirs))| *ours != theirs).map(|(rank, _)| rank.1);
        if self.held != other.held {
            if self.held == 0 { "the thread was moved to it" } else { "its turn runs on it" }
        } else if self.away != other.away {
            "it is the project's own"
        } else if self.pin != other.pin {
            "it is pinned"
        } else if self.affinity != other.affinity {
            "the thread ran on it last"
        } else if self.token != other.token {
            "its token is ready"
        } else if self.shaky != other.shaky {
            "nothing failed on it lately"
        } else if self.taste != other.taste {
            "the project prefers its tags"
        } else if self.reserve != other.reserve {
            "it has more headroom"
        } else {
            by_rank.into_iter().next().unwrap_or("it comes first in the list")
        }
    }
}

/// What keeps an account out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// It is in another pool.
    OtherPool,
    /// The launch or the folder's policy names others.
    NotNamed,
    /// The request has to stay with another one.
    Stays,
    /// It was tried for this request.
    Tried,
    /// It can't read what the request's thread left out when it was compacted.
    Unread,
    /// The budget its person gave it is used up.
    Budget,
    /// Its workspace is outside of the limit.
    Workspace,
    /// Another one is forced.
    Forced,
    /// The project's profile refuses the model, for all accounts alike.
    Denied,
    /// The person disabled it.
    Disabled,
    /// The person paused it.
    Paused,
    /// Its credential is for another upstream.
    Elsewhere,
    /// Only its person can mend its login.
    NeedsLogin,
    /// It takes no new thread.
    Drained,
    /// It runs as many requests as it may at once.
    Capped,
    /// Its plan doesn't include the model.
    NotIncluded,
    /// It rests, for that reason.
    Rests(&'static str),
    /// Its token can't be renewed now.
    Waiting,
    /// A window is full.
    Full,
    /// The model's own limit is used up.
    ModelLimit,
}

impl Bar {
    /// For a person, as far as it can be said without the account.
    pub const fn text(self) -> &'static str {
        match self {
            Self::OtherPool => "it is in another pool",
            Self::NotNamed => "the launch or the folder's policy doesn't name it",
            Self::Stays => "the request stays with another account",
            Self::Tried => "already tried for this request",
            Self::Unread => "it can't read what the thread's compaction left",
            Self::Budget => "its budget is used up",
            Self::Workspace => "its workspace is not allowed for this launch",
            Self::Forced => "another account is forced",
            Self::Denied => "the project's profile doesn't allow the model",
            Self::Disabled => "disabled by you",
            Self::Paused => "paused by you",
            Self::Elsewhere => "imported for another upstream",
            Self::NeedsLogin => "its login is gone",
            Self::Drained => "it finishes its threads and takes no new one",
            Self::Capped => "it runs as many requests as its cap allows",
            Self::NotIncluded => Cause::NotEntitled.text(),
            Self::Rests(why) => why,
            Self::Waiting => "its token could not be renewed yet",
            Self::Full => "its quota window is full",
            Self::ModelLimit => "the model's own limit is used up",
        }
    }
}

/// Why an account can't serve a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excluded {
    /// What keeps it out.
    pub bar: Bar,
    /// When that ends by itself.
    pub until: Option<Wall>,
    /// Whether it is out of quota, as against out of order.
    pub quota: bool,
}

impl Excluded {
    /// For a person, with what only the account knows.
    pub fn said(&self, account: &Account, now: Now) -> String {
        match self.bar {
            Bar::NeedsLogin | Bar::Waiting => {
                account.state(now).reason().unwrap_or_else(|| self.bar.text().to_owned())
            },
            bar => bar.text().to_owned(),
        }
    }
}

/// What selection sees.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// All accounts.
    pub accounts: &'a [Account],
    /// The person's choice.
    pub pin: Option<&'a AccountId>,
    /// Where sessions ran.
    pub affinity: &'a Affinity,
    /// What they have cached there.
    pub warmth: Option<&'a Warmth>,
    /// What holds for all choices.
    pub rules: Rules,
    /// What the request's project wants.
    pub profile: Option<&'a Profile>,
    /// Nobody else may serve what these may serve.
    pub forced: Option<&'a [AccountId]>,
    /// Choices made so far.
    pub turn: u64,
    /// Chance, for strategies that draw.
    pub draw: u64,
}

impl<'a> View<'a> {
    /// Nothing but accounts, a pin and where sessions ran; everything else as it is by default.
    pub fn new(
        accounts: &'a [Account],
        pin: Option<&'a AccountId>,
        affinity: &'a Affinity,
    ) -> Self {
        let (rules, profile, forced) = (Rules::default(), None, None);
        Self { accounts, pin, affinity, warmth: None, rules, profile, forced, turn: 0, draw: 0 }
    }
}

/// One account's part in a choice.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Who.
    pub id: AccountId,
    /// What it is called.
    pub name: Arc<str>,
    /// What kept it out.
    pub excluded: Option<Excluded>,
    /// The same for a person.
    pub said: Option<String>,
    /// What is compared.
    pub key: Key,
}

/// What a choice leaves behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The key of the one chosen.
    pub key: Key,
    /// The next best.
    pub second: Option<(AccountId, Key)>,
    /// Accounts that could have served.
    pub able: u32,
    /// Those that could not, the first `REMEMBERED` of them.
    pub out: Box<[(AccountId, Excluded)]>,
    /// Tokens that the thread had cached, and with whom.
    pub warm: Option<(AccountId, u32)>,
    /// Whether a force was on.
    pub forced: bool,
}

/// A choice while it is made: nothing but numbers, and reused for the next one.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    best: Option<(usize, Key)>,
    second: Option<(usize, Key)>,
    able: u32,
    out: Vec<(usize, Excluded)>,
    warm: u32,
    forced: bool,
}

impl Scratch {
    /// The one chosen, by its place among the accounts.
    pub fn chosen(&self) -> Option<usize> {
        self.best.map(|(at, _key)| at)
    }

    /// What is left of it.
    pub fn choice(&self, view: &View<'_>, need: &Need, now: Now) -> Option<Choice> {
        let (_at, key) = self.best?;
        let id = |at: usize| view.accounts.get(at).map(|account| account.id.clone());
        let home = need.thread().and_then(|thread| view.affinity.get(thread, now.mono));
        Some(Choice {
            key,
            second: self.second.and_then(|(at, key)| Some((id(at)?, key))),
            able: self.able,
            out: self.out.iter().filter_map(|(at, out)| Some((id(*at)?, *out))).collect(),
            warm: home.map(|home| (home.clone(), self.warm)),
            forced: self.forced,
        })
    }
}

/// The best eligible account, by its place in `view.accounts`.
pub fn choose(view: &View<'_>, need: &Need, now: Now) -> Option<usize> {
    let mut scratch = Scratch::default();
    decide(view, need, now, &mut scratch);
    scratch.chosen()
}

/// The same, with what it was decided by.
pub fn decide(view: &View<'_>, need: &Need, now: Now, scratch: &mut Scratch) {
    (scratch.best, scratch.second, scratch.able) = (None, None, 0);
    scratch.out.clear();
    let scale = Scale::new(view, need, now);
    (scratch.warm, scratch.forced) = (scale.warm, scale.forced.is_some());
    let id = |at: usize| view.accounts.get(at).map(|account| &account.id);
    // The id last, so that a tie never depends on insertion.
    let better = |one: (usize, Key), other: Option<(usize, Key)>| {
        other.is_none_or(|other| (one.1, id(one.0)) < (other.1, id(other.0)))
    };
    for (at, account) in view.accounts.iter().enumerate() {
        if let Some(out) = scale.excluded(account) {
            if scratch.out.len() < REMEMBERED && out.bar != Bar::OtherPool {
                scratch.out.push((at, out));
            }
            continue;
        }
        scratch.able += 1;
        let one = (at, scale.key(account));
        if better(one, scratch.best) {
            scratch.second = scratch.best.replace(one);
        } else if better(one, scratch.second) {
            scratch.second = Some(one);
        }
    }
}

/// Every account's part in the same choice, best first, those kept out last.
pub fn explain(view: &View<'_>, need: &Need, now: Now) -> Vec<Candidate> {
    let scale = Scale::new(view, need, now);
    let mut all: Vec<Candidate> = view
        .accounts
        .iter()
        .filter(|account| need.scope.place(&account.pools).is_some())
        .map(|account| {
            let excluded = scale.excluded(account);
            Candidate {
                id: account.id.clone(),
                name: Arc::clone(&account.name),
                said: excluded.map(|excluded| excluded.said(account, now)),
                excluded,
                key: scale.key(account),
            }
        })
        .collect();
    all.sort_by(|a, b| {
        (a.excluded.is_some(), a.key, &a.id).cmp(&(b.excluded.is_some(), b.key, &b.id))
    });
    all
}

/// What keeps an account from serving this request in this view, if anything; to be asked for each.
pub fn barred<'a>(
    view: &'a View<'a>,
    need: &'a Need,
    now: Now,
) -> impl Fn(&Account) -> Option<Excluded> + 'a {
    let scale = Scale::new(view, need, now);
    move |account| scale.excluded(account)
}

/// The same as far as the account and the request alone decide it.
pub fn excluded(account: &Account, need: &Need, now: Now) -> Option<Excluded> {
    let out = |bar| Some(Excluded { bar, until: None, quota: false });
    if let Err(bar) = need.permits(account) {
        return out(bar);
    }
    if need.only.as_ref().is_some_and(|only| *only != account.id) {
        return out(Bar::Stays);
    }
    if need.exclude.contains(&account.id) {
        return out(Bar::Tried);
    }
    if let Some((_id, bar)) = need.unfit.iter().find(|(id, _bar)| *id == account.id) {
        return out(*bar);
    }
    if !account.enabled {
        return out(Bar::Disabled);
    }
    if account.terms.paused {
        return out(Bar::Paused);
    }
    if !account.at_home {
        return out(Bar::Elsewhere);
    }
    if matches!(account.login, Login::Gone { .. }) {
        return out(Bar::NeedsLogin);
    }
    // Before any rest: at a rest's end it would still be so, and a refusal must not promise more.
    if account.lacks(need.model.as_deref(), now) {
        return out(Bar::NotIncluded);
    }
    // A window seen full (by a header of the last answer that still went through) is believed.
    let model = need.model.as_deref();
    let full = account.quota.full_until(model, now);
    if let Some(rest) = account.rest(now) {
        let until = rest.due.shown(now);
        return Some(Excluded {
            bar: Bar::Rests(rest.cause.text()),
            until: Some(full.map_or(until, |full| until.max(full))),
            quota: rest.cause.is_quota() || full.is_some_and(|full| full > until),
        });
    }
    if !account.sendable(now)
        && let State::Waiting(_, until) = account.state(now)
    {
        return Some(Excluded {
            bar: Bar::Waiting,
            until: Some(full.map_or(until, |full| until.max(full))),
            quota: full.is_some_and(|full| full > until),
        });
    }
    if full.is_some() {
        return Some(Excluded { bar: Bar::Full, until: full, quota: true });
    }
    if let Some(until) = account.limited(model, now) {
        return Some(Excluded { bar: Bar::ModelLimit, until: Some(until), quota: true });
    }
    // Last: it ends as soon as a request does.
    if account.terms.cap.is_some_and(|cap| account.in_flight >= cap) {
        return out(Bar::Capped);
    }
    None
}

/// What is the same for all accounts of a choice, looked up once.
struct Scale<'a> {
    view: &'a View<'a>,
    need: &'a Need,
    now: Now,
    /// Where the thread is at home.
    home: Home<'a>,
    /// What it has cached where it ran last.
    warm: u32,
    /// The forced accounts, where they may serve this request.
    forced: Option<&'a [AccountId]>,
    denied: bool,
}

impl<'a> Scale<'a> {
    fn new(view: &'a View<'a>, need: &'a Need, now: Now) -> Self {
        let thread = need.thread().map(AsRef::as_ref);
        let home = view.affinity.home(need, now.mono);
        let warm = thread.filter(|_id| home.ran.is_some()).zip(view.warmth);
        let denied = need.model.as_deref().zip(view.profile);
        // A force says who serves what it may serve: a project without that account, or a launch
        // bound to another, is none of its business.
        let may = |forced: &&[AccountId]| {
            let named = |account: &&Account| forced.contains(&account.id);
            view.accounts.iter().filter(named).any(|account| need.permits(account).is_ok())
        };
        Self {
            view,
            need,
            now,
            home,
            warm: warm.map_or(0, |(id, warmth)| warmth.of(id, now.mono)),
            forced: view.forced.filter(may),
            denied: denied.is_some_and(|(model, profile)| !profile.permits(model)),
        }
    }

    fn excluded(&self, account: &Account) -> Option<Excluded> {
        let out = |bar| Some(Excluded { bar, until: None, quota: false });
        let known = excluded(account, self.need, self.now);
        match known.map(|known| known.bar) {
            // These say more of the account than what follows.
            Some(Bar::OtherPool | Bar::NotNamed | Bar::Workspace | Bar::Stays) => return known,
            _ if self.denied => return out(Bar::Denied),
            _ => {},
        }
        // One that is named for a renewal or a second try was chosen before.
        let named = self.need.only.as_ref() == Some(&account.id);
        if !named && self.forced.is_some_and(|forced| !forced.contains(&account.id)) {
            return out(Bar::Forced);
        }
        if !named && known.is_none() && account.terms.drained && self.home.ran != Some(&account.id)
        {
            return out(Bar::Drained);
        }
        known
    }

    fn key(&self, account: &Account) -> Key {
        let (view, now) = (self.view, self.now);
        let not = |is: bool| u8::from(!is);
        let headroom = account.quota.headroom(self.need.model.as_deref(), now);
        let Rules { strategy, reserve: kept, .. } = view.rules;
        // A thread stays where its cache is. Where little is left, one with little cached makes room
        // for one with more: it would have to move in a moment anyway, when a move costs more.
        let stays = headroom >= kept.critical || self.warm >= WORTH_STAYING;
        let reserve = match strategy {
            // It is there to empty one account after another.
            Strategy::Sequential => 0,
            _ if headroom < kept.critical => 2,
            _ => u8::from(headroom < kept.low),
        };
        let (held, place) = self.home.place(&account.id);
        Key {
            held,
            away: self.need.scope.place(&account.pools).unwrap_or(u8::MAX),
            pin: not(view.pin == Some(&account.id)),
            affinity: if stays { place } else { 2 },
            token: not(account.sendable(now) || matches!(account.login, Login::Gone { .. })),
            shaky: u8::from(account.shaky.is_some_and(|due| !due.reached(now))),
            taste: view.profile.map_or(1, |profile| profile.taste(&account.terms.tags)),
            reserve,
            ranks: self.ranks(account, headroom),
            order: account.order,
            strategy,
        }
    }

    fn ranks(&self, account: &Account, headroom: f64) -> [u32; 3] {
        let (load, used) = (account.in_flight, permille(100.0 - headroom));
        let model = self.need.model.as_deref();
        match self.view.rules.strategy {
            Strategy::Balanced => [crowding(account, model, self.now), load, used / 50 * 50],
            Strategy::RoundRobin => {
                // The longer ago, the smaller; one that never served comes first.
                let ago = self.view.turn.saturating_sub(account.turn);
                [
                    LONGEST_AGO - u32::try_from(ago).unwrap_or(LONGEST_AGO).min(LONGEST_AGO),
                    load,
                    used,
                ]
            },
            Strategy::LeastUsed => [used, load, u32::try_from(account.served).unwrap_or(u32::MAX)],
            Strategy::Random => [drawn(self.view.draw, &account.id), 0, 0],
            Strategy::WeightedRoundRobin => {
                let weight = weight(self.view, account);
                [u32::from(weight == 0), owed(account.credit + i64::from(weight)), 0]
            },
            Strategy::Sequential => [0; 3],
            Strategy::ResetSoonest => {
                let (long, short) = resets(account, model, self.now);
                [long, short, load]
            },
        }
    }
}

/// An account's share in a view, in thousandths.
pub fn weight(view: &View<'_>, account: &Account) -> u32 {
    let here = view.profile.and_then(|profile| profile.weights.get(&account.id));
    here.copied().unwrap_or(account.terms.weight)
}

/// The more an account is owed, the smaller.
fn owed(credit: i64) -> u32 {
    // Half of the range each way; credits are kept far within it.
    u32::try_from((i64::from(EVEN) - credit).clamp(0, i64::from(u32::MAX - 1))).unwrap_or(0)
}

/// A number for an account in one draw: the same for the same chance, whatever the order of accounts.
fn drawn(draw: u64, id: &AccountId) -> u32 {
    let mut hash = draw ^ 0xcbf2_9ce4_8422_2325;
    for byte in id.as_str().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // Two rounds of mixing: close ids must not have close numbers.
    for _round in 0..2 {
        hash = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    u32::try_from(hash >> 32).unwrap_or(u32::MAX)
}

/// Minutes until the longest main window is renewed, and until the next one of all.
fn resets(account: &Account, model: Option<&str>, now: Now) -> (u32, u32) {
    let minutes = |resets: Option<Wall>| {
        let left = resets.map(|at| at.since(now.wall).millis() / 60_000);
        left.and_then(|left| u32::try_from(left).ok()).unwrap_or(u32::MAX)
    };
    let long = account.quota.longest(model, now).and_then(|window| window.resets);
    let all = account.quota.of(model).filter_map(|window| window.resets);
    (minutes(long), minutes(all.filter(|at| *at > now.wall).min()))
}

/// Threads at work on an account, one more counted in, for the quota that it has to use by its
/// resets: the fewer, the better it can take another.
///
/// What is left of a window, divided by the time until it is renewed, is the pace at which nothing is
/// lost and nobody is cut off; 1 is the pace of a window used evenly. The short window says how much
/// an account can take now, the long one how much of it would be lost, so both count.
fn crowding(account: &Account, model: Option<&str>, now: Now) -> u32 {
    let threads = account.crowd.thousandths(now.mono) + 1000;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a float saturates"
    )]
    let crowding = (threads as f64 / pace(account, model, now)) as u32;
    crowding
}

/// The paces of all windows together, each within bounds so that none decides alone. The bounds and
/// the least times are those that served as much as any in the simulated weeks of `docs/choosing.md`
/// and lost least; a third more or less of each changes what is lost there by half a percent.
fn pace(account: &Account, model: Option<&str>, now: Now) -> f64 {
    let of = |window: &Window| {
        let (Some(minutes), Some(resets)) = (window.minutes, window.resets) else { return 1.0 };
        // A window of a day or less is empty again before long, whatever is left of it.
        let (least, bounds) =
            if minutes <= 24 * 60 { (120, (0.05, 2.0)) } else { (360, (0.2, 4.0)) };
        let left = resets.since(now.wall).millis() / 60_000;
        let left = left.clamp(least.min(minutes), minutes).max(1);
        #[expect(clippy::cast_precision_loss, reason = "minutes of a month fit")]
        let ratio = minutes as f64 / left as f64;
        ((1.0 - window.used_at(now) / 100.0) * ratio).clamp(bounds.0, bounds.1)
    };
    account.quota.running(model, now).map(of).product()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1000")]
fn permille(used: f64) -> u32 {
    (used * 10.0).clamp(0.0, 1000.0) as u32
}

#[cfg(test)]
mod tests;
