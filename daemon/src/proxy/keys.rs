//! Client keys: what opens the CLI's routes, and for how long.
//!
//! A key is `at-cma-<payload>.<mac>`: the prefix makes the CLI take it for an access token of its
//! environment, the payload says which launch, which process and until when, the MAC is made with
//! the root's secret. So a key survives a restart of the daemon with nothing written at a launch,
//! and lives as long as its process: id and start time name one process until the next boot, and
//! the boot is part of the payload.
//!
//! Looking at the process costs a read of `/proc`; it is done at a key's first use and then, at
//! most every [`RECHECK`], beside the request and not before it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use cma_core::{identity::AccountId, scope::Scope};
use cma_proto::error::ErrorCode;
use parking_lot::Mutex;
use ring::hmac;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

use crate::{clock, fault::Fault, project::Bounds, sys, tokens::Tokens};

/// What every key begins with.
pub(crate) const PREFIX: &str = "at-cma-";
/// A key for a person to try things with.
pub(crate) const PRINTED_LIFE: u64 = 24 * 3600;
/// A key of a process, should the process live that long.
pub(crate) const PROCESS_LIFE: u64 = 90 * 24 * 3600;
/// How long the answer "that process lives" is believed.
const RECHECK: Duration = Duration::from_secs(5);
/// Launches remembered as living; older ones are simply looked at again.
const REMEMBERED: usize = 1024;
/// What a signed text is for: its first byte, so that one kind can't be passed off as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// A client key.
    Client = 1,
    /// Names an own-auth launch in its addresses. Other users can see it among the arguments: it
    /// opens nothing without the bearer that it names.
    Ticket = 2,
    /// Opens an own-auth launch's renewal endpoints; handed over by environment.
    Renewal = 3,
}

/// The first byte of a client key that also says a project or accounts; one without means the global
/// pool.
const SCOPED: u8 = 4;
/// The first byte of a named token: a scoped key that says its name too.
const TOKEN: u8 = 6;
/// The longest life of a named token, in seconds.
const TOKEN_LIFE: u64 = 366 * 24 * 3600;
/// The first byte of what opens `/metrics`.
const METRICS: u8 = 5;
/// What a token for `/metrics` begins with. It is no client key and must not look like one.
const METRICS_PREFIX: &str = "cma-metrics-";
/// A token for `/metrics` opens it for a year at most.
const METRICS_DAYS: u32 = 366;
const FIXED: usize = 1 + 8 + 4 + 8 + 8 + 8;
const MAX_KEY: usize = 4096;

/// What a key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Names the launch in the log.
    pub(crate) id: u64,
    /// The CLI's process; 0 for a printed key.
    pub(crate) pid: u32,
    /// When that process started, in the system's unit.
    pub(crate) start: u64,
    /// Which boot, so that a start time means something.
    pub(crate) boot: u64,
    /// Seconds since 1970.
    pub(crate) expires_at: u64,
    /// The account that speaks for the pool in this launch, when the launch has one of its own.
    pub(crate) face: Option<AccountId>,
    /// SHA-256 of the bearer that an own-auth launch began with, in hex; none for other launches.
    pub(crate) bearer: Option<Arc<str>>,
    /// The name of the token that it is; none for other keys.
    pub(crate) token: Option<Arc<str>>,
    /// Who may serve the launch. It stands in the key, so that only another launch changes it.
    pub(crate) bounds: Bounds,
}

/// Makes and checks keys.
#[derive(Debug)]
pub(crate) struct Keys {
    mac: hmac::Key,
    boot: u64,
    alive: Mutex<BTreeMap<u64, Instant>>,
    /// Named tokens that are good; without them none is.
    tokens: Option<Tokens>,
}

/// The good key that a connection showed last, and what it says.
#[derive(Default)]
pub(crate) struct Shown(Mutex<Option<(Box<str>, Arc<Launch>)>>);

