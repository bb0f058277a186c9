//! Everything the simulated upstream knows, behind one lock.
//!
//! The lock is held for table look-ups only and never over an await; handlers
//! take what they need out of it and answer without it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::clock::{UnixMs, rfc3339};
use super::config::{AccountSpec, CLIENT_ID, SimConfig};
use super::faults::{Fault, Faults, Route};
use super::login::Logins;
use super::quota::{Own, Quota};
use super::record::Record;
use super::server::Commands;
use super::tokens::{Freshness, Tokens};

/// The position of an account in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AccountNo(pub(super) usize);

/// What the serving thread and the [`super::Sim`] share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) addr: SocketAddr,
    pub(super) commands: Commands,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    /// How often HTTP/2 clients were told to go elsewhere.
    pub(super) leaving: tokio::sync::watch::Sender<u32>,
    pub(super) state: Mutex<State>,
}

/// An account and what is left of its quota.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) spec: AccountSpec,
    pub(super) quota: Quota,
    /// The limit that one model has for itself.
    pub(super) own: Option<Own>,
}

/// A scripted tool call; see [`super::Sim::script_tool_call`].
#[derive(Debug)]
pub(super) struct ToolScript {
    pub(super) command: String,
    pub(super) session: Option<String>,
    /// Whether what a tool said in an earlier turn of the thread doesn't count.
    pub(super) in_any_turn: bool,
}

/// What two requests of one account may do at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Refreshing,
    Responding,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: SimConfig,
    pub(super) accounts: Vec<Account>,
    pub(super) tokens: Tokens,
    pub(super) logins: Logins,
    pub(super) faults: Faults,
    pub(super) record: Record,
    pub(super) tool: Option<ToolScript>,
    /// Uses of reset credits, by the client's own number.
    pub(super) redeemed: BTreeSet<(AccountNo, String)>,
    busy: BTreeMap<(AccountNo, Work), u32>,
    serial: u64,
}

