//! The fuzz targets as plain functions: any bytes in, a panic when a promise is broken.
//!
//! `tests/it/fuzz_corpus.rs` includes this file and runs every function over its committed corpus,
//! so that the targets can't rot; the binaries beside it hand them to libFuzzer.

use bytes::Bytes;
use cma_core::{
    bound::{self, Leave, Mark as Sealed, Without},
    chunks::Joiner,
    cooldown::Cause,
    event::{self, Fault, Kind},
    frame as turn,
    identity::{AccountId, Claims},
    models::{self, Written},
    plain,
    pool::{Effect, Grant, Input, LeaseId, Pool, Release, RenewalFailure, Seed, Ticket},
    quota::{self, MAIN_LIMIT, Place, Quota, Window},
    select::Need,
    skim::Skim,
    sniff::{Said, Sniffer},
    sse::Events,
    stream::{Beginning, Found},
    time::{Mono, Now, Span, Wall},
    token::Generation,
    verdict::{self, Mark, Outcome},
    wrapped,
};
use cma_proto::{
    codec::Codec,
    frame::Frame,
    hello::{self, ClientHello, ServerHello},
    message::{Event, Reply, Request},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, value::RawValue};
use std::collections::{BTreeMap, BTreeSet};

const NOW: Now = Now { mono: Mono::from_millis(5), wall: Wall::from_secs(1_800_000_000) };

/// A stream of bytes is frames, then an error or a rest; what was read encodes to what was there.
pub fn frame(bytes: &[u8]) {
    let mut buffer = bytes.to_vec();
    while let Ok(decoded) = Frame::decode(&mut buffer) {
        let before = bytes.len() - buffer.len();
        match decoded {
            Ok(frame) => {
                let mut again = Vec::new();
                frame.encode(&mut again).expect("what was decoded is within its limit");
                assert!(bytes[..before].ends_with(&again));
            },
            Err(need) => {
                assert!(need > buffer.len());
                break;
            },
        }
    }
}

/// A hello from anybody is refused or leads to a version and a codec that both have.
pub fn hello(bytes: &[u8]) {
    if let Ok(client) = serde_json::from_slice::<ClientHello>(bytes) {
        match hello::negotiate(&client) {
            Ok((version, codec)) => {
                assert!((client.min..=client.max.max(client.min)).contains(&version));
                assert!(
                    client.codecs.is_empty() || client.codecs.iter().any(|c| c == codec.name())
                );
            },
            Err(refused) => assert!(matches!(*refused, ServerHello::Refused { .. })),
        }
    }
    drop(serde_json::from_slice::<ServerHello>(bytes));
}

/// The first byte picks the codec, the rest is any message.
pub fn message(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let codec = if first % 2 == 0 { Codec::Bincode } else { Codec::Json };
    if let Ok(request) = codec.decode::<Request>(rest) {
        let again = codec.encode(&request).expect("what was read can be said");
        assert_eq!(codec.decode::<Request>(&again).expect("and read again"), request);
    }
    drop(codec.decode::<Reply>(rest));
    drop(codec.decode::<Event>(rest));
}

/// Lines `name: value` as response headers.
pub fn quota_headers(bytes: &[u8]) {
    let headers = headers(bytes);
    believe(&quota::from_headers(&headers, NOW.wall));
    for status in [200, 401, 403, 429, 500] {
        let status = StatusCode::from_u16(status).expect("a status");
        drop(verdict::classify(&Outcome::Head { status, headers: &headers, body: None }, NOW.wall));
    }
}

