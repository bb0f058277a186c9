//! The course of one request over the pool: which accounts it has tried, whose fault its failures
//! were, and when it has tried enough.
//!
//! Turns over HTTP, turns over a WebSocket and errands keep the same rules, and they are here: the two
//! budgets (attempts and time), what a verdict means for the next choice, how long an account that
//! comes back is waited for, and that a host which refuses tokens never sees the whole pool's. What is
//! sent and delivered is not decided here.

use super::{
    Proxy,
    body::Source,
    books,
    held::MAX_SILENCES,
    moved::Foreign,
    relay::Answer,
    respond,
    stated::Stated,
    trace::{Trace, Traces},
};
use crate::{
    actor::Lease,
    clock,
    trouble::Place,
    upstream::{Driven, Failure},
};
use cma_core::{
    account::Login,
    budget::Blocked,
    cooldown::Cause,
    identity::AccountId,
    outage::Refusal,
    pool::{Input, Refused, Release},
    select::{Bar, Need},
    verdict::{Act, Mark, Outcome, Verdict},
};
use cma_proto::error::ErrorCode;
use http::{Response, StatusCode};
use std::time::Duration;
use tokio::time::Instant;

/// Upstream attempts of one request, whatever happens. The CLI's own retries multiply nothing,
/// since it stops on the final answer.
const MAX_ATTEMPTS: u32 = 8;
/// No new attempt begins after this time: a person has given up by then.
const BUDGET: Duration = Duration::from_secs(120);
/// Longest wait for an account that comes back by itself (a throttle of seconds).
const MAX_WAIT: Duration = Duration::from_secs(8);
/// The same when upstream stated the wait; the CLI waits that long itself (0.169.0, observed).
const STATED_WAIT: Duration = Duration::from_secs(30);
/// Accounts whose tokens one request lets upstream refuse. Walks through a pool have got whole pools
/// revoked.
const MAX_REFUSED: usize = 2;
/// The same of accounts whose logins the issuer turned out to have ended: whose fault that is, is known.
const MAX_ENDED: usize = 2;
/// Rounds in which a host that refuses everybody's token is asked again: a few seconds.
const REFUSED_ROUNDS: u32 = 3;
/// First pause after a fault that all accounts share; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// Bytes a second of a line that is slow and not broken.
const SLOWEST: usize = 32 * 1024;
/// Longest pause of a request whose host is out of reach: one against a dead host asks it 25 times.
const AWAY_PAUSE: Duration = Duration::from_secs(15);
/// When an account is asked for again whose renewal takes its time.
const RENEWED_BY: Duration = Duration::from_secs(1);
/// An account is asked for this much after the time at which it is back.
const BACK: Duration = Duration::from_millis(20);

/// The account whose token was renewed for a request, and those whose tokens were refused.
pub(super) type Refusals = (Option<AccountId>, Vec<AccountId>);

/// How far a request has come.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) need: Need,
    pub(super) trace: Trace,
    /// Why the last attempt failed.
    pub(super) reason: String,
    /// The budget of an account that would have served.
    over: Option<Blocked>,
    /// The account to renew and try once more after a 401.
    renewed: Option<AccountId>,
    /// Accounts whose token was refused.
    refused_by: Vec<AccountId>,
    /// How often the host was found to refuse everybody's.
    refused_rounds: u32,
    /// Logins that the issuer was found to have ended.
    ended: usize,
    /// Whether upstream stated how long to wait.
    stated: bool,
    /// Waits that it stated with its own failures.
    pub(super) rests: Stated,
    pauses: u32,
    /// How long a host that is out of reach is waited for.
    patience: Duration,
    /// Attempts that didn't reach the host.
    unreached: u32,
    /// Whether the last one didn't.
    missed: bool,
    /// When the last one began.
    asked: Instant,
    /// Since when nothing else came of it.
    away: Option<Instant>,
    /// How long it was out of reach before that.
    out: Duration,
    /// Time in which upstream was asked nothing: in the pool's queue, or out of reach before.
    idle: Duration,
}

