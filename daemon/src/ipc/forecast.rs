//! What the pool would do and did: forecasts and explanations, from the comparison that chooses.

use super::{
    choose::called,
    convert::{self, stopping},
};
use crate::{app::App, blocking, clock, fault::Fault, proxy::trace::Trace};
use cma_core::{
    account::Account,
    identity::AccountId,
    pool::{Input, Pool},
    quota::Window,
    select::{Choice, Excluded, Key, Need},
    time::{Now, Span, Wall},
};
use cma_proto::{
    choose::{Explained, Forecast, ForecastInfo, WindowForecast},
    error::ErrorCode,
    message::{Candidate, Why},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A thread that begins now is at work about so long.
const THREAD: Span = Span::from_secs(3600);
/// Percent left below which the next answers may use it up.
const LITTLE: f64 = 2.0;

/// What a request of a launch in a folder needs; of the global pool without one.
async fn need(app: &Arc<App>, dir: Option<String>) -> Result<Need, Fault> {
    let Some(dir) = dir else { return Ok(Need::default()) };
    let from = Arc::clone(app);
    let choice = blocking::disk(move || from.projects.choose(&dir, &from.roster)).await?;
    Ok(choice.bounds.need())
}

/// What every account can still take, best first.
pub(super) async fn forecast(
    app: &Arc<App>,
    model: Option<String>,
    dir: Option<String>,
    live: bool,
) -> Result<Forecast, Fault> {
    let need = Need { model: model.map(Into::into), ..need(app, dir).await? };
    let notes = if live { ask_upstream(app, &need).await? } else { Vec::new() };
    let mut forecast = app
        .actor
        .look(move |pool, now| {
            let all = pool.explain(&need, now);
            let mut able = all.iter().filter(|one| one.excluded.is_none());
            let (first, second) = (able.next(), able.next());
            let reason = match (first, second) {
                (None, _) => "no account can serve",
                (Some(_), None) => "it is the only one that can serve",
                (Some(first), Some(second)) => first.key.decided_against(&second.key),
            };
            let untils = all.iter().filter_map(|one| one.excluded?.until);
            let retry_at = if first.is_some() { None } else { untils.min().map(Wall::secs) };
            let accounts = all.iter().filter_map(|one| {
                let account = pool.accounts().iter().find(|account| account.id == one.id)?;
                Some(account_forecast(pool, account, one, need.model.as_deref(), now))
            });
            Forecast {
                at: now.wall.secs(),
                strategy: pool.rules_for(&need).strategy.name().to_owned(),
                recommended: first.map(|first| first.id.to_string()),
                reason: reason.to_owned(),
                retry_at,
                accounts: accounts.collect(),
                notes: Vec::new(),
            }
        })
        .await
        .map_err(stopping)?;
    forecast.notes = notes;
    Ok(forecast)
}

/// Asks the usage endpoint about every account that a need may use; what can't be had is said, and
/// what is known stays.
async fn ask_upstream(app: &Arc<App>, need: &Need) -> Result<Vec<String>, Fault> {
    let scope = need.scope.clone();
    let ids: Vec<AccountId> = app
        .actor
        .look(move |pool, _now| {
            let all = pool.accounts().iter();
            let asked =
                all.filter(|account| account.enabled && scope.place(&account.pools).is_some());
            asked.map(|account| account.id.clone()).collect()
        })
        .await
        .map_err(stopping)?;
    // At once: each may take as long as a silent host is waited for.
    let asked = ids.iter().map(|id| app.proxy.windows_of(id));
    let answers = futures_util::future::join_all(asked).await;
    let mut notes = Vec::new();
    for (id, windows) in ids.into_iter().zip(answers) {
        match windows {
            Some(windows) => {
                app.actor.command(Input::QuotaSeen(id, windows)).await.map_err(stopping)?;
            },
            None => notes.push(format!(
                "upstream didn't tell for `{}`; what is known of it is older",
                called(app, &id)
            )),
        }
    }
    Ok(notes)
}

fn account_forecast(
    pool: &Pool,
    account: &Account,
    candidate: &cma_core::select::Candidate,
    model: Option<&str>,
    now: Now,
) -> ForecastInfo {
    let quota = &account.quota;
    let reserve = pool.rules().reserve;
    let headroom = quota.headroom(model, now);
    let counting = quota.of(model);
    let empty = |window: &Window| empty_at(window, quota.trail().day(window), now);
    let ends: Vec<Span> = counting.filter_map(empty).map(|at| at.since(now.wall)).collect();
    let risk = if quota.of(model).next().is_none() {
        "unknown"
    } else if headroom < reserve.critical.max(LITTLE) || ends.iter().any(|left| *left < THREAD) {
        "high"
    } else if headroom < reserve.low || !ends.is_empty() {
        "medium"
    } else {
        "low"
    };
    let until = candidate.excluded.and_then(|out| out.until);
    ForecastInfo {
        account: account.id.to_string(),
        name: account.name.to_string(),
        readiness: match (candidate.excluded, until) {
            (None, _) => "ready",
            (Some(_), Some(_)) => "waiting",
            (Some(_), None) => "out",
        }
        .to_owned(),
        reason: candidate.said.clone(),
        wait_secs: until.map(|at| at.since(now.wall).millis().div_ceil(1000)),
        risk: risk.to_owned(),
        windows: quota
            .windows()
            .iter()
            .map(|window| window_forecast(window, empty(window), now))
            .collect(),
        keys: candidate.key.shown(),
    }
}

fn window_forecast(window: &Window, empty_at: Option<Wall>, now: Now) -> WindowForecast {
    WindowForecast {
        limit: window.limit.to_string(),
        minutes: window.minutes,
        left_percent: (100.0 - window.used_at(now)).max(0.0),
        resets_at: window.resets.filter(|at| *at > now.wall).map(Wall::secs),
        empty_at: empty_at.map(Wall::secs),
        age_secs: now.wall.since(window.seen).millis() / 1000,
    }
}

/// When a window is empty at today's pace, if that is before its reset. Today is the `day` that its
/// trail tells of; for one of a day or less, or known for less, the time since it began.
fn empty_at(window: &Window, day: Option<(f64, Span)>, now: Now) -> Option<Wall> {
    let (minutes, resets) = (window.minutes?, window.resets?);
    let used = window.used_at(now);
    if used <= 0.0 {
        return None;
    }
    let began = resets.minus(Span::from_secs(minutes.saturating_mul(60)));
    // What was used was used until it was seen. A window that has just begun says little.
    let passed = window.seen.since(began).millis().max(60_000);
    let (spent, over) = day.map_or((used, passed), |(spent, over)| (spent, over.millis()));
    if spent <= 0.0 && used < 100.0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a month fit")]
    let left = (100.0 - used).max(0.0) / spent.max(f64::MIN_POSITIVE) * over as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float saturates"
    )]
    let empty = window.seen.plus(Span::from_millis(left as u64)).max(now.wall);
    (empty < resets).then_some(empty)
}

