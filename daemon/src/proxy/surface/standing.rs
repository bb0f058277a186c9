//! What the pool has left, in the answers of turns.
//!
//! Upstream tells with each turn how full the serving account's windows are, and the CLI warns by it and
//! shows it as what its person has left. That is one account's, and others take over where it ends: so
//! where the pool has more left, that is told, as the usage endpoint does ([`super::pooled`]). Where the
//! account itself has more than the pool's mean, the thread stays there, and what upstream told stays.
//!
//! Only windows that upstream told of are replaced, and in them what is used and when it comes back:
//! nothing is added. Refusals are passed as they are.

use super::{
    super::{Proxy, keys::Launch},
    members,
    pooled::{self, Pooled, Share},
    usage,
};
use crate::clock;
use cma_core::{
    identity::AccountId,
    quota::{self, Window},
    time::Wall,
};
use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Launches of which it is kept.
const KEPT: usize = 64;
/// The pool is not asked again within this: what a turn's own account just said is always counted.
const FRESH: Duration = Duration::from_secs(1);

/// What a launch's accounts had left a moment ago; nothing where it has only one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing(Arc<[(AccountId, Share)]>);

/// Those of the last launches.
#[derive(Debug, Default)]
pub(super) struct Standings(Mutex<VecDeque<(u64, Instant, Standing)>>);

impl Standings {
    fn get(&self, launch: u64) -> Option<Standing> {
        let kept = self.0.lock();
        let (_, at, standing) = kept.iter().find(|(of, ..)| *of == launch)?;
        (at.elapsed() < FRESH).then(|| standing.clone())
    }

    fn put(&self, launch: u64, standing: Standing) {
        let mut kept = self.0.lock();
        kept.retain(|(of, ..)| *of != launch);
        kept.truncate(KEPT - 1);
        kept.push_front((launch, Instant::now(), standing));
    }
}

/// The standing of a launch's accounts.
pub(crate) async fn of(proxy: &Proxy, launch: &Launch) -> Standing {
    if let Some(known) = proxy.surface.standings.get(launch.id) {
        return known;
    }
    let members = Box::pin(members::of(proxy, launch.bounds.need())).await;
    let serving = members.iter().filter(|member| member.counts() && !member.held_back);
    let shares: Vec<_> = serving.map(|member| (member.id.clone(), usage::share(member))).collect();
    let standing = if shares.len() > 1 { Standing(shares.into()) } else { Standing::default() };
    proxy.surface.standings.put(launch.id, standing.clone());
    standing
}

/// What the head of a turn's answer is to say in the place of the windows that it told of its account:
/// the pool's.
pub(crate) async fn instead(
    proxy: &Proxy,
    launch: &Launch,
    account: &AccountId,
    told: &[Window],
    headers: &HeaderMap,
) -> Instead {
    if told.is_empty() {
        return Instead::default();
    }
    of(proxy, launch).await.instead(account, told, headers)
}

/// What headers of an answer say in the place of what upstream put there.
#[derive(Debug, Default)]
pub(crate) struct Instead(Vec<(HeaderName, HeaderValue)>);

impl Instead {
    /// Replaces what is there; nothing is added.
    pub(crate) fn put(self, headers: &mut HeaderMap) {
        for (name, value) in self.0 {
            if let Entry::Occupied(mut told) = headers.entry(name) {
                told.insert(value);
            }
        }
    }
}

impl Standing {
    /// For each window that an account just told the pool's, where that has more left.
    fn pooled(&self, account: &AccountId, told: &[Window]) -> Vec<Option<Pooled>> {
        let own = self.0.iter().find(|(id, _share)| id == account);
        let own = own.map(|(_id, share)| share.with(told));
        let shares: Vec<&Share> = self
            .0
            .iter()
            .map(|(id, share)| own.as_ref().filter(|_own| id == account).unwrap_or(share))
            .collect();
        let more = |told: &Window| {
            let used = pooled::whole(told.used_percent);
            let less = |pooled: &Pooled| pooled.used < used;
            let pooled = || pooled::pooled(&shares, &told.limit, told.place, Some(told));
            if used == 0 { None } else { pooled().filter(less) }
        };
        told.iter().map(more).collect()
    }

    fn instead(&self, account: &AccountId, told: &[Window], headers: &HeaderMap) -> Instead {
        if self.0.is_empty() {
            return Instead::default();
        }
        let mut instead = Vec::new();
        for (window, pooled) in told.iter().zip(self.pooled(account, told)) {
            let Some(Pooled { used, resets, .. }) = pooled else { continue };
            let prefix = format!("x-{}-{}-", window.limit.replace('_', "-"), window.place.name());
            let number = |what| match what {
                "used-percent" => Some(used),
                "reset-at" => resets.map(Wall::secs),
                "reset-after-seconds" => resets.map(|at| at.since(clock::wall()).millis() / 1000),
                _ => None,
            };
            // A look along the names is cheaper than names that are made.
            instead.extend(headers.keys().filter_map(|name| {
                let number = number(name.as_str().strip_prefix(&*prefix)?)?;
                Some((name.clone(), HeaderValue::from(number)))
            }));
        }
        Instead(instead)
    }