impl Course {
    /// A course that waits for a host out of reach for that long, and else within its budgets.
    pub(super) const fn new(need: Need, trace: Trace, patience: Duration) -> Self {
        let asked = trace.started;
        Self {
            need,
            trace,
            reason: String::new(),
            over: None,
            renewed: None,
            refused_by: Vec::new(),
            refused_rounds: 0,
            ended: 0,
            stated: false,
            rests: Stated::new(),
            pauses: 0,
            patience,
            unreached: 0,
            missed: false,
            asked,
            away: None,
            out: Duration::ZERO,
            idle: Duration::ZERO,
        }
    }

    /// Whether no further attempt is to begin.
    pub(super) fn is_spent(&self) -> bool {
        self.trace.tried.saturating_sub(self.unreached) >= MAX_ATTEMPTS
            || self.refused_rounds > REFUSED_ROUNDS
            || self.elapsed() > BUDGET
            || (self.trace.tried > 0 && self.away.is_some() && self.patience_left().is_zero())
    }

    /// Time that counts: a person whose network is gone, or who let requests wait for an account, has
    /// not given up by then.
    fn elapsed(&self) -> Duration {
        clock::since(self.trace.started).saturating_sub(self.idle + self.away_for())
    }

    /// How many silences an attempt begins with: the last one for which there is time is believed to take
    /// its own. `wait` is the time in which another silence would be told.
    pub(super) fn believed(&self, silences: u32, wait: Duration) -> u32 {
        let last = silences > 0 && self.elapsed() + wait >= BUDGET;
        if last { silences.max(MAX_SILENCES) } else { silences }
    }

    fn away_for(&self) -> Duration {
        self.away.map(clock::since).unwrap_or_default()
    }

    /// A network that comes and goes is waited for no longer than one that is gone.
    fn patience_left(&self) -> Duration {
        self.patience.saturating_sub(self.out + self.away_for())
    }

    /// The time since then was spent in the pool's queue, and now an attempt begins.
    pub(super) fn queued(&mut self, since: Instant) {
        self.asked = clock::mono();
        if self.away.is_none() {
            self.idle += self.asked.saturating_duration_since(since);
        }
    }

    /// Whether the last attempt reached the host.
    fn reached(&mut self, reached: bool) {
        let missed = std::mem::replace(&mut self.missed, !reached);
        if !reached {
            self.unreached += 1;
            self.away.get_or_insert(self.asked);
        } else if let Some(since) = self.away.take() {
            // The attempt that reached it is none of the outage.
            let away = self.asked.saturating_duration_since(since);
            self.out += away;
            self.idle += away;
        }
        if missed && reached {
            self.pauses = 0;
        }
    }

    /// Waits with everybody while the host fails for several accounts.
    pub(super) async fn wait_for_host(&mut self, pause: Duration) {
        if self.reason.is_empty() {
            "the host fails for several accounts".clone_into(&mut self.reason);
        }
        tokio::time::sleep(pause).await;
    }

    /// Reserves with the account that was chosen; false when its budget is used up, and another one
    /// has to be chosen.
    pub(super) fn takes(&mut self, lease: &mut Lease) -> bool {
        match books::with(&self.trace, &lease.account) {
            Ok(()) => {
                self.trace.choice = lease.choice.take();
                true
            },
            Err(blocked) => {
                self.unfit(lease.account.clone(), Bar::Budget);
                self.over = Some(blocked);
                false
            },
        }
    }

    /// The budget that kept an account out, when nothing else was tried.
    pub(super) fn over(&mut self) -> Option<Blocked> {
        self.over.take_if(|_blocked| self.trace.tried == 0)
    }

    /// What goes on with a request that comes again: whose tokens were refused, and which was renewed.
    pub(super) fn refusals(&mut self) -> Refusals {
        (self.renewed.take(), std::mem::take(&mut self.refused_by))
    }

    /// As [`Self::refusals`] said it before.
    pub(super) fn had(&mut self, refusals: Refusals) {
        (self.renewed, self.refused_by) = refusals;
    }

    /// Whether that account's token was renewed for this request.
    pub(super) fn has_renewed(&self, account: &AccountId) -> bool {
        self.renewed.as_ref() == Some(account)
    }

    /// Not that account, from here on.
    pub(super) fn elsewhere(&mut self, account: AccountId) {
        self.need.only = None;
        self.need.exclude.push(account);
    }

