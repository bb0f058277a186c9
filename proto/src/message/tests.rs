//! Every message through both codecs, and the bytes of protocol 1 as they were.

use super::*;
use crate::{
    choose::ProfileInfo,
    codec::Codec,
    credits::{Credit, Purse, Used},
    error::{ErrorCode, Refusal},
    login::{LoginBegin, LoginDone, LoginEnd, LoginMethod, LoginStarted, LoginWaiting},
    owner::{FlaggedInfo, MirrorInfo, Verified},
    sessions::SessionList,
    survive::{SealBy, SealInfo, Secret},
    usage::{UsageBy, UsageGroup, UsageSums, UsageTable},
};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use std::{fmt::Debug, path::Path};

/// The committed bytes: name and hex of the bincode payload. They never change; a changed message is
/// a new protocol version and a new file. `UPDATE=1 cargo test -p cma-proto` writes it anew.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/message/golden-v1.txt");

fn text(text: &str) -> String {
    text.to_owned()
}

fn status() -> Status {
    Status {
        epoch: 42,
        daemon: DaemonInfo {
            pid: 4711,
            version: text("0.1.0"),
            instance: text("i-1"),
            started_at: 1_800_000_000,
            phase: text("serving"),
            root: text("/home/a/.codex/multi-auth"),
            log: text("/home/a/.codex/multi-auth/log/cmad.jsonl"),
            environment: vec![Setting { name: text("CMA_LISTEN"), value: text("127.0.0.1:0") }],
        },
        proxy: ProxyInfo {
            url: text("http://127.0.0.1:4000"),
            active: 1,
            connections: 2,
            served: 3,
            failed: 4,
            retried: 5,
            refused: 6,
        },
        upstream: UpstreamInfo {
            backend: text("https://chatgpt.com/backend-api"),
            issuer: text("https://auth.openai.com"),
        },
        pin: Some(PinInfo { account: text("aa"), since: 7, yielded: Some(text("it rests")) }),
        next: Some(text("aa")),
        notes: vec![text("ä note")],
        accounts: vec![account(), AccountInfo { label: None, windows: Vec::new(), ..account() }],
    }
}

fn account() -> AccountInfo {
    AccountInfo {
        index: 1,
        id: text("0123456789ab"),
        label: Some(text("work")),
        email: Some(text("a@example.test")),
        plan: Some(text("pro")),
        workspace: text("w-1"),
        enabled: true,
        state: text("cooling"),
        reason: Some(text("usage limit reached")),
        until: Some(1_800_000_300),
        generation: 7,
        token_expires_at: None,
        in_flight: 2,
        served: 300,
        windows: vec![window()],
        tags: vec![text("team")],
    }
}