impl Keys {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self {
            mac: hmac::Key::new(hmac::HMAC_SHA256, secret),
            boot: boot(),
            alive: Mutex::new(BTreeMap::new()),
            tokens: None,
        }
    }

    /// The same, with the named tokens of a root.
    pub(crate) fn with_tokens(self, tokens: Tokens) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// The named tokens.
    ///
    /// # Errors
    /// In a daemon that was built without them.
    pub(crate) fn tokens(&self) -> Result<&Tokens, Fault> {
        self.tokens.as_ref().ok_or_else(|| Fault::internal("there are no named tokens"))
    }

    /// A key with a name, for a program on this machine; it is good as long as its number is kept.
    pub(crate) fn mint_token(
        &self,
        name: &str,
        seconds: u64,
        bounds: Bounds,
    ) -> Result<(String, Launch), Fault> {
        if !(1..=TOKEN_LIFE).contains(&seconds) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                "a token is good for a second at least and 366 days at most",
                "say it like `cmactl token create NAME --for 30d`",
            ));
        }
        let launch = Launch {
            token: Some(name.into()),
            expires_at: clock::unix().saturating_add(seconds),
            ..self.launch(None, None, bounds)?
        };
        Ok((format!("{PREFIX}{}", self.seal(Kind::Client, &launch)?), launch))
    }

    /// A key for a process that lives now, or one for a person when `pid` is none.
    pub(crate) fn mint(
        &self,
        pid: Option<u32>,
        face: Option<AccountId>,
        bounds: Bounds,
    ) -> Result<(String, Launch), Fault> {
        let launch = self.launch(pid, face, bounds)?;
        Ok((format!("{PREFIX}{}", self.seal(Kind::Client, &launch)?), launch))
    }

    /// A ticket and the renewal endpoints' secret, for a CLI on its own login.
    pub(crate) fn mint_own(
        &self,
        pid: Option<u32>,
        face: AccountId,
        bearer: Arc<str>,
        bounds: Bounds,
    ) -> Result<(String, String, Launch), Fault> {
        let launch = Launch { bearer: Some(bearer), ..self.launch(pid, Some(face), bounds)? };
        let ticket = self.seal(Kind::Ticket, &launch)?;
        Ok((ticket, self.seal(Kind::Renewal, &launch)?, launch))
    }

    fn seal(&self, kind: Kind, launch: &Launch) -> Result<String, Fault> {
        let payload = launch.write(kind);
        let tag = hmac::sign(&self.mac, &payload);
        let (payload, tag) =
            (BASE64_URL_SAFE_NO_PAD.encode(payload), BASE64_URL_SAFE_NO_PAD.encode(tag));
        let text = format!("{payload}.{tag}");
        if PREFIX.len() + text.len() > MAX_KEY {
            return Err(Fault::new(
                ErrorCode::TooLarge,
                "the launch is limited to more accounts and workspaces than a key can hold",
                "name fewer of them in the policy or the limit",
            ));
        }
        Ok(text)
    }

    fn launch(
        &self,
        pid: Option<u32>,
        face: Option<AccountId>,
        bounds: Bounds,
    ) -> Result<Launch, Fault> {
        let mut id = [0; 8];
        getrandom::fill(&mut id)
            .map_err(|error| Fault::internal(format!("no randomness: {error}")))?;
        let start = match pid {
            Some(pid) => sys::process_start(pid)
                .ok_or_else(|| Fault::internal(format!("process {pid} is not there")))?,
            None => 0,
        };
        let life = if pid.is_some() { PROCESS_LIFE } else { PRINTED_LIFE };
        Ok(Launch {
            id: u64::from_be_bytes(id),
            pid: pid.unwrap_or(0),
            start,
            boot: self.boot,
            expires_at: clock::unix() + life,
            face,
            bearer: None,
            token: None,
            bounds,
        })
    }

    /// A token that opens `/metrics` for some days, and when it ends.
    pub(crate) fn mint_metrics(&self, days: u32) -> Result<(String, u64), Fault> {
        if !(1..=METRICS_DAYS).contains(&days) {
            return Err(Fault::new(
                ErrorCode::BadRequest,
                format!("{days} is not between 1 and {METRICS_DAYS} days"),
                "say it like `cmactl metrics token --days 90`",
            ));
        }
        let mut id = [0; 8];
        getrandom::fill(&mut id)
            .map_err(|error| Fault::internal(format!("no randomness: {error}")))?;
        let expires = clock::unix() + u64::from(days) * 24 * 3600;
        let payload = [&[METRICS][..], &id, &expires.to_be_bytes()].concat();
        let tag = hmac::sign(&self.mac, &payload);
        let (payload, tag) =
            (BASE64_URL_SAFE_NO_PAD.encode(payload), BASE64_URL_SAFE_NO_PAD.encode(tag));
        Ok((format!("{METRICS_PREFIX}{payload}.{tag}"), expires))
    }

    /// Whether a token opens `/metrics`.
    pub(crate) fn check_metrics(&self, token: &str) -> bool {
        let expires = || {
            let (payload, tag) = token.strip_prefix(METRICS_PREFIX)?.split_once('.')?;
            if token.len() > MAX_KEY {
                return None;
            }
            let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
            let tag = BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?;
            hmac::verify(&self.mac, &payload, &tag).ok()?;
            let (_id, expires) = payload.strip_prefix(&[METRICS])?.split_first_chunk::<8>()?;
            Some(u64::from_be_bytes(expires.try_into().ok()?))
        };
        expires().is_some_and(|expires| expires > clock::unix())
    }

    /// What a key says, if it is ours, of this boot, in time, and its process lives.
    pub(crate) fn check(&self, key: &str) -> Option<Launch> {
        self.unseal(Kind::Client, key.strip_prefix(PREFIX)?)
    }

    /// The own-auth launch that a ticket names.
    pub(crate) fn check_ticket(&self, ticket: &str) -> Option<Launch> {
        self.unseal(Kind::Ticket, ticket)
    }

    /// The own-auth launch whose renewal endpoints a secret opens.
    pub(crate) fn check_renewal(&self, secret: &str) -> Option<Launch> {
        self.unseal(Kind::Renewal, secret)
    }

    fn unseal(&self, kind: Kind, key: &str) -> Option<Launch> {
        let (payload, tag) = key.split_once('.')?;
        if key.len() > MAX_KEY {
            return None;
        }
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
        let tag = BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?;
        // Compares in constant time.
        hmac::verify(&self.mac, &payload, &tag).ok()?;
        let launch = Launch::read(kind, &payload)?;
        self.holds(&launch).then_some(launch)
    }

    /// The same for a request on a connection that may have shown its key before. What a key says
    /// can't change, so its MAC is checked once a connection; whether it still holds, each time.
    pub(crate) fn check_again(&self, key: &str, shown: &Shown) -> Option<Arc<Launch>> {
        let mut shown = shown.0.lock();
        match &*shown {
            // Whoever could learn from the time this takes has shown the key itself.
            Some((known, launch)) if **known == *key => {
                self.holds(launch).then(|| Arc::clone(launch))
            },
            _ => {
                let launch = Arc::new(self.check(key)?);
                *shown = Some((key.into(), Arc::clone(&launch)));
                Some(launch)
            },
        }
    }

    fn holds(&self, launch: &Launch) -> bool {
        launch.expires_at > clock::unix()
            && (launch.token.is_none()
                || self.tokens.as_ref().is_some_and(|tokens| tokens.holds(launch.id)))
            && (launch.pid == 0 || (launch.boot == self.boot && self.lives(launch)))
    }

    fn lives(&self, launch: &Launch) -> bool {
        let now = clock::mono();
        let looked = self.alive.lock().get(&launch.id).copied();
        match looked {
            Some(at) if now.duration_since(at) < RECHECK => true,
            // A first use, or the belief is old: `/proc` is memory, a look takes microseconds.
            Some(_) | None => self.look(launch, now),
        }
    }

    fn look(&self, launch: &Launch, now: Instant) -> bool {
        let lives = sys::process_start(launch.pid) == Some(launch.start);
        let mut alive = self.alive.lock();
        if lives {
            if alive.len() >= REMEMBERED {
                alive.retain(|_id, at| now.duration_since(*at) < RECHECK);
                if alive.len() >= REMEMBERED {
                    alive.clear();
                }
            }
            alive.insert(launch.id, now);
        } else {
            alive.remove(&launch.id);
        }
        lives
    }
}

