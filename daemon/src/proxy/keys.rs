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
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

use crate::{clock, fault::Fault, project::Bounds, sys};

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
/// A key for the global pool, and one that also says a project or accounts.
const VERSION: u8 = 1;
const SCOPED: u8 = 2;
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
    /// Who may serve the launch. It stands in the key, so that only another launch changes it.
    pub(crate) bounds: Bounds,
}

/// Makes and checks keys.
#[derive(Debug)]
pub(crate) struct Keys {
    mac: hmac::Key,
    boot: u64,
    alive: Mutex<BTreeMap<u64, Instant>>,
}

impl Keys {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self {
            mac: hmac::Key::new(hmac::HMAC_SHA256, secret),
            boot: boot(),
            alive: Mutex::new(BTreeMap::new()),
        }
    }

    /// A key for a process that lives now, or one for a person when `pid` is none.
    pub(crate) fn mint(
        &self,
        pid: Option<u32>,
        face: Option<AccountId>,
        bounds: Bounds,
    ) -> Result<(String, Launch), Fault> {
        let mut id = [0; 8];
        getrandom::fill(&mut id)
            .map_err(|error| Fault::internal(format!("no randomness: {error}")))?;
        let start = match pid {
            Some(pid) => sys::process_start(pid)
                .ok_or_else(|| Fault::internal(format!("process {pid} is not there")))?,
            None => 0,
        };
        let life = if pid.is_some() { PROCESS_LIFE } else { PRINTED_LIFE };
        let launch = Launch {
            id: u64::from_be_bytes(id),
            pid: pid.unwrap_or(0),
            start,
            boot: self.boot,
            expires_at: clock::unix() + life,
            face,
            bounds,
        };
        let payload = launch.write();
        let tag = hmac::sign(&self.mac, &payload);
        let (payload, tag) =
            (BASE64_URL_SAFE_NO_PAD.encode(payload), BASE64_URL_SAFE_NO_PAD.encode(tag));
        let key = format!("{PREFIX}{payload}.{tag}");
        if key.len() > MAX_KEY {
            return Err(Fault::new(
                ErrorCode::TooLarge,
                "the launch is limited to more accounts and workspaces than a key can hold",
                "name fewer of them in the policy or the limit",
            ));
        }
        Ok((key, launch))
    }

    /// What a key says, if it is ours, of this boot, in time, and its process lives.
    pub(crate) fn check(&self, key: &str) -> Option<Launch> {
        let (payload, tag) = key.strip_prefix(PREFIX)?.split_once('.')?;
        if key.len() > MAX_KEY {
            return None;
        }
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
        let tag = BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?;
        // Compares in constant time.
        hmac::verify(&self.mac, &payload, &tag).ok()?;
        let launch = Launch::read(&payload)?;
        let in_time = launch.expires_at > clock::unix();
        (in_time && (launch.pid == 0 || (launch.boot == self.boot && self.lives(&launch))))
            .then_some(launch)
    }

    fn lives(&self, launch: &Launch) -> bool {
        let now = Instant::now();
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

    fn write(&self) -> Vec<u8> {
        let Bounds { scope, workspaces, accounts } = &self.bounds;
        let scoped = scope.key().is_some() || accounts.is_some();
        let mut out = vec![if scoped { SCOPED } else { VERSION }];
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
        if scoped {
            line(scope.key().map_or("", |key| key));
            line(if matches!(scope, Scope::Project { fallback: true, .. }) { "+" } else { "-" });
            // A leading comma tells "none of them" from "all".
            let ids = accounts.iter().flat_map(|ids| ids.iter());
            let named = accounts.as_ref().map_or("", |_named| ",");
            line(&ids.fold(named.to_owned(), |text, id| text + id.as_str() + ","));
        }
        workspaces.iter().for_each(|workspace| line(workspace));
        out
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (fixed, names) = bytes.split_at_checked(FIXED)?;
        let (&version, rest) = fixed.split_first()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let (start, rest) = rest.split_first_chunk()?;
        let (boot, rest) = rest.split_first_chunk()?;
        let (expires, _none) = rest.split_first_chunk()?;
        let mut names = str::from_utf8(names).ok()?.split('\n');
        let face = names.next().filter(|face| !face.is_empty()).map(AccountId::from_written);
        let (scope, accounts) = match version {
            VERSION => (Scope::Global, None),
            SCOPED => {
                let (key, steps_in, ids) = (names.next()?, names.next()?, names.next()?);
                let fallback = steps_in == "+";
                let scope = match key {
                    "" => Scope::Global,
                    key => Scope::Project { key: key.into(), fallback },
                };
                let ids = ids.strip_prefix(',').map(|ids| {
                    let ids = ids.split(',').filter(|id| !id.is_empty());
                    ids.map(AccountId::from_written).collect()
                });
                (scope, ids)
            },
            _ => return None,
        };
        Some(Self {
            id: u64::from_be_bytes(*id),
            pid: u32::from_be_bytes(*pid),
            start: u64::from_be_bytes(*start),
            boot: u64::from_be_bytes(*boot),
            expires_at: u64::from_be_bytes(*expires),
            face,
            bounds: Bounds {
                scope,
                accounts,
                workspaces: names.filter(|name| !name.is_empty()).map(Into::into).collect(),
            },
        })
    }
}

/// Names this boot: the system's own id for it, as a number.
fn boot() -> u64 {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let (key, _launch) = restarted.mint(Some(ended.id()), None, Bounds::default()).unwrap();
        ended.wait().unwrap();
        assert_eq!(restarted.check(&key), None, "its process has ended");
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
                    let bounds = Bounds { scope, workspaces, accounts };
                    for face in [None, Some(a.clone())] {
                        let (key, launch) = keys.mint(None, face, bounds.clone()).unwrap();
                        assert_eq!(launch.bounds, bounds);
                        assert_eq!(keys.check(&key), Some(launch));
                    }
                }
            }
        }
        let (_key, launch) = keys.mint(None, None, Bounds::default()).unwrap();
        let plain = launch.write();
        assert_eq!((plain[0], plain.len()), (VERSION, FIXED));
        let mut newer = plain;
        newer[0] = SCOPED + 1;
        assert_eq!(Launch::read(&newer), None);
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
