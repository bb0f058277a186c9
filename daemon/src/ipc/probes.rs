//! Probes as people ask for them and see them.

use super::convert::{self, stopping};
use crate::{app::App, clock, fault::Fault, probes::Past, roster};
use cma_core::{identity::AccountId, quota::Quota};
use cma_proto::usage::{ProbeInfo, ProbePast, ProbesInfo};
use std::{collections::BTreeMap, sync::Arc};

/// What was seen within so many seconds is as good as asked now.
const FRESH: u64 = 10 * 60;
/// Beyond it nobody should rely on it: a five-hour window may have gone by half.
const RECENT: u64 = 2 * 3600;

/// Begins a run over the accounts named, or all that are enabled.
pub(super) async fn start(
    app: &Arc<App>,
    named: &[String],
    stale_s: u64,
    model: Option<String>,
) -> Result<(), Fault> {
    let ids: Vec<AccountId> = if named.is_empty() {
        let all = app.roster.all();
        let enabled = all.iter().filter(|record| record.enabled);
        enabled.map(|record| AccountId::from_written(&record.id)).collect()
    } else {
        let one = |text: &String| Ok(AccountId::from_written(&app.roster.select(text)?.id));
        named.iter().map(one).collect::<Result<_, Fault>>()?
    };
    let known = known(app).await?;
    let now = clock::unix();
    let fresh = |id: &AccountId| {
        let seen = known.get(id).and_then(seen_at);
        seen.is_some_and(|seen| now.saturating_sub(seen) < stale_s)
    };
    let wanted = ids.into_iter().map(|id| (id.clone(), fresh(&id))).collect();
    app.probes.begin(&app.proxy, wanted, model)
}

/// The run at hand, with what is known of its accounts.
pub(super) async fn shown(app: &App) -> Result<ProbesInfo, Fault> {
    let known = known(app).await?;
    let now = app.actor.look(|_pool, now| now).await.map_err(stopping)?;
    let run = app.probes.run();
    let probes = run.items.into_iter().map(|item| {
        let quota = known.get(&item.id);
        let seen = quota.and_then(seen_at);
        let record = app.roster.get(&item.id);
        ProbeInfo {
            account: item.id.to_string(),
            name: record.map(|record| roster::name(&record).to_owned()),
            state: item.step.word().to_owned(),
            error: item.error,
            took_ms: item.took_ms,
            confidence: confidence(seen, clock::unix()).to_owned(),
            seen_at: seen,
            windows: quota.map(|quota| convert::windows(quota, now)).unwrap_or_default(),
            history: app.probes.history(&item.id).into_iter().map(past).collect(),
        }
    });
    Ok(ProbesInfo { running: run.running, probes: probes.collect() })
}

fn past(past: Past) -> ProbePast {
    ProbePast { at: past.at, error: past.error, used_percent: past.used_percent }
}

async fn known(app: &App) -> Result<BTreeMap<AccountId, Quota>, Fault> {
    let known = app.actor.look(|pool, _now| {
        let all = pool.accounts().iter();
        all.map(|account| (account.id.clone(), account.quota.clone())).collect()
    });
    known.await.map_err(stopping)
}

/// When the newest window was seen, in seconds since 1970.
fn seen_at(quota: &Quota) -> Option<u64> {
    quota.windows().iter().map(|window| window.seen.millis() / 1000).max()
}

/// How far windows can be believed.
fn confidence(seen: Option<u64>, now: u64) -> &'static str {
    match seen.map(|seen| now.saturating_sub(seen)) {
        None => "unknown",
        Some(0..FRESH) => "fresh",
        Some(FRESH..RECENT) => "recent",
        Some(_) => "old",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_believed_less_with_its_age() {
        let ages =
            [(None, "unknown"), (Some(9_000), "fresh"), (Some(8_000), "recent"), (Some(0), "old")];
        for (seen, wanted) in ages {
            assert_eq!(confidence(seen, 9_100), wanted, "{seen:?}");
        }
        assert_eq!(confidence(Some(9_999), 9_100), "fresh", "a clock that was set back");
    }
}