impl Launch {
    /// The launch's name in the log.
    pub(crate) fn name(&self) -> String {
        format!("{:016x}", self.id)
    }

    fn write(&self, kind: Kind) -> Vec<u8> {
        let Bounds { scope, workspaces, accounts, project } = &self.bounds;
        let client = kind == Kind::Client;
        let known = scope.key().or(project.as_ref());
        let token = self.token.as_ref().filter(|_name| client);
        let scoped = !client || known.is_some() || accounts.is_some() || token.is_some();
        let first = match (client && scoped, token) {
            (true, Some(_name)) => TOKEN,
            (true, None) => SCOPED,
            (false, _) => kind as u8,
        };
        let mut out = vec![first];
        out.extend(self.id.to_be_bytes());
        out.extend(self.pid.to_be_bytes());
        out.extend(self.start.to_be_bytes());
        out.extend(self.boot.to_be_bytes());
        out.extend(self.expires_at.to_be_bytes());
        let face = self.face.as_ref().map(AccountId::as_str).unwrap_or_default();
        out.extend(face.bytes());
        let mut line = |text: &str| {
            out.push(b'\n');
            out.extend(text.bytes());
        };
        if let Some(said) = self.bearer.as_ref().or(token) {
            line(said);
        }
        if scoped {
            line(known.map_or("", |key| key));
            line(match scope {
                Scope::Project { fallback: true, .. } => "+",
                Scope::Project { fallback: false, .. } => "-",
                // The project is only for the books.
                Scope::Global => "=",
            });
            // A leading comma tells "none of them" from "all".
            let ids = accounts.iter().flat_map(|ids| ids.iter());
            let named = accounts.as_ref().map_or("", |_named| ",");
            line(&ids.fold(named.to_owned(), |text, id| text + id.as_str() + ","));
        }
        workspaces.iter().for_each(|workspace| line(workspace));
        out
    }