impl State {
    pub(super) fn new(mut config: SimConfig) -> Self {
        config.canary.retain(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let accounts = std::mem::take(&mut config.accounts);
        let record = Record::new(&config);
        let mut state = Self {
            config,
            accounts: Vec::with_capacity(accounts.len()),
            tokens: Tokens::default(),
            logins: Logins::default(),
            faults: Faults::default(),
            record,
            tool: None,
            redeemed: BTreeSet::new(),
            busy: BTreeMap::new(),
            serial: 0,
        };
        for spec in accounts {
            state.add_account(spec);
        }
        state
    }

    pub(super) fn add_account(&mut self, spec: AccountSpec) {
        self.record.account(&spec.name);
        let quota = Quota::new(&spec);
        let own = spec.own_limit.as_ref().map(Own::new);
        self.accounts.push(Account { spec, quota, own });
    }

    pub(super) fn find(&self, name: &str) -> Option<AccountNo> {
        self.accounts.iter().position(|a| a.spec.name == name).map(AccountNo)
    }

    pub(super) fn account(&self, no: AccountNo) -> Option<&Account> {
        self.accounts.get(no.0)
    }

    pub(super) fn name(&self, no: AccountNo) -> &str {
        self.account(no).map_or("", |account| &account.spec.name)
    }

    /// A number no other request, response or item has.
    pub(super) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// A login of its own, as an official `auth.json`.
    pub(super) fn login(&mut self, no: AccountNo, freshness: Freshness) -> String {
        let Some(account) = self.accounts.get(no.0) else { return String::new() };
        let spec = &account.spec;
        let issued = self.tokens.login(&self.config, (no, spec), freshness);
        let made = UnixMs(issued.exp.0).before(self.config.tokens_ttl);
        let file = json!({
            "auth_mode": "chatgpt",
            "OPENAI_API_KEY": null,
            "tokens": {
                "id_token": issued.id_token,
                "access_token": issued.access_token,
                "refresh_token": issued.refresh_token,
                "account_id": spec.workspace_id,
                "oauth_provenance": {
                    "issuer": self.config.issuer_claim,
                    "client_id": CLIENT_ID,
                },
                "login_owner_id": owner_id(&spec.name),
            },
            "last_refresh": rfc3339(made),
        });
        format!("{file:#}\n")
    }

    pub(super) fn revoke_families(&mut self, no: AccountNo) {
        let ended = self.tokens.revoke_families(no);
        let name = self.name(no).to_owned();
        self.record.account(&name).families_revoked += ended;
    }

    pub(super) fn set_used(&mut self, no: AccountNo, primary: f64, secondary: f64) {
        if let Some(account) = self.accounts.get_mut(no.0) {
            account.quota.roll();
            account.quota.primary.set_used(primary);
            account.quota.secondary.set_used(secondary);
        }
    }

    pub(super) fn set_reset_in(&mut self, no: AccountNo, primary: Duration, secondary: Duration) {
        if let Some(account) = self.accounts.get_mut(no.0) {
            account.quota.primary.set_reset_in(primary);
            account.quota.secondary.set_reset_in(secondary);
        }
    }

    pub(super) fn script_tool_call(&mut self, command: &str) {
        self.tool =
            Some(ToolScript { command: command.to_owned(), session: None, in_any_turn: false });
    }

    /// Takes the fault scripted for a request, if there is one.
    pub(super) fn take_fault(&mut self, no: Option<AccountNo>, route: Route) -> Option<Fault> {
        let name = no.map(|no| self.name(no).to_owned());
        let fault = self.faults.take(name.as_deref(), route)?;
        if let Some(name) = &name {
            self.record.account(name).faults += 1;
        }
        let account = no.and_then(|no| self.account(no));
        Some(match (fault, account) {
            (Fault::UsageLimitReached { resets_in }, Some(account)) => {
                usage_limit(account.quota.exhausted_for(resets_in), &account.spec.plan)
            },
            (Fault::UsageLimitReached { resets_in }, None) => {
                let spec = AccountSpec::new("nobody");
                usage_limit(Quota::new(&spec).exhausted_for(resets_in), &spec.plan)
            },
            (fault, _) => fault,
        })
    }

    fn begin(&mut self, no: AccountNo, work: Work) {
        let now = self.busy.entry((no, work)).or_default();
        *now += 1;
        let now = *now;
        let name = self.name(no).to_owned();
        let stats = self.record.account(&name);
        let peak = match work {
            Work::Refreshing => &mut stats.refreshes_at_once,
            Work::Responding => &mut stats.responses_at_once,
        };
        *peak = now.max(*peak);
    }

    /// The accounts as the control routes show them.
    pub(super) fn windows(&mut self) -> Value {
        let accounts = self.accounts.iter_mut().map(|account| {
            account.quota.roll();
            json!({
                "name": account.spec.name,
                "email": account.spec.email,
                "plan": account.spec.plan,
                "workspace_id": account.spec.workspace_id,
                "primary": account.quota.primary.state(),
                "secondary": account.quota.secondary.state(),
            })
        });
        Value::Array(accounts.collect())
    }
}

/// Counts one request of an account as going on until it is dropped.
#[derive(Debug)]
pub(super) struct Busy {
    shared: Arc<Shared>,
    key: (AccountNo, Work),
}

impl Busy {
    pub(super) fn begin(shared: &Arc<Shared>, no: AccountNo, work: Work) -> Self {
        shared.state.lock().begin(no, work);
        Self { shared: Arc::clone(shared), key: (no, work) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(now) = self.shared.state.lock().busy.get_mut(&self.key) {
            *now = now.saturating_sub(1);
        }
    }
}

fn usage_limit(quota: Quota, plan: &str) -> Fault {
    let until = quota.full_until().unwrap_or_else(UnixMs::now);
    let mut headers = quota.headers(plan);
    headers.push(("content-type".to_owned(), "application/json".to_owned()));
    Fault::Status { code: 429, headers, body: Quota::refusal(plan, until).to_string() }
}

/// 43 characters of base64url, the same for the same account.
fn owner_id(name: &str) -> String {
    let mut rng = fastrand::Rng::with_seed(name.bytes().map(u64::from).sum());
    (0..43).map(|_| rng.alphanumeric()).collect()
}