fn headers(bytes: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(200) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..at]), HeaderValue::from_bytes(&line[at + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Any JSON as a stream event, a usage answer and an error body.
pub fn quota_json(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    believe(&quota::from_event(&value, NOW.wall));
    believe(&quota::from_usage(&value, NOW.wall));
    assert!(quota::reset_in_error(&value, NOW.wall).is_none_or(|at| at >= Wall::default()));
    let headers = HeaderMap::new();
    for status in [400, 403, 429] {
        let status = StatusCode::from_u16(status).expect("a status");
        let head = Outcome::Head { status, headers: &headers, body: Some(&value) };
        drop((verdict::classify(&head, NOW.wall), verdict::stops_the_cli(status, Some(&value))));
    }
}

/// Any bytes as one event: what its first bytes tell is what the whole tells, and a fault is judged.
pub fn event(bytes: &[u8]) {
    let kind = Kind::of(bytes);
    for end in 0..bytes.len().min(event::TELLS_BY + 8) {
        assert!(Kind::peek(&bytes[..end]).is_none_or(|peeked| peeked == kind));
    }
    assert!(!kind.is_fault() || (kind.is_final() && !kind.is_before_the_answer()));
    let fault = Fault::read(bytes);
    let verdict = fault.verdict(NOW.wall);
    assert!(verdict.reason.len() <= 128 && !verdict.reason.is_empty());
    assert!(fault.stated_wait().is_none_or(|wait| wait <= Span::from_secs(3600)));
    assert!(fault.message.chars().count() <= 512 && fault.headers.len() <= 64);
    drop((fault.stops_the_cli(), fault.is_hosts(), event::metadata(bytes)));
    believe(&fault.windows(NOW.wall));
    believe(&event::limits(bytes, NOW.wall));
}

/// The first byte says where the rest, a stream, is split: it is read alike.
pub fn stream(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let read = |parts: &[&[u8]]| {
        let mut beginning = Beginning::default();
        let found = parts.iter().find_map(|part| beginning.feed(part));
        (found, beginning.is_a_stream())
    };
    let whole = read(&[rest]);
    let (left, right) = rest.split_at(usize::from(*first).min(rest.len()));
    assert_eq!(read(&[left, right]), whole);
    let bytes: Vec<&[u8]> = rest.chunks(1).collect();
    assert_eq!(read(&bytes), whole);
    if let Some(Found::Fault(fault)) = whole.0 {
        drop(fault.verdict(NOW.wall));
    }
}

/// The first byte says where the rest, an answer of events, is split, and how large one may be: the same
/// texts come out.
pub fn sse(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let read = |parts: &[&[u8]]| {
        let (mut events, mut all) = (Events::new(8 + usize::from(*first)), Vec::new());
        for part in parts {
            events.feed(part);
        }
        while let Some(event) = events.next_event() {
            all.push(event);
        }
        all
    };
    let whole = read(&[rest]);
    let (left, right) = rest.split_at(usize::from(*first).min(rest.len()));
    assert_eq!(read(&[left, right]), whole);
    let bytes: Vec<&[u8]> = rest.chunks(1).collect();
    assert_eq!(read(&bytes), whole);
    assert!(whole.iter().flatten().all(|text| text.len() <= 8 + usize::from(*first)));
}

/// The first byte says where the rest, a stream, is split, and whether its beginning was held back: it says
/// the same.
pub fn sniff(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let said = |parts: &[&[u8]]| {
        let mut sniffer = Sniffer::new(NOW.wall);
        parts.iter().for_each(|part| sniffer.feed(part));
        sniffer.said()
    };
    let whole = said(&[rest]);
    let (left, right) = rest.split_at(usize::from(*first).min(rest.len()));
    assert_eq!(said(&[left, right]), whole);
    let single: Vec<&[u8]> = rest.chunks(1).collect();
    assert_eq!(said(&single), whole);
    let mut held = Sniffer::new(NOW.wall);
    held.begins_with(vec![Bytes::copy_from_slice(left)]);
    if held.has_ended() {
        let Said { end, unclear, .. } = said(&[left]);
        let plain = left.trim_ascii_end().ends_with(b"}");
        assert!(end.is_some() || unclear || plain, "it was plainly the last event");
    }
    held.feed(right);
    assert_eq!(held.said(), whole);
    believe(&whole.windows);
    let mut alone = Sniffer::new(NOW.wall);
    alone.event(Bytes::copy_from_slice(rest));
    drop(alone.said());
}

/// A status in two bytes, lines of headers, an empty line, a body: what stands for it is an object whose
/// type comes first.
pub fn wrapped(bytes: &[u8]) {
    let Some(([high, low], rest)) = bytes.split_first_chunk() else { return };
    let at = rest.windows(2).position(|two| two == b"\n\n").unwrap_or(rest.len());
    let (head, body) = rest.split_at(at);
    let headers = headers(head);
    let text = String::from_utf8_lossy(body);
    let status = u16::from_be_bytes([*high, *low]);
    let [created, completed] = wrapped::warmed(&text);
    let frames = [
        (Some(wrapped::wrap(status, &headers, body)), "error"),
        (Some(wrapped::stop(&text)), "response.failed"),
        (Some(wrapped::previous_not_found(&text)), "error"),
        (wrapped::metadata(&headers), "response.metadata"),
        (wrapped::limits(&headers), "codex.rate_limits"),
        (Some(created), "response.created"),
        (Some(completed), "response.completed"),
    ];
    for (frame, kind) in frames {
        let Some(frame) = frame else { continue };
        assert!(frame.starts_with(&format!("{{\"type\":\"{kind}\"")), "{frame}");
        let read: Value = serde_json::from_str(&frame).expect("a frame is JSON");
        assert_eq!(Kind::of(frame.as_bytes()), Kind::of(read.to_string().as_bytes()));
        believe(&event::limits(frame.as_bytes(), NOW.wall));
        if kind == "error" {
            drop(Fault::read(frame.as_bytes()).verdict(NOW.wall));
        }
    }
}

/// Two lists, one after a zero byte: their union has each slug once, and every slug that either has.
pub fn models(bytes: &[u8]) {
    let lists: Vec<_> = bytes.splitn(2, |byte| *byte == 0).filter_map(Written::read).collect();
    let union = models::union(&lists);
    let body = format!("{{\"models\":[{}]}}", union.join(","));
    let again = Written::read(body.as_bytes()).expect("a union is a list");
    let slugs: BTreeSet<_> = lists.iter().flat_map(Written::slugs).collect();
    assert!(again.slugs().collect::<BTreeSet<_>>().is_subset(&slugs));
    assert_eq!(union.len(), slugs.len());
}

/// Any text as a client's frame or as metadata: every edit keeps what it doesn't name.
pub fn ws_frame(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Values as they stand: a number that fits no type of ours is upstream's to refuse.
    let object = |text: &str| serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(text).ok();
    let before = object(text);
    if let Some(create) = turn::Create::read(text) {
        if let Some(before) = &before {
            let said = |object: &BTreeMap<String, Box<RawValue>>, name: &str| -> Option<String> {
                serde_json::from_str(object.get(name)?.get()).ok().flatten()
            };
            assert_eq!(said(before, "type").as_deref(), Some(&*create.kind));
            assert_eq!(said(before, "model").as_deref(), create.model.as_deref());
            let metadata = before.get("client_metadata").and_then(|it| object(it.get()));
            let of = |name| metadata.as_ref().and_then(|metadata| said(metadata, name));
            assert_eq!(of("thread_id").as_deref(), create.thread().map(|name| &**name));
            assert_eq!(of("x-codex-turn-metadata").as_deref(), create.metadata());
        }
        assert!(!create.is_turn() || create.kind == "response.create");
        assert!(!create.is_prewarm() || create.generate.is_some());
    }
    if let Some((body, _headers)) = turn::to_http(text) {
        let body = object(&body).expect("an edited frame is an object");
        assert!(
            ["type", "generate", "previous_response_id"].iter().all(|it| !body.contains_key(*it))
        );
    }
    if let Some(edited) = turn::with_turn_state(text, None) {
        let edited = object(&edited).expect("an edited frame is an object");
        let metadata =
            object(edited["client_metadata"].get()).expect("edited metadata is an object");
        assert!(!metadata.contains_key(turn::TURN_STATE));
    }
    if let (Some(edited), Some(before)) = (turn::with_turn_state(text, Some("own")), &before) {
        let edited = object(&edited).expect("an edited frame is an object");
        assert_eq!(edited.len(), before.len());
    }
    if let Some(edited) = turn::with_header(text, turn::MODELS, None) {
        let edited = object(&edited).expect("an edited event is an object");
        let headers = object(edited["headers"].get()).expect("edited headers are an object");
        assert!(!headers.contains_key(turn::MODELS));
    }
    if let Some(input) = turn::input(text) {
        if let Some(whole) = turn::whole(text, "[{\"type\":\"message\"}]") {
            let whole = object(&whole).expect("an edited frame is an object");
            assert!(whole["input"].get().starts_with('['));
            assert!(!whole.contains_key("previous_response_id"));
        }
        assert!(serde_json::from_str::<&RawValue>(&input).is_ok());
    }
    assert!(!turn::is_foreign(bytes) || before.is_some());
}

/// Any bytes walked through: what is JSON has the fields that serde_json finds.
pub fn skim(bytes: &[u8]) {
    let (mut names, mut texts) = (Vec::new(), 0);
    let walked = Skim::whole(bytes, |skim, name| {
        names.push(String::from_utf8_lossy(name).into_owned());
        let (mut ahead, mut text) = (skim.clone(), None);
        texts += usize::from(ahead.text(&mut text).is_some() && text.is_some());
        skim.pass()
    });
    // A parser that reads each byte: what it takes is walked through, but not the other way round.
    let Ok(known) = serde_json::from_slice::<BTreeMap<String, Value>>(bytes) else { return };
    walked.expect("an object is walked through");
    assert!(names.iter().all(|name| known.contains_key(name)));
    assert!(known.keys().all(|name| names.contains(name)));
    if names.len() == known.len() {
        assert_eq!(texts, known.values().filter(|value| value.is_string()).count());
    }
}

/// Any bytes from upstream: what is passed on is whole messages, and written again it is the same.
pub fn plain(bytes: &[u8]) {
    let run = plain::run(bytes, |_| true);
    let (mut at, mut again) = (0, Vec::new());
    while let Some((text, whole)) = plain::first(&bytes[at..]) {
        plain::write(text, &mut again);
        at += whole;
    }
    assert_eq!((run, again.as_slice()), (at, &bytes[..at]));
    if let Some(head) = plain::Head::read(&bytes[at..]) {
        assert!(head.whole >= head.head && head.head <= 14);
    }
}

fn believe(windows: &[Window]) {
    let mut known = Quota::default();
    known.merge(windows);
    let headroom = known.headroom(None, NOW);
    assert!((0.0..=100.0).contains(&headroom));
    assert!(known.full_until(None, NOW).is_none_or(|at| at > NOW.wall));
    assert!(known.longest(None, NOW).is_none_or(|window| window.resets.is_some()));
    let again = known.windows().to_vec();
    assert!(!known.merge(&again), "the same news is no news");
}

/// The payload of a token from anywhere.
pub fn jwt_claims(bytes: &[u8]) {
    let Ok(payload) = serde_json::from_slice::<Value>(bytes) else { return };
    let claims = Claims::from_payload(&payload);
    assert!(claims.same_identity(&claims));
    assert_eq!(claims.clone().or(Claims::default()), claims);
    for text in [&claims.user, &claims.workspace, &claims.email, &claims.plan].into_iter().flatten()
    {
        assert!(!text.is_empty() && text.len() <= 256);
    }
    let id = AccountId::of(&claims.user.unwrap_or_default(), &claims.workspace.unwrap_or_default());
    assert_eq!(id.as_str().len(), 12);
}

/// Three bytes an operation on a pool: what, on whom, how much.
pub fn pool_ops(bytes: &[u8]) {
    let mut world = World {
        pool: Pool::new(1),
        now: NOW,
        leases: Vec::new(),
        waiting: BTreeSet::new(),
        renewing: BTreeMap::new(),
        generation: 1,
    };
    for (n, op) in (0..).zip(bytes.chunks_exact(3).take(2000)) {
        let input = world.input(Ticket(n), op[0], op[1], op[2]);
        world.pool.handle(world.now, input);
        while let Some(effect) = world.pool.poll_effect() {
            world.check(effect);
        }
        let pool = &world.pool;
        assert_eq!(pool.outstanding(), world.leases.len());
        assert!(pool.next_wake(world.now).is_none_or(|wake| wake > Span::ZERO));
        assert!(pool.pin().is_none_or(|(pin, _)| pool.accounts().iter().any(|one| one.id == *pin)));
    }
}

struct World {
    pool: Pool,
    now: Now,
    leases: Vec<LeaseId>,
    waiting: BTreeSet<Ticket>,
    renewing: BTreeMap<AccountId, Generation>,
    generation: u64,
}

impl World {
    fn input(&mut self, ticket: Ticket, what: u8, who: u8, much: u8) -> Input {
        let id = AccountId::of("u", &(who % 4).to_string());
        let wait = Span::from_secs(u64::from(much).pow(2));
        let then = self.now.wall.plus(wait);
        match what % 12 {
            0 | 1 => {
                self.waiting.insert(ticket);
                let session = (!much.is_multiple_of(3)).then(|| format!("s{}", much % 3).into());
                Input::Select(ticket, Need { session, ..Need::default() })
            },
            2 | 3 if !self.leases.is_empty() => {
                let lease = self.leases.swap_remove(usize::from(who) % self.leases.len());
                let mark = mark(much, self.now);
                Input::Release(lease, Release { mark, served: who.is_multiple_of(2), model: None })
            },
            4 => {
                let place = if who > 127 { Place::Primary } else { Place::Secondary };
                let used_percent = f64::from(much % 101);
                let (limit, seen) = (MAIN_LIMIT.into(), self.now.wall);
                let resets = Some(then);
                let window =
                    Window { limit, model: None, place, used_percent, minutes: None, resets, seen };
                Input::QuotaSeen(id, vec![window])
            },
            5 => match (self.renewing.remove(&id), much % 3) {
                (Some(from), 0) => {
                    Input::RenewalFailed(id, from, RenewalFailure::Transient("busy".into()))
                },
                (Some(from), 1) => {
                    Input::RenewalFailed(id, from, RenewalFailure::Permanent("revoked".into()))
                },
                _ => Input::Renewed(id, self.next_generation(), Some(then)),
            },
            6 => {
                self.renewing.remove(&id);
                let generation = self.next_generation();
                Input::Upsert(seed(id, who, generation, (much > 9).then_some(then)))
            },
            7 => {
                self.renewing.remove(&id);
                Input::Remove(id)
            },
            8 => Input::Pin((much > 99).then_some(id)),
            9 => {
                self.now.wall = if who > 127 { then } else { self.now.wall.minus(wait) };
                Input::Tick
            },
            _ => {
                let wait = self.pool.next_wake(self.now).unwrap_or(wait).min(wait);
                self.now.mono = self.now.mono.plus(wait);
                self.now.wall = self.now.wall.plus(wait);
                Input::Tick
            },
        }
    }

    fn next_generation(&mut self) -> Generation {
        self.generation += 1;
        Generation(self.generation)
    }

    fn check(&mut self, effect: Effect) {
        match effect {
            Effect::Reply(ticket, grant) => {
                assert!(self.waiting.remove(&ticket), "answered twice");
                match grant {
                    Grant::Lease { lease, account, generation, .. } => {
                        let mut all = self.pool.accounts().iter();
                        let one = all.find(|one| one.id == account).expect("it is there");
                        assert!(one.enabled && one.sendable(self.now));
                        assert_eq!(one.token.generation, generation);
                        assert_eq!(one.rest(self.now), None);
                        assert_eq!(one.quota.full_until(None, self.now), None);
                        self.leases.push(lease);
                    },
                    Grant::Refused(refused) => {
                        assert!(refused.retry_at.is_none_or(|at| at > self.now.wall));
                    },
                }
            },
            Effect::Renew(id, from) => {
                assert_eq!(self.renewing.insert(id, from), None, "two renewals at once");
            },
            Effect::Changed(_) | Effect::Note(_) => {},
        }
    }
}

fn seed(id: AccountId, who: u8, generation: Generation, expires: Option<Wall>) -> Seed {
    Seed {
        id,
        order: u32::from(who % 4),
        workspace: "w".into(),
        pools: cma_core::scope::Pools::default(),
        plan: None,
        name: "n".into(),
        enabled: who & 64 == 0,
        at_home: who & 32 == 0,
        generation,
        expires,
        gone: None,
        terms: cma_core::account::Terms::default(),
    }
}

fn mark(much: u8, now: Now) -> Mark {
    match much % 8 {
        0..=2 => Mark::Fine,
        3 => Mark::Shaky,
        4 => Mark::Unauthorized,
        5 => Mark::Cool(Cause::UsageLimit(Some(now.wall.plus(Span::from_secs(much.into()))))),
        6 => Mark::Cool(Cause::Throttled(None)),
        _ => Mark::Cool(Cause::Forbidden),
    }
}

/// A request without its bound parts is JSON where it was JSON, and there is nothing left to take
/// out of it. The first byte says what is to be left out.
pub fn bound_strip(bytes: &[u8]) {
    let Some((how, json)) = bytes.split_first() else { return };
    let leave = |bits: u8| match bits & 3 {
        0 => Leave::None,
        1 => Leave::Upto(Sealed(0xaf63_bd4c_8601_b7df)),
        _ => Leave::All,
    };
    let without = Without {
        reasoning: leave(*how),
        compaction: leave(how >> 2),
        turn_state: how & 16 != 0,
        previous_response: how & 32 != 0,
    };
    let Ok(stripped) = bound::strip(json, &without) else { return };
    if serde_json::from_slice::<Value>(json).is_err() {
        return;
    }
    let again = bound::strip(&stripped.json, &without).expect("an edited request can be edited");
    assert!(serde_json::from_slice::<Value>(&stripped.json).is_ok());
    assert!(again.dropped.is_nothing() && again.json == stripped.json);
    assert!(stripped.dropped.is_nothing() == (stripped.json == json) || how & 15 != 0);
}

/// The first byte says where the rest, an answer in chunks, is read in two: its body is the same joined and not, and
/// so is what is wrong with it.
pub fn chunks(bytes: &[u8]) {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let Some((first, body)) = bytes.split_first() else { return };
    let joined = |parts: &[&[u8]]| {
        let mut joiner = Joiner::default();
        joiner.begins();
        let mut all = Vec::new();
        for part in parts {
            let mut part = part.to_vec();
            let left = joiner.join(&mut part);
            assert!(left <= part.len() && (left > 0 || part.is_empty()));
            all.extend_from_slice(&part[..left]);
        }
        all
    };
    let expected = unchunked(body);
    let (left, right) = body.split_at(usize::from(*first).min(body.len()));
    let single: Vec<&[u8]> = std::iter::once(HEAD).chain(body.chunks(1)).collect();
    for parts in
        [&[HEAD, body][..], &[&[HEAD, left].concat(), right], &[HEAD, left, right], &single]
    {
        let all = joined(parts);
        assert_eq!(unchunked(all.strip_prefix(HEAD).expect("a head is left alone")), expected);
    }
    // A head of whatever bytes.
    joined(&[body]);
}

/// A body as far as it can be read, and what kept it from being read on: nothing, the last chunk with what comes
/// behind it, something that is no size, or no line's end behind a chunk.
fn unchunked(mut bytes: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut body = Vec::new();
    loop {
        let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, rest) = bytes.split_at(digits);
        let size =
            std::str::from_utf8(size).ok().and_then(|size| u32::from_str_radix(size, 16).ok());
        let (Some(size @ 1..), Some(rest)) = (size, rest.strip_prefix(b"\r\n")) else {
            return (body, Some(bytes.to_vec()));
        };
        let (data, rest) = rest.split_at(rest.len().min(size as usize));
        body.extend_from_slice(data);
        let Some(rest) = rest.strip_prefix(b"\r\n") else { return (body, None) };
        bytes = rest;
    }
}