    fn read(kind: Kind, bytes: &[u8]) -> Option<Self> {
        let (fixed, names) = bytes.split_at_checked(FIXED)?;
        let (&first, rest) = fixed.split_first()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let (start, rest) = rest.split_first_chunk()?;
        let (boot, rest) = rest.split_first_chunk()?;
        let (expires, _none) = rest.split_first_chunk()?;
        let mut names = str::from_utf8(names).ok()?.split('\n');
        let face = names.next().filter(|face| !face.is_empty()).map(AccountId::from_written);
        let scoped = match (kind, first) {
            (Kind::Client, SCOPED | TOKEN) => true,
            _ if first == kind as u8 => kind != Kind::Client,
            _ => return None,
        };
        let bearer = if kind == Kind::Client { None } else { Some(names.next()?.into()) };
        let token = if first == TOKEN { Some(names.next()?.into()) } else { None };
        let bounds = if scoped { bounds_of(&mut names)? } else { Bounds::default() };
        Some(Self {
            id: u64::from_be_bytes(*id),
            pid: u32::from_be_bytes(*pid),
            start: u64::from_be_bytes(*start),
            boot: u64::from_be_bytes(*boot),
            expires_at: u64::from_be_bytes(*expires),
            face,
            bearer,
            token,
            bounds: Bounds {
                workspaces: names.filter(|name| !name.is_empty()).map(Into::into).collect(),
                ..bounds
            },
        })
    }
}

/// Names this boot: the system's own id for it, as a number.
/// The pool and the accounts that a scoped key says, from its next three lines.
fn bounds_of<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Option<Bounds> {
    let (key, steps_in, ids) = (lines.next()?, lines.next()?, lines.next()?);
    let (scope, project) = match (key, steps_in) {
        ("", _) => (Scope::Global, None),
        (key, "=") => (Scope::Global, Some(key.into())),
        (key, steps_in) => (Scope::Project { key: key.into(), fallback: steps_in == "+" }, None),
    };
    let accounts = ids.strip_prefix(',').map(|ids| {
        let ids = ids.split(',').filter(|id| !id.is_empty());
        ids.map(AccountId::from_written).collect()
    });
    Some(Bounds { scope, accounts, project, ..Bounds::default() })
}