/// How a choice was or would be made.
pub(super) async fn why(
    app: &Arc<App>,
    request: Option<String>,
    dir: Option<String>,
) -> Result<Explained, Fault> {
    match request {
        None => now(app, need(app, dir).await?).await,
        Some(id) => {
            let trace = app.proxy.traces.find(&id).ok_or_else(|| {
                let what = match id.as_str() {
                    "" | "last" => "no request has been served yet".to_owned(),
                    id => format!("request `{id}` is not among the last ones"),
                };
                Fault::new(
                    ErrorCode::NotFound,
                    what,
                    "run `cmactl events` to see the ids of requests",
                )
            })?;
            Ok(past(app, &trace))
        },
    }
}

async fn now(app: &Arc<App>, need: Need) -> Result<Explained, Fault> {
    let named = need.accounts.is_some();
    let (all, strategy, forced, took) = app
        .actor
        .look(move |pool, now| {
            let begun = Instant::now();
            std::hint::black_box(pool.next_for(&need, now).is_some());
            let took = begun.elapsed();
            let strategy = pool.rules_for(&need).strategy;
            (pool.explain(&need, now), strategy, pool.forced(now).is_some(), took)
        })
        .await
        .map_err(stopping)?;
    let (candidates, chosen, decided_by) = convert::candidates(&all);
    let untils = all.iter().filter_map(|candidate| candidate.excluded?.until);
    let retry_at = if chosen.is_some() { None } else { untils.min().map(Wall::secs) };
    let able = all.iter().filter(|candidate| candidate.excluded.is_none());
    let pinned = able.clone().next().is_some_and(|first| first.key.pin == 0);
    Ok(Explained {
        able: u32::try_from(able.count()).unwrap_or(u32::MAX),
        by: by(forced, pinned, named).to_owned(),
        strategy: strategy.name().to_owned(),
        warm: None,
        cache: "a new thread has nothing cached anywhere".to_owned(),
        cost_us: Some(micros(took)),
        why: Why {
            request: None,
            at: clock::unix(),
            chosen,
            decided_by,
            retry_at,
            candidates,
            attempts: Vec::new(),
        },
    })
}

const fn by(forced: bool, pinned: bool, named: bool) -> &'static str {
    match (forced, pinned, named) {
        (true, ..) => "force",
        (_, true, _) => "pin",
        (_, _, true) => "launch",
        _ => "pool",
    }
}

