use super::*;
use crate::render::plain;
use cma_proto::message::{DaemonInfo, PinInfo, ProxyInfo, UpstreamInfo};

const NOW: u64 = 1_770_000_000;

fn account(index: u32, label: Option<&str>, state: &str) -> AccountInfo {
    AccountInfo {
        index,
        id: format!("acc{index}"),
        label: label.map(ToOwned::to_owned),
        email: Some(format!("user{index}@example.com")),
        plan: Some("plus".to_owned()),
        workspace: format!("ws-{index}"),
        enabled: true,
        state: state.to_owned(),
        reason: None,
        until: None,
        generation: 1,
        token_expires_at: Some(NOW + 3600),
        in_flight: 0,
        served: u64::from(index) * 10,
        windows: vec![WindowInfo {
            limit: "codex".to_owned(),
            name: "primary".to_owned(),
            used_percent: 42.0,
            minutes: Some(300),
            resets_at: Some(NOW + 7980),
            seen_at: NOW - 5,
        }],
        tags: Vec::new(),
    }
}

fn sample() -> Status {
    let mut spent = account(2, None, "cooling");
    spent.reason = Some("usage limit reached, the five hour window is used up".to_owned());
    spent.until = Some(NOW + 7980);
    spent.windows.clear();
    Status {
        epoch: 7,
        daemon: DaemonInfo {
            pid: 4242,
            version: VERSION.to_owned(),
            instance: "i1".to_owned(),
            started_at: NOW - 7980,
            phase: "serving".to_owned(),
            root: "/r".to_owned(),
            log: "/r/log/cmad.jsonl".to_owned(),
            environment: Vec::new(),
        },
        proxy: ProxyInfo {
            url: "http://127.0.0.1:4000".to_owned(),
            active: 1,
            connections: 2,
            served: 30,
            failed: 0,
            retried: 3,
            refused: 0,
        },
        upstream: UpstreamInfo {
            backend: DEFAULT_BACKEND.to_owned(),
            issuer: DEFAULT_ISSUER.to_owned(),
        },
        pin: Some(PinInfo {
            account: "acc2".to_owned(),
            since: NOW - 60,
            yielded: Some("it is cooling".to_owned()),
        }),
        next: Some("acc1".to_owned()),
        notes: vec!["one thing".to_owned()],
        accounts: vec![account(1, Some("work"), "ready"), spent],
    }
}

#[test]
fn the_picture_says_all_without_colour() {
    let text = plain(&picture(&sample(), NOW));
    for expected in [
        "daemon    serving · version",
        "pid 4242 · up 2 h 13 min",
        "proxy     http://127.0.0.1:4000 · 1 running · 30 served · 3 retried",
        "pinned    user2@example.com (since 1 min ago, for the global pool) · yields: it is cooling",
        "next      work",
        "→  1  work",
        "user1@example.com · plus",
        "5 h   ███░░░░░  42 %  2 h 13 min",
        "cooling (2 h 13 min)",
        "not known yet",
        "note: one thing",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    assert!(!text.contains("upstream"), "the default upstream is not worth a line:\n{text}");
    assert!(!text.contains("failed"), "zeros are not worth a word:\n{text}");
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{widest:?} columns:\n{text}");
}

#[test]
fn an_upstream_of_its_own_an_empty_pool_and_a_dry_pool_are_told() {
    let mut status = sample();
    status.upstream.backend = "http://127.0.0.1:9/backend-api".to_owned();
    status.next = None;
    let text = plain(&picture(&status, NOW));
    assert!(text.contains("upstream  http://127.0.0.1:9/backend-api · issuer https://auth"));
    assert!(text.contains("next      no account can serve now"), "{text}");
    status.accounts.clear();
    let text = plain(&picture(&status, NOW));
    assert!(text.contains("cmactl login") && text.contains("cmactl import"), "{text}");
}

#[test]
fn a_window_whose_reset_has_passed_is_empty() {
    let mut known = account(1, None, "ready").windows.remove(0);
    known.resets_at = Some(NOW - 120);
    assert_eq!(plain(&window(&known, NOW)), "5 h   ░░░░░░░░   0 %  reset 2 min ago");
    (known.minutes, known.resets_at, known.limit) = (None, None, "other".to_owned());
    assert_eq!(plain(&window(&known, NOW)).trim_end(), "primary other ███░░░░░  42 %");
}

#[test]
fn names_from_outside_write_no_escape_codes() {
    let mut status = sample();
    status.accounts[0].label = Some("\x1b]0;title\x07evil".to_owned());
    status.accounts[1].reason = Some("a\x1b[2Jb".to_owned());
    assert!(!picture(&status, NOW).contains(['\x1b', '\x07']));
}

#[test]
fn json_has_the_status_at_top_level() {
    let differences = vec![Difference {
        name: "CMA_LISTEN".to_owned(),
        daemon: None,
        client: Some("127.0.0.1:1".to_owned()),
    }];
    let shown =
        Shown { status: sample(), environment_differences: differences, flagged: Vec::new() };
    let line = crate::render::json_line(&shown).unwrap();
    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(read["schema"], 1);
    assert_eq!(read["proxy"]["url"], "http://127.0.0.1:4000");
    assert_eq!(read["daemon"]["pid"], 4242);
    assert_eq!(read["environment_differences"][0]["client"], "127.0.0.1:1");
    assert!(line.ends_with("}\n") && line.starts_with("{\"schema\":1,"));
}

#[test]
fn only_values_that_differ_are_differences() {
    let setting = |name: &str, value: &str| Setting { name: name.into(), value: value.into() };
    let daemon = [
        setting("CMA_LISTEN", "127.0.0.1:0"),
        setting("CMA_HEAD_TIMEOUT", "2"),
        setting("CMA_UPSTREAM_ISSUER", ""),
        setting("HOME", "/elsewhere"),
    ];
    let found = differences(&daemon, |name| match name {
        "CMA_LISTEN" => Some("127.0.0.1:0".to_owned()),
        "CMA_UPSTREAM_BACKEND" => Some("http://127.0.0.1:9".to_owned()),
        _ => None,
    });
    let said: Vec<String> = found.iter().map(ToString::to_string).collect();
    let restart = "`cmactl daemon restart` takes this shell's";
    assert_eq!(
        said,
        [
            format!(
                "the daemon was started without `CMA_UPSTREAM_BACKEND`, this shell has \
             `CMA_UPSTREAM_BACKEND=http://127.0.0.1:9`; {restart}"
            ),
            format!(
                "the daemon was started with `CMA_HEAD_TIMEOUT=2`, this shell has none; {restart}"
            ),
        ]
    );
}

#[test]
fn list_has_one_line_an_account() {
    let text = plain(&rows(&sample().accounts));
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("1  acc1  work   user1@example.com  plus  ready    ws-1"), "{text}");
}