fn boot() -> u64 {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_opens_while_its_process_lives_and_survives_a_restart() {
        let own = std::process::id();
        let (key, launch) = Keys::new(b"secret")
            .mint(
                Some(own),
                Some(AccountId::of("u", "w")),
                Bounds { workspaces: ["w".into()].into(), ..Bounds::default() },
            )
            .unwrap();
        let restarted = Keys::new(b"secret");
        assert_eq!(restarted.check(&key), Some(launch));
        assert_eq!(Keys::new(b"other").check(&key), None);
        let mut ended = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (key, _launch) = restarted.mint(Some(ended.id()), None, Bounds::default()).unwrap();
        ended.kill().unwrap();
        ended.wait().unwrap();
        assert_eq!(restarted.check(&key), None, "its process has ended");
    }

    #[tokio::test]
    async fn a_key_shown_before_opens_only_while_it_holds_and_no_other_does() {
        let keys = Keys::new(b"secret");
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (key, launch) = keys.mint(Some(process.id()), None, Bounds::default()).unwrap();
        let shown = Shown::default();
        for _time in 0..2 {
            assert_eq!(keys.check_again(&key, &shown).as_deref(), Some(&launch));
        }
        assert_eq!(keys.check_again("at-cma-AA.AA", &shown), None);
        let (other, _launch) = keys.mint(None, None, Bounds::default()).unwrap();
        assert!(keys.check_again(&other, &shown).is_some());
        assert!(keys.check_again(&key, &shown).is_some());
        process.kill().unwrap();
        process.wait().unwrap();
        tokio::time::pause();
        tokio::time::advance(RECHECK).await;
        assert_eq!(keys.check_again(&key, &shown), None, "its process has ended");
    }

    #[tokio::test]
    async fn one_kind_cannot_be_passed_off_as_another() {
        let keys = Keys::new(b"secret");
        let (face, all) = (AccountId::of("u", "w"), ["w".into()]);
        let (ticket, secret, launch) = keys
            .mint_own(
                None,
                face,
                "print".into(),
                Bounds { workspaces: all.into(), ..Bounds::default() },
            )
            .unwrap();
        assert_eq!(keys.check_ticket(&ticket), Some(launch.clone()));
        assert_eq!(keys.check_renewal(&secret), Some(launch));
        assert_eq!(keys.check_renewal(&ticket), None);
        assert_eq!(keys.check_ticket(&secret), None);
        for stolen in [ticket, secret] {
            assert_eq!(keys.check(&format!("{PREFIX}{stolen}")), None);
        }
        let (key, _launch) = keys.mint(None, None, Bounds::default()).unwrap();
        assert_eq!(keys.check_ticket(key.strip_prefix(PREFIX).unwrap()), None);
    }

    #[tokio::test]
    async fn a_key_says_its_pool_and_an_old_one_means_the_global_one() {
        let keys = Keys::new(b"secret");
        let project = |fallback| Scope::Project { key: "x-0123456789ab".into(), fallback };
        let (a, w) = (AccountId::of("u", "w"), Arc::from("w"));
        for scope in [Scope::Global, project(false), project(true)] {
            for accounts in [None, Some([].into()), Some([a.clone()].into())] {
                for workspaces in [[].into(), [Arc::clone(&w)].into()] {
                    let (scope, accounts) = (scope.clone(), accounts.clone());
                    let project = scope.key().is_none().then(|| "y-0123456789ab".into());
                    let bounds = Bounds { scope, workspaces, accounts, project };
                    for face in [None, Some(a.clone())] {
                        let (key, launch) = keys.mint(None, face, bounds.clone()).unwrap();
                        assert_eq!(launch.bounds, bounds);
                        assert_eq!(keys.check(&key), Some(launch));
                    }
                }
            }
        }
        let (_key, launch) = keys.mint(None, None, Bounds::default()).unwrap();
        let plain = launch.write(Kind::Client);
        assert_eq!((plain[0], plain.len()), (Kind::Client as u8, FIXED));
        let mut newer = plain;
        newer[0] = METRICS + 1;
        assert_eq!(Launch::read(Kind::Client, &newer), None);
    }

    #[tokio::test]
    async fn a_metrics_token_opens_metrics_alone_and_no_key_does() {
        let keys = Keys::new(b"secret");
        let (token, expires) = keys.mint_metrics(2).unwrap();
        assert!(expires > clock::unix() + 47 * 3600 && expires <= clock::unix() + 48 * 3600);
        assert!(keys.check_metrics(&token) && Keys::new(b"secret").check_metrics(&token));
        assert!(!Keys::new(b"other").check_metrics(&token));
        let bare = token.strip_prefix(METRICS_PREFIX).unwrap();
        assert_eq!(keys.check(&token), None);
        assert_eq!(keys.check(&format!("{PREFIX}{bare}")), None);
        assert_eq!((keys.check_ticket(bare), keys.check_renewal(bare)), (None, None));
        let (key, launch) = keys.mint(None, None, Bounds::default()).unwrap();
        let key = key.strip_prefix(PREFIX).unwrap();
        assert!(!keys.check_metrics(&format!("{METRICS_PREFIX}{key}")));
        let ticket = keys.seal(Kind::Ticket, &launch).unwrap();
        assert!(!keys.check_metrics(&format!("{METRICS_PREFIX}{ticket}")));
        for bad in ["", "cma-metrics-", "cma-metrics-.", "cma-metrics-AA.AA"] {
            assert!(!keys.check_metrics(bad), "{bad}");
        }
        assert!(keys.mint_metrics(0).is_err() && keys.mint_metrics(100_000).is_err());
    }

    #[tokio::test]
    async fn no_changed_key_opens() {
        let keys = Keys::new(b"secret");
        let (key, _launch) = keys.mint(None, None, Bounds::default()).unwrap();
        assert!(keys.check(&key).is_some());
        for at in PREFIX.len()..key.len() {
            let mut changed = key.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last character of each part carries bits that base64 refuses or ignores.
            assert!(changed == key || keys.check(&changed).is_none(), "at {at}");
        }
        for key in ["", "at-cma-", "at-cma-.", "at-cma-AA.AA", &"x".repeat(10_000)] {
            assert_eq!(keys.check(key), None);
        }
    }
}
