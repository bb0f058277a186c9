use super::*;
use crate::time::Mono;
use proptest::prelude::*;
use serde_json::json;

const SEEN: Wall = Wall::from_secs(1_000);

fn now(secs: u64) -> Now {
    Now { mono: Mono::default(), wall: Wall::from_secs(secs) }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
        .collect()
}

#[test]
fn headers_of_any_family_are_windows() {
    let windows = from_headers(
        &headers(&[
            ("x-codex-primary-used-percent", "12.5"),
            ("x-codex-primary-window-minutes", "300"),
            ("x-codex-primary-reset-at", "5000"),
            ("x-codex-bengalfox-secondary-used-percent", "7"),
            ("x-codex-secondary-used-percent", "0"),
            ("x-odd-primary-used-percent", "NaN"),
        ]),
        SEEN,
    );
    let mut quota = Quota::default();
    assert!(quota.merge(&windows));
    let known: Vec<_> =
        quota.windows().iter().map(|w| (&*w.limit, w.place, w.used_percent, w.minutes)).collect();
    assert_eq!(
        known,
        [
            ("codex", Place::Primary, 12.5, Some(300)),
            ("codex_bengalfox", Place::Secondary, 7.0, None)
        ]
    );
    assert!((quota.headroom(None, now(1_000)) - 87.5).abs() < f64::EPSILON);
    assert!((quota.headroom(None, now(5_000)) - 100.0).abs() < f64::EPSILON, "reset has passed");
}

#[test]
fn events_and_usage_answers_say_the_same_as_headers() {
    let event = json!({"rate_limits": {"primary": {"used_percent": 5.5, "window_minutes": 300, "reset_at": 9}}});
    let usage = json!({
        "rate_limit": {"primary_window": {"used_percent": 12, "limit_window_seconds": 18000, "reset_at": 9}, "secondary_window": null},
        "additional_rate_limits": [{"metered_feature": "codex_x", "rate_limit": {"primary_window": {"used_percent": 5}}}],
    });
    assert_eq!(from_event(&event, SEEN)[0].minutes, Some(300));
    let windows = from_usage(&usage, SEEN);
    assert_eq!((windows.len(), windows[0].minutes, &*windows[1].limit), (2, Some(300), "codex_x"));
    assert!(from_event(&json!(7), SEEN).is_empty() && from_usage(&json!("x"), SEEN).is_empty());
}

#[test]
fn a_limit_called_after_a_model_counts_for_that_model_alone() {
    let windows = from_headers(
        &headers(&[
            ("x-codex-primary-used-percent", "20"),
            ("x-codex-primary-reset-at", "5000"),
            ("x-codex-bengalfox-primary-used-percent", "100"),
            ("x-codex-bengalfox-primary-reset-at", "7000"),
            ("x-codex-bengalfox-limit-name", "GPT-5.3-Codex-Spark"),
        ]),
        SEEN,
    );
    let mut quota = Quota::default();
    quota.merge(&windows);
    let own = Some("gpt-5.3-codex-spark");
    assert_eq!(quota.full_until(own, now(1_000)), Some(Wall::from_secs(7_000)));
    for other in [None, Some("gpt-5.5"), Some("second-limit")] {
        assert_eq!(quota.full_until(other, now(1_000)), None);
        assert!((quota.headroom(other, now(1_000)) - 80.0).abs() < f64::EPSILON);
    }
    // An event names the limit alone; whose it is stays known.
    let event = json!({"metered_limit_name": "codex_bengalfox",
        "rate_limits": {"primary": {"used_percent": 40, "reset_at": 7_000}}});
    quota.merge(&from_event(&event, Wall::from_secs(1_001)));
    assert_eq!(quota.full_until(own, now(1_001)), None);
    assert!((quota.headroom(own, now(1_001)) - 60.0).abs() < f64::EPSILON);
    let usage = json!({"additional_rate_limits": [{"limit_name": "Second limit",
        "metered_feature": "codex_x", "rate_limit": {"primary_window": {"used_percent": 5}}}]});
    assert_eq!(from_usage(&usage, SEEN)[0].model.as_deref(), Some("second-limit"));
}

#[test]
fn a_full_window_names_its_end() {
    let mut quota = Quota::default();
    quota.merge(&from_usage(
        &json!({"rate_limit": {
            "primary_window": {"used_percent": 100, "reset_at": 2_000},
            "secondary_window": {"used_percent": 100, "reset_at": 9_000},
        }}),
        SEEN,
    ));
    assert_eq!(quota.full_until(None, now(1_000)), Some(Wall::from_secs(9_000)));
    assert_eq!(quota.full_until(None, now(9_001)), None);
    let body = json!({"error": {"type": "usage_limit_reached", "resets_in_seconds": 10}});
    assert_eq!(reset_in_error(&body, SEEN), Some(Wall::from_secs(1_010)));
}

fn window() -> impl Strategy<Value = Window> {
    (0usize..3, any::<bool>(), 0u32..150, 0u64..50).prop_map(|(limit, first, used, seen)| Window {
        limit: ["codex", "a", "b"][limit].into(),
        model: None,
        place: if first { Place::Primary } else { Place::Secondary },
        used_percent: f64::from(used),
        minutes: None,
        resets: None,
        seen: Wall::from_secs(seen),
    })
}

proptest! {
    #[test]
    fn merging_is_idempotent_and_newer_knowledge_wins(windows in proptest::collection::vec(window(), 0..20)) {
        let mut quota = Quota::default();
        quota.merge(&windows);
        let once = quota.clone();
        for window in &windows {
            let known = once.windows().iter().find(|w| w.limit == window.limit && w.place == window.place);
            prop_assert!(known.unwrap().seen >= window.seen);
        }
        let known = once.windows().to_vec();
        prop_assert!(!quota.merge(&known));
        prop_assert_eq!(quota, once);
    }

    #[test]
    fn any_json_is_read_without_harm(text in "\\PC{0,80}") {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            drop((from_event(&value, SEEN), from_usage(&value, SEEN)));
        }
    }
}