fn window() -> WindowInfo {
    WindowInfo {
        limit: text("codex"),
        name: text("primary"),
        used_percent: 12.5,
        minutes: Some(300),
        resets_at: Some(1_800_000_300),
        seen_at: 1_800_000_000,
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let selector = || text("work");
    vec![
        ("request.status", Request::Status),
        (
            "request.import",
            Request::Import { path: text("/a/auth.json"), label: Some(text("work")) },
        ),
        ("request.switch", Request::Switch { selector: selector(), expected_epoch: Some(300) }),
        ("request.unpin", Request::Unpin),
        ("request.set_enabled", Request::SetEnabled { selector: selector(), enabled: true }),
        ("request.set_label", Request::SetLabel { selector: selector(), label: text("home") }),
        ("request.remove", Request::Remove { selector: selector() }),
        ("request.why", Request::Why { request: Some(text("r-1")) }),
        (
            "request.launch",
            Request::Launch(LaunchRequest {
                printed: false,
                codex_version: text("0.169.0"),
                codex_home: text("/home/a/.codex"),
                cwd: text("/home/a/src"),
                overrides: vec![text("model=\"m\"")],
                profile: Some(text("p")),
                interactive: true,
                no_proxy: text("a,b"),
                ignore_user_config: false,
            }),
        ),
        ("request.subscribe", Request::Subscribe),
        ("request.shutdown", Request::Shutdown { now: true }),
        (
            "request.survive",
            Request::Survive(Survive::SealOn {
                by: SealBy::Passphrase(Secret(text("four words"))),
            }),
        ),
        (
            "request.handover",
            Request::Handover(HandoverRequest::Begin { socket: text("/home/a/next"), now: false }),
        ),
        ("request.pools", Request::Pools(PoolsRequest::Show { project: text("/home/a/src") })),
        ("request.sessions", Request::Sessions(SessionsRequest::Unpin { id: text("01a1") })),
        (
            "request.usage",
            Request::Usage(UsageRequest::Table {
                since_ms: 1_800_000_000_000,
                until_ms: u64::MAX,
                by: UsageBy::Day,
                days: vec![1_800_000_000_000],
            }),
        ),
        (
            "request.choose",
            Request::Choose(ChooseRequest::Force { selector: selector(), secs: 300 }),
        ),
    ]
    .into_iter()
    .chain(login_requests())
    .chain(neighbour_requests())
    .collect()
}

/// Of other programs' logins.
fn neighbour_requests() -> Vec<(&'static str, Request)> {
    let selector = || text("work");
    vec![
        (
            "request.owner.launch",
            Request::Owner(OwnerRequest::Launch(LaunchRequest {
                printed: true,
                codex_version: String::new(),
                codex_home: text("/home/a/.codex"),
                cwd: text("/"),
                overrides: Vec::new(),
                profile: None,
                interactive: false,
                no_proxy: String::new(),
                ignore_user_config: false,
            })),
        ),
        (
            "request.owner.mirror_on",
            Request::Owner(OwnerRequest::MirrorOn {
                selector: Some(selector()),
                path: text("/home/a/.codex/auth.json"),
                with_refresh: true,
            }),
        ),
        ("request.owner.mirror_off", Request::Owner(OwnerRequest::MirrorOff)),
        ("request.owner.mirror_status", Request::Owner(OwnerRequest::MirrorStatus)),
        ("request.owner.flagged", Request::Owner(OwnerRequest::Flagged)),
        (
            "request.owner.verify_flagged",
            Request::Owner(OwnerRequest::VerifyFlagged { dry_run: true, restore: false }),
        ),
        ("request.owner.revoke", Request::Owner(OwnerRequest::Revoke { selector: selector() })),
        (
            "request.takeover.scan",
            Request::Takeover(TakeoverRequest::Scan(crate::takeover::Scan {
                apply: true,
                from: Some(text("/a/old")),
                home: text("/home/a"),
                codex_home: text("/home/a/.codex"),
                environment: vec![(text("XDG_DATA_HOME"), text("/d"))],
                passphrase: Some(crate::takeover::Passphrase::new(text("open"))),
            })),
        ),
        (
            "request.takeover.export",
            Request::Takeover(TakeoverRequest::Export { secrets_to: Some(text("/a/new.json")) }),
        ),
        ("request.credits.list", Request::Credits(CreditsRequest::List)),
        (
            "request.credits.use",
            Request::Credits(CreditsRequest::Use {
                selector: text("work"),
                credit: Some(text("c-1")),
            }),
        ),
    ]
}

fn login_requests() -> [(&'static str, Request); 4] {
    let begin = LoginBegin {
        method: LoginMethod::Device,
        org: Some(text("w-1")),
        account: Some(text("work")),
        email: None,
        issuer: Some(text("http://127.0.0.1:9")),
        timeout_secs: Some(900),
        label: Some(text("work")),
        tags: vec![text("team")],
        enabled: true,
    };
    [
        ("request.login.begin", LoginRequest::Begin(begin)),
        ("request.login.poll", LoginRequest::Poll { id: text("s-1") }),
        ("request.login.paste", LoginRequest::Paste { id: text("s-1"), url: text("c#s") }),
        ("request.login.cancel", LoginRequest::Cancel { id: text("s-1") }),
    ]
    .map(|(name, step)| (name, Request::Login(step)))
}

fn profile() -> ProfileInfo {
    ProfileInfo {
        project: text("src-0123456789ab"),
        path: text("/home/a/src"),
        strategy: Some(text("random")),
        prefer: vec![text("fast")],
        avoid: Vec::new(),
        allow: Vec::new(),
        deny: Vec::new(),
        weights: vec![(text("aa"), 0.5)],
        notes: Vec::new(),
    }
}

fn login_replies() -> [(&'static str, Reply); 4] {
    let started = LoginStarted {
        id: text("s-1"),
        method: LoginMethod::Browser,
        url: text("https://auth.openai.com/oauth/authorize"),
        user_code: Some(text("ABCD-12345")),
        expires_at: 1_800_000_900,
        first: true,
    };
    let waiting =
        LoginWaiting { stage: text("person"), seconds_left: 899, notes: vec![text("a note")] };
    let done = LoginDone {
        account: text("aa"),
        name: text("work"),
        email: Some(text("a@example.test")),
        plan: Some(text("pro")),
        workspace: text("w-1"),
        created: true,
        accounts: 3,
        notes: Vec::new(),
    };
    let refusal = Refusal::new(ErrorCode::Denied, "the issuer said no", "run `cmactl login`");
    [
        ("reply.login.started", LoginReply::Started(started)),
        ("reply.login.waiting", LoginReply::Waiting(waiting)),
        ("reply.login.done", LoginReply::Done(done)),
        ("reply.login.ended", LoginReply::Ended { end: LoginEnd::Denied, refusal }),
    ]
    .map(|(name, reply)| (name, Reply::Login(Box::new(reply))))
}

fn replies() -> Vec<(&'static str, Reply)> {
    let why = Why {
        request: Some(text("r-1")),
        at: 1_800_000_000,
        chosen: Some(text("aa")),
        decided_by: text("it is pinned"),
        retry_at: None,
        candidates: vec![Candidate {
            account: text("aa"),
            name: text("work"),
            excluded: Some(text("disabled by you")),
            keys: vec![(text("pin"), text("pinned"))],
        }],
        attempts: vec![text("aa: status 500")],
    };
    let plan = LaunchPlan {
        env: vec![(text("A"), text("1"))],
        args: vec![text("-c"), text("x=1")],
        base_url: text("http://127.0.0.1:4000/codex"),
        client_key: text("at-cma-key"),
        key_expires_at: 1_800_000_300,
        session: text("l-1"),
    };
    let imported = Imported {
        id: text("aa"),
        email: None,
        plan: Some(text("plus")),
        workspace: text("w-1"),
        created: true,
        notes: Vec::new(),
    };
    let switched = Switched {
        from: None,
        to: Some(text("aa")),
        name: Some(text("work")),
        epoch: 43,
        notes: vec![text("n")],
    };
    let changed = Changed { account: text("aa"), name: text("work"), epoch: 44, notes: Vec::new() };
    let noted = Launch::Noted { plan: plan.clone(), notes: vec![text("a policy changed")] };
    let pools = PoolsReply::Projects(Vec::new());
    let aside = Launch::Aside { reason: text("an own provider"), tell: false };
    vec![
        ("reply.status", Reply::Status(Box::new(status()))),
        ("reply.imported", Reply::Imported(vec![imported])),
        ("reply.switched", Reply::Switched(switched)),
        ("reply.changed", Reply::Changed(changed)),
        ("reply.why", Reply::Why(Box::new(why))),
        ("reply.launch.through", Reply::Launch(Box::new(Launch::Through(plan)))),
        ("reply.launch.aside", Reply::Launch(Box::new(aside))),
        ("reply.shutting_down", Reply::ShuttingDown { active: 300 }),
        (
            "reply.survived",
            Reply::Survived(Survived::Seal(SealInfo {
                state: text("on"),
                by: vec![text("keyring"), text("recovery")],
                since: Some(1_800_000_000),
                sealed: 300,
                plain: 0,
                recovery: Some(Secret(text("AAAA-BBBB"))),
                notes: vec![text("a note")],
            })),
        ),
        ("reply.handover", Reply::Handover(HandoverReply::Begun { pid: 7, locked: false })),
        ("reply.pools", Reply::Pools(pools)),
        ("reply.sessions", Reply::Sessions(SessionsReply::List(SessionList::default()))),
        ("reply.usage", Reply::Usage(Box::new(UsageReply::Table(usage())))),
        ("reply.choose", Reply::Choose(ChooseReply::Profile(profile()))),
        ("reply.launch.noted", Reply::Launch(Box::new(noted))),
    ]
    .into_iter()
    .chain(login_replies())
    .chain(neighbour_replies())
    .chain(credits_replies())
    .collect()
}

/// Of other programs' logins.
fn neighbour_replies() -> Vec<(&'static str, Reply)> {
    let mirror = MirrorInfo {
        on: true,
        path: Some(text("/home/a/.codex/auth.json")),
        account: Some(text("aa")),
        follows: true,
        with_refresh: false,
        since: Some(1_800_000_000),
        held: Some(text("it holds another login")),
        notes: vec![text("n")],
    };
    let flagged = FlaggedInfo {
        account: text("aa"),
        name: text("work"),
        cause: text("revoked"),
        since: 1_800_000_000,
        status: Some(401),
        code: Some(text("refresh_token_reused")),
        excerpt: Some(text("{}")),
        next: text("sign in"),
    };
    let verified = Verified {
        account: text("aa"),
        name: text("work"),
        outcome: text("restored"),
        message: text("m"),
    };
    vec![
        ("reply.owner.mirror", Reply::Owner(OwnerReply::Mirror(mirror))),
        ("reply.owner.flagged", Reply::Owner(OwnerReply::Flagged(vec![flagged]))),
        ("reply.owner.verified", Reply::Owner(OwnerReply::Verified(vec![verified]))),
        ("reply.takeover.report", Reply::Takeover(Box::new(TakeoverReply::Report(report())))),
        ("reply.takeover.exported", Reply::Takeover(Box::new(TakeoverReply::Exported(exported())))),
    ]
}

fn usage() -> UsageTable {
    let sums = UsageSums {
        requests: 2,
        complete: 1,
        blocked: 1,
        input_tokens: 300,
        cache_share: Some(0.5),
        cost_usd_low: 0.25,
        cost_usd_high: 1.5,
        ..UsageSums::default()
    };
    UsageTable {
        by: UsageBy::Account,
        since_ms: 1,
        until_ms: 2,
        total: sums,
        groups: vec![UsageGroup { key: text("aa"), name: Some(text("work")), sums }],
        prices_dated: text("2026-08-21"),
        notes: vec![text("a note")],
    }
}

fn credits_replies() -> [(&'static str, Reply); 2] {
    let purse = Purse {
        account: text("aa"),
        name: text("work"),
        available: 1,
        credits: vec![Credit { id: text("c-1"), detail: text("{}") }],
        problem: Some(text("why")),
    };
    let used = Used {
        account: text("aa"),
        name: text("work"),
        credit: text("c-1"),
        state: text("ready"),
        until: Some(9),
        notes: vec![text("n")],
    };
    [
        ("reply.credits.purses", CreditsReply::Purses { accounts: vec![purse] }),
        ("reply.credits.used", CreditsReply::Used(used)),
    ]
    .map(|(name, reply)| (name, Reply::Credits(reply)))
}

fn report() -> crate::takeover::Report {
    use crate::takeover::{FoundInfo, KeptInfo, Report, SourceInfo};
    Report {
        applied: false,
        sources: vec![SourceInfo {
            format: text("codex-multi-auth"),
            path: text("/a/old"),
            state: text("read"),
            reason: None,
            accounts: 1,
            notes: vec![text("n")],
        }],
        accounts: vec![FoundInfo {
            account: Some(text("aa")),
            name: text("work"),
            email: None,
            plan: Some(text("plus")),
            workspace: Some(text("w-1")),
            format: text("codex-multi-auth"),
            path: text("/a/old"),
            state: text("new"),
            reason: text("not in the pool"),
            taken: true,
            label: Some(text("work")),
            tags: vec![text("t")],
            enabled: true,
            flagged: false,
            pool: None,
            notes: Vec::new(),
        }],
        kept: vec![KeptInfo {
            what: text("budgets"),
            path: text("/a/b"),
            count: 300,
            fate: text("kept"),
            reason: text("r"),
        }],
        notes: Vec::new(),
    }
}

fn exported() -> crate::takeover::Exported {
    use crate::takeover::{EXPORT_FORMAT, Exported, ExportedAccount};
    Exported {
        format: text(EXPORT_FORMAT),
        layout: 1,
        exported_at: 1_800_000_000,
        secrets_in: None,
        pin: Some(text("aa")),
        accounts: vec![ExportedAccount {
            id: text("aa"),
            user: text("u"),
            workspace: text("w-1"),
            email: None,
            plan: None,
            label: Some(text("work")),
            enabled: true,
            tags: vec![text("t")],
            notes: None,
            pools: Vec::new(),
            issuer: text("https://i.test"),
            backend: text("https://b.test"),
            expires_at: Some(9),
            gone: None,
        }],
    }
}

fn events() -> Vec<(&'static str, Event)> {
    let account = || text("aa");
    let served = Change::Served {
        request: text("r-1"),
        account: Some(account()),
        model: Some(text("m")),
        status: 200,
        outcome: text("complete"),
        attempts: 2,
        first_byte_ms: Some(400),
        total_ms: 70_000,
        input_tokens: Some(1),
        cached_tokens: None,
        output_tokens: Some(3),
    };
    let state = Change::State {
        account: account(),
        state: text("cooling"),
        reason: Some(text("asked to slow down")),
        until: Some(9),
    };
    let retry =
        Change::Retry { request: text("r-1"), account: account(), reason: text("status 500") };
    [
        ("event.snapshot", Change::Snapshot { status: Box::new(status()) }),
        ("event.accounts", Change::Accounts { account: account(), what: text("added") }),
        ("event.state", state),
        ("event.pin", Change::Pin { account: None }),
        ("event.quota", Change::Quota { account: account(), windows: vec![window()] }),
        ("event.retry", retry),
        ("event.served", served),
        ("event.phase", Change::Phase { phase: text("draining") }),
    ]
    .map(|(name, change)| (name, Event { epoch: 45, at_ms: 1_800_000_000_123, change }))
    .into()
}

fn refusals() -> Vec<(&'static str, Refusal)> {
    // One of each code: their order is on the wire too.
    ErrorCode::ALL
        .iter()
        .map(|&code| (code.name(), Refusal::new(code, "what happened", "what to type")))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Both codecs give the message back; returns its golden line.
fn check<T>((name, message): (&str, T)) -> String
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    for codec in [Codec::Bincode, Codec::Json] {
        let mut bytes = codec.encode(&message).unwrap();
        assert_eq!(codec.decode::<T>(&bytes).unwrap(), message, "{name} through {}", codec.name());
        bytes.push(0);
        assert!(codec.decode::<T>(&bytes).is_err(), "{name}: a byte left over is an error");
    }
    format!("{name} {}\n", hex(&Codec::Bincode.encode(&message).unwrap()))
}

#[test]
fn every_message_survives_both_codecs_and_its_bytes_never_change() {
    let lines: Vec<String> = (requests().into_iter().map(check))
        .chain(replies().into_iter().map(check))
        .chain(events().into_iter().map(check))
        .chain(refusals().into_iter().map(check))
        .collect();
    let now = lines.concat();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(Path::new(GOLDEN), &now).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    for (old, new) in golden.lines().zip(now.lines()) {
        assert_eq!(old, new, "a message of protocol 1 changed: that is a new protocol version");
    }
    assert_eq!(golden.lines().count(), lines.len(), "run with UPDATE=1 and commit {GOLDEN}");
}

#[test]
fn every_golden_payload_still_decodes() {
    for line in std::fs::read_to_string(GOLDEN).unwrap_or_default().lines() {
        let (name, payload) = line.split_once(' ').unwrap();
        let payload = unhex(payload);
        let read = match name.split('.').next().unwrap() {
            "request" => Codec::Bincode.decode::<Request>(&payload).map(drop),
            "reply" => Codec::Bincode.decode::<Reply>(&payload).map(drop),
            "event" => Codec::Bincode.decode::<Event>(&payload).map(drop),
            _ => Codec::Bincode.decode::<Refusal>(&payload).map(drop),
        };
        assert!(read.is_ok(), "{name}: {read:?}");
    }
}

/// Fails to compile when a variant is added, so that it is added above too.
#[test]
#[expect(clippy::too_many_lines, reason = "a line for each variant")]
fn no_variant_is_missing_above() {
    let request = |request: &Request| match request {
        Request::Status => 0,
        Request::Import { .. } => 1,
        Request::Switch { .. } => 2,
        Request::Unpin => 3,
        Request::SetEnabled { .. } => 4,
        Request::SetLabel { .. } => 5,
        Request::Remove { .. } => 6,
        Request::Why { .. } => 7,
        Request::Launch(_) => 8,
        Request::Subscribe => 9,
        Request::Shutdown { .. } => 10,
        Request::Login(LoginRequest::Begin(_)) => 11,
        Request::Login(LoginRequest::Poll { .. }) => 12,
        Request::Login(LoginRequest::Paste { .. }) => 13,
        Request::Login(LoginRequest::Cancel { .. }) => 14,
        Request::Survive(_) => 15,
        Request::Owner(OwnerRequest::Launch(_)) => 16,
        Request::Owner(OwnerRequest::MirrorOn { .. }) => 17,
        Request::Owner(OwnerRequest::MirrorOff) => 18,
        Request::Owner(OwnerRequest::MirrorStatus) => 19,
        Request::Owner(OwnerRequest::Flagged) => 20,
        Request::Owner(OwnerRequest::VerifyFlagged { .. }) => 21,
        Request::Owner(OwnerRequest::Revoke { .. }) => 22,
        Request::Takeover(TakeoverRequest::Scan(_)) => 23,
        Request::Takeover(TakeoverRequest::Export { .. }) => 24,
        Request::Pools(_) => 25,
        Request::Sessions(_) => 26,
        Request::Usage(_) => 27,
        Request::Credits(CreditsRequest::List) => 28,
        Request::Credits(CreditsRequest::Use { .. }) => 29,
        Request::Handover(_) => 30,
        Request::Choose(_) => 31,
    };
    let reply = |reply: &Reply| match reply {
        Reply::Status(_) => 0,
        Reply::Imported(_) => 1,
        Reply::Switched(_) => 2,
        Reply::Changed(_) => 3,
        Reply::Why(_) => 4,
        Reply::Launch(launch) => match **launch {
            Launch::Through(_) => 5,
            Launch::Aside { .. } => 6,
            Launch::Noted { .. } => 19,
        },
        Reply::ShuttingDown { .. } => 7,
        Reply::Login(login) => match **login {
            LoginReply::Started(_) => 8,
            LoginReply::Waiting(_) => 9,
            LoginReply::Done(_) => 10,
            LoginReply::Ended { .. } => 11,
        },
        Reply::Survived(_) => 12,
        Reply::Owner(OwnerReply::Mirror(_)) => 13,
        Reply::Owner(OwnerReply::Flagged(_)) => 14,
        Reply::Owner(OwnerReply::Verified(_)) => 15,
        Reply::Takeover(reply) => match **reply {
            TakeoverReply::Report(_) => 16,
            TakeoverReply::Exported(_) => 17,
        },
        Reply::Pools(_) => 18,
        Reply::Sessions(_) => 20,
        Reply::Usage(_) => 21,
        Reply::Credits(CreditsReply::Purses { .. }) => 22,
        Reply::Credits(CreditsReply::Used(_)) => 23,
        Reply::Handover(_) => 24,
        Reply::Choose(_) => 25,
    };
    let change = |event: &Event| match event.change {
        Change::Snapshot { .. } => 0,
        Change::Accounts { .. } => 1,
        Change::State { .. } => 2,
        Change::Pin { .. } => 3,
        Change::Quota { .. } => 4,
        Change::Retry { .. } => 5,
        Change::Served { .. } => 6,
        Change::Phase { .. } => 7,
    };
    let count = |mut seen: Vec<i32>| {
        seen.sort_unstable();
        assert_eq!(seen, (0_i32..).take(seen.len()).collect::<Vec<_>>());
    };
    count(requests().iter().map(|(_, r)| request(r)).collect());
    count(replies().iter().map(|(_, r)| reply(r)).collect());
    count(events().iter().map(|(_, e)| change(e)).collect());
    assert_eq!((requests().len(), replies().len(), events().len()), (32, 26, 8));
}

#[test]
fn a_length_that_the_payload_does_not_hold_reserves_nothing() {
    // `Imported` with 2^62 elements, then with a string of 2^62 bytes: nine bytes each.
    for mut bytes in [vec![1_u8], vec![1, 1]] {
        bytes.push(253);
        bytes.extend_from_slice(&(1_u64 << 62).to_le_bytes());
        assert!(Codec::Bincode.decode::<Reply>(&bytes).is_err());
    }
    let nested = "[".repeat(100_000);
    assert!(Codec::Json.decode::<Reply>(nested.as_bytes()).is_err());
}

/// Whatever comes is one message that can be said again, or an error.
fn read_any<T>(codec: Codec, bytes: &[u8]) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    if let Ok(message) = codec.decode::<T>(bytes) {
        let again = codec.encode(&message).unwrap();
        // NaN is not equal to itself, so what is compared is the bytes.
        prop_assert_eq!(codec.encode(&codec.decode::<T>(&again).unwrap()).unwrap(), again);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for codec in [Codec::Bincode, Codec::Json] {
            read_any::<Request>(codec, &bytes)?;
            read_any::<Reply>(codec, &bytes)?;
            read_any::<Event>(codec, &bytes)?;
            read_any::<Refusal>(codec, &bytes)?;
        }
    }

    #[test]
    fn a_message_with_flipped_bytes_is_a_message_or_an_error(
        which in 0_usize..64,
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        cut in any::<usize>(),
    ) {
        let replies = replies();
        for codec in [Codec::Bincode, Codec::Json] {
            let mut bytes = codec.encode(&replies[which % replies.len()].1).unwrap();
            for (at, byte) in &flips {
                let at = at % bytes.len();
                bytes[at] ^= byte;
            }
            bytes.truncate(cut % (2 * bytes.len()));
            // A number with a fraction may lose its last digit on the way through JSON.
            if codec == Codec::Bincode { read_any::<Reply>(codec, &bytes)? } else { drop(codec.decode::<Reply>(&bytes)) }
        }
    }
}