    /// Not that account, in no round.
    pub(super) fn unfit(&mut self, account: AccountId, bar: Bar) {
        self.need.only = None;
        self.need.unfit.push((account, bar));
    }

    /// Gives the account back with what was learned, and says who is asked next. Returns whether that
    /// is to [`Self::pause`] first. `hosts` says that the failure is one of the host's.
    pub(super) fn failed(
        &mut self,
        proxy: &Proxy,
        lease: Lease,
        verdict: Verdict,
        hosts: bool,
    ) -> bool {
        let account = lease.account.clone();
        if self.patience > Duration::ZERO {
            self.reached(verdict.act != Act::Outlast);
        }
        let Verdict { act, mark, reason } = self.weighed(proxy, &account, verdict, hosts);
        self.stated |= matches!(mark, Mark::Cool(Cause::Throttled(Some(_))));
        proxy.traces.retry(&mut self.trace, &account, &reason);
        self.reason = reason;
        let nobodys = mark == Mark::Fine;
        let its_own = mark == Mark::Shaky;
        lease.finish(Release { mark, served: false, model: self.need.model.clone() });
        match act {
            // Only its connection was at fault: it had lived its time, or was dead.
            Act::RetrySame if nobodys => self.need.only = Some(account),
            Act::RetrySame if self.renewed.as_ref() != Some(&account) => {
                // The next select on this account waits for its renewal.
                self.renewed = Some(account.clone());
                self.need.only = Some(account);
            },
            Act::RetrySame | Act::RetryOther | Act::Deliver => self.elsewhere(account),
            Act::Outlast if its_own => self.elsewhere(account),
            Act::Wait | Act::Outlast => {
                if self.refused_by.len() >= MAX_REFUSED {
                    // None of the others is shown to a host that refuses tokens.
                    self.need.exclude.clear();
                    self.need.only = self.refused_by.first().cloned();
                }
                return true;
            },
        }
        false
    }

    /// A verdict in the light of how other accounts fare: a refused token may be the host's fault.
    fn weighed(
        &mut self,
        proxy: &Proxy,
        account: &AccountId,
        verdict: Verdict,
        hosts: bool,
    ) -> Verdict {
        let (health, troubles) = (&proxy.health, proxy.roster.troubles());
        if hosts {
            health.failed(account, &verdict.reason, troubles);
        }
        if verdict.mark != Mark::Unauthorized {
            return verdict;
        }
        if !self.refused_by.contains(account) {
            self.refused_by.push(account.clone());
        }
        match health.refused(account, self.renewed.as_ref() == Some(account), troubles) {
            Refusal::Own => verdict,
            Refusal::Suspect => Verdict {
                act: Act::RetryOther,
                mark: Mark::Shaky,
                reason: "its renewed token was refused (401); another account tells whether it is \
                         to blame"
                    .to_owned(),
            },
            Refusal::Host => {
                self.refused_rounds += 1;
                Verdict {
                    act: Act::Wait,
                    mark: Mark::Fine,
                    reason: "the host refuses the tokens of several accounts (401)".to_owned(),
                }
            },
        }
    }

    /// Whether an account was to blame after all: its fresh token was refused, and there is no other
    /// that could tell whether the host refuses everybody.
    fn blamed(&self, proxy: &Proxy) -> bool {
        let Some(account) = self.refused_by.last() else { return false };
        let alone = self.refused_by.len() == 1 && proxy.health.blame(account);
        if alone {
            proxy.actor.tell(Input::Learn(account.clone(), Mark::Unauthorized));
        }
        alone
    }

    /// A pause after a fault that all accounts share.
    pub(super) async fn pause(&mut self) {
        let (doublings, longest) = if self.missed {
            (7, AWAY_PAUSE.min(self.patience_left() + BACK))
        } else {
            (5, AWAY_PAUSE)
        };
        let pause = FIRST_PAUSE * 2_u32.pow(self.pauses.min(doublings));
        tokio::time::sleep(pause.min(longest)).await;
        self.pauses += 1;
    }