fn past(app: &App, trace: &Trace) -> Explained {
    let mut why = Why {
        request: Some(trace.id.to_string()),
        at: trace.at,
        chosen: trace.account.as_ref().map(ToString::to_string),
        decided_by: "no account could serve".to_owned(),
        retry_at: None,
        candidates: Vec::new(),
        attempts: trace.attempts.clone(),
    };
    let Some(made) = &trace.choice else {
        return Explained {
            why,
            strategy: app.choosing.saved().strategy().name().to_owned(),
            by: "pool".to_owned(),
            able: 0,
            warm: None,
            cache: "no account was chosen".to_owned(),
            cost_us: None,
        };
    };
    let Choice { key, second, able, out, warm, forced } = &made.choice;
    let name = |id: &AccountId| called(app, id);
    let row = |id: &AccountId, key: Option<Key>, out: Option<Excluded>| Candidate {
        account: id.to_string(),
        name: name(id),
        excluded: out.map(|out| out.bar.text().to_owned()),
        keys: key.map(|key| key.shown()).unwrap_or_default(),
    };
    // The last choice is the one whose account served; attempts tell of those before.
    let chosen = trace.account.as_ref();
    why.candidates.extend(chosen.map(|id| row(id, Some(*key), None)));
    why.candidates.extend(second.as_ref().map(|(id, key)| row(id, Some(*key), None)));
    why.candidates.extend(out.iter().map(|(id, out)| row(id, None, Some(*out))));
    why.decided_by = match second {
        Some((_id, second)) => key.decided_against(second).to_owned(),
        None => "it was the only one that could serve".to_owned(),
    };
    Explained {
        why,
        strategy: key.strategy.name().to_owned(),
        by: by(*forced, key.pin == 0, false).to_owned(),
        able: *able,
        warm: warm.as_ref().map(|(id, tokens)| (id.to_string(), *tokens)),
        cache: match (warm, chosen) {
            (Some((home, tokens)), Some(id)) if home == id => {
                format!("the thread stayed where {tokens} of its tokens were cached")
            },
            (Some((home, tokens)), Some(_)) => format!(
                "the thread moved here from {}, where {tokens} of its tokens were cached",
                name(home)
            ),
            (None, _) | (_, None) => "the thread was new: nothing was cached".to_owned(),
        },
        cost_us: Some(micros(made.took)),
    }
}

fn micros(took: Duration) -> f64 {
    // Tenths are as fine as the clock.
    (took.as_secs_f64() * 1e7).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_core::{
        quota::{MAIN_LIMIT, Place},
        time::Mono,
    };

    #[test]
    fn a_window_that_is_used_too_fast_is_empty_before_its_reset() {
        let now = Now { mono: Mono::from_millis(1), wall: Wall::from_secs(1_800_000_000) };
        let window = |used: f64, left_minutes: u64| Window {
            limit: MAIN_LIMIT.into(),
            model: None,
            place: Place::Primary,
            used_percent: used,
            minutes: Some(300),
            resets: Some(now.wall.plus(Span::from_secs(60 * left_minutes))),
            seen: now.wall,
        };
        // Half of it in one hour of five: the other half lasts another hour.
        let empty_at = |window: &Window, now| empty_at(window, None, now);
        let empty = empty_at(&window(50.0, 240), now).unwrap();
        assert_eq!(empty.since(now.wall), Span::from_secs(3600));
        assert_eq!(empty_at(&window(50.0, 60), now), None, "slow enough");
        assert_eq!(empty_at(&window(0.0, 60), now), None);
        assert_eq!(empty_at(&Window { minutes: None, ..window(50.0, 240) }, now), None);
        assert_eq!(empty_at(&window(100.0, 240), now), Some(now.wall));
    }

    #[test]
    fn a_week_is_told_by_the_day_and_not_by_its_beginning() {
        let now = Now { mono: Mono::from_millis(1), wall: Wall::from_secs(1_800_000_000) };
        let day = Span::from_secs(24 * 3600);
        let week = Window {
            limit: MAIN_LIMIT.into(),
            model: None,
            place: Place::Secondary,
            used_percent: 40.0,
            minutes: Some(7 * 24 * 60),
            resets: Some(now.wall.plus(day.times(3))),
            seen: now.wall,
        };
        // Four days have passed with ten percent each: it lasts. With thirty today it ends in two.
        assert_eq!(empty_at(&week, None, now), None);
        let empty = empty_at(&week, Some((30.0, day)), now).unwrap();
        assert_eq!(empty.since(now.wall), day.times(2));
        assert_eq!(empty_at(&week, Some((0.0, day)), now), None, "nothing was used today");
        let full = Window { used_percent: 100.0, ..week };
        assert_eq!(empty_at(&full, Some((0.0, day)), now), Some(now.wall));
    }
}