    /// The same in the event that tells of them over a WebSocket; `None` where it stays as it is.
    pub(crate) fn in_event(&self, account: &AccountId, event: &str) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let mut event: Value = serde_json::from_str(event).ok()?;
        let now: Wall = clock::wall();
        let told = quota::from_event(&event, now);
        let pooled = self.pooled(account, &told);
        if pooled.iter().all(Option::is_none) {
            return None;
        }
        // Said of the account, beside its windows.
        let left = pooled.iter().flatten().all(|window| window.used < 100);
        for (what, is) in [("allowed", left), ("limit_reached", !left)] {
            if let Some(field) = event.pointer_mut(&format!("/rate_limits/{what}")) {
                *field = json!(is);
            }
        }
        for (window, pooled) in told.iter().zip(pooled) {
            let Some(pooled) = pooled else { continue };
            let shown = event.pointer_mut(&format!("/rate_limits/{}", window.place.name()))?;
            let mut put = |what: &str, number: u64| {
                if let Some(field) = shown.get_mut(what) {
                    *field = json!(number);
                }
            };
            put("used_percent", pooled.used);
            if let Some(resets) = pooled.resets {
                put("reset_at", resets.secs());
                put("reset_after_seconds", resets.since(now).millis() / 1000);
            }
        }
        Some(event.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_core::quota::{MAIN_LIMIT, Place};

    fn share(limit: &str, used: f64, resets: u64) -> Share {
        let window = Window {
            limit: limit.into(),
            model: None,
            place: Place::Primary,
            used_percent: used,
            minutes: Some(300),
            resets: Some(Wall::from_secs(resets)),
            seen: Wall::from_secs(1),
        };
        Share { windows: vec![window], limited: None, fit: true }
    }

    fn standing(shares: &[(&str, Share)]) -> Standing {
        Standing(shares.iter().map(|(id, of)| (AccountId::from_written(id), of.clone())).collect())
    }

    #[test]
    fn an_answer_says_what_the_pool_has_left() {
        let pool = standing(&[
            ("a", share(MAIN_LIMIT, 10.0, 9_000_000_000)),
            ("b", share(MAIN_LIMIT, 20.0, 8_000_000_000)),
        ]);
        let mut headers = HeaderMap::new();
        let known =
            [("used-percent", "90.5"), ("reset-at", "9000000000"), ("window-minutes", "300")];
        for (what, value) in known {
            let name = HeaderName::try_from(format!("x-codex-primary-{what}")).unwrap();
            headers.insert(name, HeaderValue::from_static(value));
        }
        let windows = quota::from_headers(&headers, Wall::from_secs(2));
        pool.instead(&AccountId::from_written("a"), &windows, &headers).put(&mut headers);
        let says = |what: &str| headers[format!("x-codex-primary-{what}")].to_str().unwrap();
        // What this very answer said of its account counts: the mean of 9.5 and 80 is left.
        assert_eq!((says("used-percent"), says("reset-at")), ("56", "8000000000"));
        assert_eq!((says("window-minutes"), headers.len()), ("300", 3));
        let event = r#"{"type":"codex.rate_limits","rate_limits":{"allowed":false,"limit_reached":true,"primary":{"used_percent":90.5,"window_minutes":300,"reset_at":9000000000}},"metered_limit_name":"codex"}"#;
        let told = pool.in_event(&AccountId::from_written("a"), event).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            told["rate_limits"],
            json!({
                "allowed": true,
                "limit_reached": false,
                "primary": {"used_percent": 56, "window_minutes": 300, "reset_at": 8_000_000_000_u64},
            })
        );
        assert_eq!(Standing::default().in_event(&AccountId::from_written("a"), event), None);
        assert_eq!(pool.in_event(&AccountId::from_written("a"), "no event"), None);
    }

    #[test]
    fn what_the_account_has_left_itself_is_not_made_less() {
        let pool = standing(&[
            ("a", share("codex_other", 10.0, 9_000_000_000)),
            ("b", share("codex_other", 100.0, 9_000_000_000)),
        ]);
        for (told, shown) in [("10.5", "10.5"), ("99", "99"), ("100", "100")] {
            let mut headers = HeaderMap::new();
            let name = HeaderName::from_static("x-codex-other-primary-used-percent");
            headers.insert(name.clone(), HeaderValue::from_static(told));
            let windows = quota::from_headers(&headers, Wall::from_secs(2));
            pool.instead(&AccountId::from_written("a"), &windows, &headers).put(&mut headers);
            assert_eq!(headers[&name], shown);
            // The other one gains by what this one has left.
            headers.insert(name.clone(), HeaderValue::from_static("100"));
            let windows = quota::from_headers(&headers, Wall::from_secs(2));
            pool.instead(&AccountId::from_written("b"), &windows, &headers).put(&mut headers);
            assert_eq!(headers[&name], "55");
        }
    }
}