    /// Whether it is worth waiting for an account, after having waited: one that comes back in
    /// moments or when upstream said, or (`rounds`) the next round over accounts that only had the
    /// host's faults.
    pub(super) async fn waited(&mut self, proxy: &Proxy, refused: &Refused, rounds: bool) -> bool {
        let elapsed = self.elapsed();
        let patience = if self.stated {
            STATED_WAIT.min(BUDGET.saturating_sub(elapsed))
        } else {
            MAX_WAIT.saturating_sub(elapsed)
        };
        let tried_only = !self.need.exclude.is_empty() || self.need.only.is_some();
        let soon = refused
            .retry_at
            .map(|at| Duration::from_millis(at.since(clock::wall()).millis()))
            .filter(|wait| *wait <= patience);
        if self.blamed(proxy) {
            return true;
        }
        if let Some(renewed) =
            self.renewed.as_ref().filter(|id| self.need.only.as_ref() == Some(id))
        {
            proxy.health.settled(renewed);
            if self.ended < MAX_ENDED && is_gone(proxy, renewed.clone()).await {
                // The issuer itself ended that login: no refusal of the host's.
                self.ended += 1;
                self.refused_by.retain(|id| id != renewed);
            }
        }
        if self.refused_by.len() >= MAX_REFUSED {
            return false;
        }
        if tried_only && refused.tried && rounds {
            self.begin_again();
            self.pause().await;
            return true;
        }
        if refused.unreached && self.patience > Duration::ZERO {
            self.away.get_or_insert(self.asked);
            let left = self.patience_left();
            if left.is_zero() {
                return false;
            }
            self.begin_again();
            tokio::time::sleep(soon.unwrap_or(RENEWED_BY).min(left) + BACK).await;
            return true;
        }
        let Some(wait) = soon else { return false };
        self.begin_again();
        tokio::time::sleep(wait + BACK).await;
        true
    }

    fn begin_again(&mut self) {
        self.need.exclude.clear();
        self.need.only = None;
    }

    /// An account refused what another one sealed: whether there is another attempt in that.
    pub(super) fn unsealed(&mut self, traces: &Traces, account: &AccountId, next: Foreign) -> bool {
        self.reached(true);
        match next {
            Foreign::Theirs => return false,
            Foreign::Again(reason) => {
                traces.retry(&mut self.trace, account, &reason);
                self.need.only = Some(account.clone());
            },
            Foreign::Elsewhere(reason) => {
                traces.retry(&mut self.trace, account, &reason);
                self.unfit(account.clone(), Bar::Unread);
            },
        }
        true
    }

    /// The final word when upstream said none that would do.
    pub(super) fn exhausted(&self, proxy: &Proxy) -> Answer {
        respond::stop(
            ErrorCode::Upstream,
            &format!(
                "cma: {} failed in {} attempts, the last one: {}. Run `cmactl why --request {}` for all of them.",
                proxy.upstream.endpoint.authority, self.trace.tried, self.reason, self.trace.id
            ),
        )
    }

    /// Ends a request whose client sent no whole body, or one that is too large.
    pub(super) fn client_failed(&mut self, traces: &Traces, source: &Source) -> Answer {
        let answer = if source.too_large() {
            respond::too_large()
        } else {
            respond::error(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, "the body ended early")
        };
        self.closed(traces, answer.status(), "abandoned");
        answer
    }

    /// Keeps the trace of a request that nothing was relayed for.
    pub(super) fn closed(&mut self, traces: &Traces, status: StatusCode, outcome: &'static str) {
        self.trace.status = status.as_u16();
        self.trace.outcome = outcome;
        traces.end(self.trace.clone());
    }
}

/// A verdict in the light of whose host it was: an account's own being out of reach is no outage of the
/// network's, and another account may serve. When none can, it is outlasted as any host.
pub(super) fn of_host(verdict: Verdict, own: bool) -> Verdict {
    match verdict.act {
        Act::Outlast if own => Verdict { mark: Mark::Shaky, ..verdict },
        Act::Wait if own => Verdict { act: Act::RetryOther, mark: Mark::Shaky, ..verdict },
        _ => verdict,
    }
}

/// An account's answer is shown: who was refused before it was to blame for that.
pub(super) fn served(proxy: &Proxy, account: &AccountId) {
    for blamed in proxy.health.served(account) {
        proxy.actor.tell(Input::Learn(blamed, Mark::Unauthorized));
    }
}

/// Whether an account's login is one that only its person can mend.
async fn is_gone(proxy: &Proxy, account: AccountId) -> bool {
    let look = proxy.actor.look(move |pool, _now| {
        let known = pool.accounts().iter().find(|known| known.id == account);
        known.is_some_and(|known| matches!(known.login, Login::Gone { .. }))
    });
    look.await.unwrap_or_default()
}

/// What the last error that upstream answered in full means for the rest of a course.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    /// Whether the CLI stops on it by itself.
    pub(super) stops: bool,
    /// Whether it keeps its account out of further rounds.
    pub(super) bars: bool,
    /// The attempt it came of.
    pub(super) attempt: u32,
}

impl Word {
    /// Whether accounts that were only tried may be asked again: not after a final word that isn't
    /// about its account alone.
    pub(super) const fn allows_rounds(self) -> bool {
        !self.stops || self.bars
    }

    /// Whether it may be the client's answer after that many attempts. Without a refusal (`refused`)
    /// somebody could still serve: what keeps one account out is no word about the others.
    pub(super) const fn is_final(self, refused: bool, tried: u32) -> bool {
        self.stops && (refused || !self.bars || self.attempt == tried)
    }
}

/// Why no head came.
#[derive(Debug)]
pub(super) enum Missed {
    Failed(Failure),
    TimedOut,
}

impl Missed {
    pub(super) const fn outcome(&self) -> Outcome<'static> {
        match self {
            Self::Failed(Failure::Connect(_)) => Outcome::ConnectFailed,
            Self::Failed(Failure::Barred(_)) => Outcome::ConnectBarred,
            Self::Failed(Failure::Garbage) => Outcome::Garbage,
            Self::Failed(Failure::Cut | Failure::ClientBody) => Outcome::Cut,
            Self::TimedOut => Outcome::HeadTimeout,
        }
    }

    /// The verdict's reason with what is known beside it. A backend that can't be connected to is a
    /// trouble that `status` tells.
    pub(super) fn told(&self, proxy: &Proxy, reason: &str) -> String {
        match self {
            Self::Failed(Failure::Connect(why) | Failure::Barred(why)) => {
                let reason = format!("{reason}: {why}");
                proxy.roster.troubles().met(Place::Backend, &reason);
                reason
            },
            Self::Failed(_) | Self::TimedOut => reason.to_owned(),
        }
    }
}

/// The time for something that large to leave as well: the time for an answer runs from there.
pub(super) fn patience(limit: Duration, bytes: usize) -> Duration {
    let seconds = u64::try_from(bytes / SLOWEST).unwrap_or(u64::MAX);
    limit.saturating_add(Duration::from_secs(seconds))
}

/// Waits for a head; the time for it runs from when the client's body has been read, so that a slow
/// upload is not a silent host, or from when upstream stopped reading it. A body that was read before
/// goes up as fast as the line is.
pub(super) async fn head_in_time(
    source: &Source,
    limit: Duration,
    send: impl Future<Output = Result<Response<Driven>, Failure>>,
) -> Result<Response<Driven>, Missed> {
    let begun = clock::mono();
    let limit = match source.done_at() {
        Some(_before) => patience(limit, source.kept()),
        None => limit,
    };
    let mut send = std::pin::pin!(send);
    let mut wake = begun + limit;
    loop {
        match tokio::time::timeout_at(wake, &mut send).await {
            Ok(sent) => return sent.map_err(Missed::Failed),
            Err(_elapsed) => {
                // A client that is slow is waited for; a host that stops reading is silent.
                let from = source.upstreams_since().map(|from| from.max(begun));
                let due = from.map_or_else(|| Instant::now() + limit, |from| from + limit);
                if due <= Instant::now() {
                    return Err(Missed::TimedOut);
                }
                wake = due;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        budgets::Budgets, config::Caps, ledger::Ledger, proxy::books::Books, store::Store,
    };
    use bytes::Bytes;
    use cma_proto::endpoint::Root;
    use http_body_util::BodyExt as _;
    use std::{path::Path, sync::Arc};

    fn course(dir: &Path, patience: Duration) -> Course {
        let ledger = Ledger::start(dir, Caps { days: 0, bytes: 0 }).unwrap();
        let budgets = Budgets::load(dir, Store::new(&Root::at(dir)), ledger.clone()).unwrap();
        let traces = Traces::new(1, Arc::default(), Books::new(ledger, budgets));
        Course::new(Need::default(), traces.begin(None, None), patience)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_so_many_attempts_and_so_much_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut course = course(dir.path(), Duration::ZERO);
        for tried in 0..MAX_ATTEMPTS {
            course.trace.tried = tried;
            assert!(!course.is_spent(), "{tried}");
        }
        course.trace.tried = MAX_ATTEMPTS;
        assert!(course.is_spent());
        course.trace.tried = 1;
        tokio::time::advance(Duration::from_secs(119)).await;
        assert!(!course.is_spent());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(course.is_spent(), "a person has given up by then");
    }

    /// What never reached the host is no attempt, and what was waited for is no time of its.
    #[tokio::test(start_paused = true)]
    async fn an_outage_and_a_queue_cost_no_attempt_and_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut course = course(dir.path(), Duration::from_secs(280));
        let queued = Instant::now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        course.queued(queued);
        let begun = Instant::now();
        while !course.is_spent() {
            course.trace.tried += 1;
            course.reached(false);
            course.pause().await;
        }
        let (waited, tried) = (begun.elapsed().as_secs(), course.trace.tried);
        assert!((280..296).contains(&waited) && (20..=30).contains(&tried), "{waited} {tried}");
        course.queued(Instant::now());
        tokio::time::advance(Duration::from_secs(100)).await;
        course.reached(true);
        assert!(!course.is_spent(), "the host is back");
        assert_eq!(
            course.elapsed(),
            Duration::from_secs(100),
            "the time of what reached it counts"
        );
        course.trace.tried += 1;
        course.queued(Instant::now());
        course.reached(false);
        assert!(course.is_spent(), "it was waited for long enough in all");
        course.queued(Instant::now());
        course.reached(true);
        for _ in 0..MAX_ATTEMPTS {
            assert!(!course.is_spent());
            course.trace.tried += 1;
            course.reached(true);
        }
        assert!(course.is_spent());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_silence_for_which_there_is_time_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let course = course(dir.path(), Duration::ZERO);
        let (short, long) = (Duration::from_secs(30), Duration::from_secs(60));
        assert_eq!(course.believed(0, long * 5), 0, "the first is never believed");
        tokio::time::advance(short).await;
        assert_eq!(course.believed(1, short), 1);
        tokio::time::advance(short).await;
        assert_eq!(course.believed(1, short), 1, "there is time for another one");
        assert_eq!(course.believed(1, long), MAX_SILENCES);
        assert_eq!(course.believed(5, long), 5);
    }

    /// A host that takes a part of a request and then nothing is one that says nothing.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_left_unread_is_a_silence() {
        let (source, begun) = (Source::half_sent(), Instant::now());
        let _unread = source.attempt().unwrap();
        let limit = Duration::from_secs(30);
        let missed = head_in_time(&source, limit, std::future::pending()).await;
        assert!(matches!(missed, Err(Missed::TimedOut)));
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    /// A second attempt with a body of 8 MiB on a line of 2 Mbit/s isn't a host that says nothing.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_was_read_before_has_the_time_to_leave() {
        let limit = Duration::from_secs(30);
        for (bytes, at_most) in [(0, 30), (100, 30), (8 * 1024 * 1024, 30 + 256)] {
            let source = Source::read_before(&Bytes::from(vec![0; bytes]));
            let begun = Instant::now();
            let mut attempt = source.attempt().unwrap();
            let slowly = async {
                tokio::time::sleep(limit / 2).await;
                assert!(attempt.frame().await.is_some() || bytes == 0);
                std::future::pending().await
            };
            let missed = head_in_time(&source, limit, slowly).await;
            assert!(matches!(missed, Err(Missed::TimedOut)));
            let waited = begun.elapsed().as_secs();
            assert_eq!(waited, at_most, "{bytes} bytes");
        }
    }
}
