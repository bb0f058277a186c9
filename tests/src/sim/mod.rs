//! The simulated upstream: the issuer and the backend on one loopback port.
//!
//! It decides what a real upstream would answer to a request: whether a token
//! is good, whether a window is spent, which events a turn consists of. It
//! never helps the client along and never looks at what the daemon is. What a
//! test may do besides is scripted through [`Sim`]: faults, expiries, quotas.
//!
//! Invariants: every request is recorded before it is answered; a refresh token
//! is spent at most once (outside the grace); everything kept is bounded.
//!
//! One thread with its own current-thread runtime serves all connections, so a
//! test needs no runtime, and the order of the record is the order of serving.

mod around;
mod backend;
mod clock;
mod config;
mod control;
pub mod drive;
mod faults;
mod inside;
mod issuer;
mod jwt;
mod login;
mod quota;
mod record;
mod reply;
mod sealed;
mod server;
mod side;
mod sse;
mod state;
mod strict;
pub mod tls;
mod tokens;
mod wire;
mod ws;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use config::{AccountSpec, CLIENT_ID, DEFAULT_CANARY, OwnLimit, SimConfig, Window};
pub use faults::{Cut, Fault, Route, Strange};
pub use inside::{Inside, What};
pub use login::Consent;
pub use record::{AccountStats, Outcome, Seen, Stats, Tokens};
pub use sealed::Encrypted;

use server::Command;
use state::Shared;
use tokens::Freshness;

/// A running simulated upstream; dropping it stops it and cuts its connections.
#[derive(Debug)]
pub struct Sim {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Sim {
    /// Binds, starts the serving thread and returns once connections are accepted.
    pub fn start(config: SimConfig) -> io::Result<Self> {
        let (shared, thread) = server::start(config)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Where it listens (also while it does not: the port is kept).
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// `http://127.0.0.1:P`, or `https://localhost:P` with TLS.
    pub fn url(&self) -> String {
        match self.shared.tls {
            None => format!("http://{}", self.shared.addr),
            Some(_) => format!("https://localhost:{}", self.shared.addr.port()),
        }
    }

    /// Tells the clients of its HTTP/2 connections to go elsewhere; what runs there goes on.
    pub fn go_away(&self) {
        self.shared.leaving.send_modify(|times| *times += 1);
    }

    /// What stands for `https://chatgpt.com/backend-api`.
    pub fn backend(&self) -> String {
        format!("{}/backend-api", self.url())
    }

    /// What stands for `https://auth.openai.com`.
    pub fn issuer(&self) -> String {
        self.url()
    }

    /// The string every token carries; it must appear in no output.
    pub fn canary(&self) -> String {
        self.shared.state.lock().config.canary.clone()
    }

    /// The names of the accounts, in order.
    pub fn accounts(&self) -> Vec<String> {
        self.shared.state.lock().accounts.iter().map(|a| a.spec.name.clone()).collect()
    }

    /// The address of an account.
    #[track_caller]
    pub fn email(&self, account: &str) -> String {
        self.known(account, |state, no| {
            state.account(no).map(|account| account.spec.email.clone()).unwrap_or_default()
        })
    }

    /// Adds an account while running.
    pub fn add_account(&self, spec: AccountSpec) {
        self.shared.state.lock().add_account(spec);
    }

    /// A fresh login of `account` as an official `auth.json`.
    ///
    /// Each call is a login of its own: another family of tokens.
    #[track_caller]
    pub fn auth_json(&self, account: &str) -> String {
        self.known(account, |state, no| state.login(no, Freshness::Fresh))
    }

    /// As [`Sim::auth_json`], but the access token's `exp` lies in the past.
    #[track_caller]
    pub fn auth_json_expired(&self, account: &str) -> String {
        self.known(account, |state, no| state.login(no, Freshness::Expired))
    }

    /// From now on the access tokens issued so far are answered 401
    /// `token_expired`, whatever their `exp` says. Refreshing works.
    #[track_caller]
    pub fn expire_access(&self, account: &str) {
        self.known(account, |state, no| state.tokens.expire_access(no));
    }

    /// The access tokens issued so far are answered 401 `token_invalidated`.
    /// Refreshing works.
    #[track_caller]
    pub fn revoke_access(&self, account: &str) {
        self.known(account, |state, no| state.tokens.revoke_access(no));
    }

    /// Every login of `account` is over: access tokens are answered 401 and
    /// refreshing `refresh_token_invalidated`.
    #[track_caller]
    pub fn revoke_family(&self, account: &str) {
        self.known(account, state::State::revoke_families);
    }

    /// The refresh tokens issued so far are answered `refresh_token_expired`.
    #[track_caller]
    pub fn expire_refresh(&self, account: &str) {
        self.known(account, |state, no| state.tokens.expire_refresh(no));
    }

    /// Scripts a fault: for one account or any, `times` times or for ever.
    /// Of several that fit a request the one scripted first applies.
    #[track_caller]
    pub fn fault(&self, account: Option<&str>, route: Route, fault: Fault, times: Option<u32>) {
        if let Some(name) = account {
            self.known(name, |_, _| ());
        }
        self.shared.state.lock().faults.script(account, route, fault, times);
    }

    /// Forgets all scripted faults.
    pub fn clear_faults(&self) {
        self.shared.state.lock().faults.clear();
    }

    /// Sets how much of the two windows is used, in percent.
    #[track_caller]
    pub fn set_used(&self, account: &str, primary: f64, secondary: f64) {
        self.known(account, |state, no| state.set_used(no, primary, secondary));
    }

    /// Sets when the two windows reset, counted from now.
    #[track_caller]
    pub fn set_reset_in(&self, account: &str, primary: Duration, secondary: Duration) {
        self.known(account, |state, no| state.set_reset_in(no, primary, secondary));
    }

    /// Sets the models of an account, whose list gets another tag.
    #[track_caller]
    pub fn set_models(&self, account: &str, models: &[&str]) {
        self.known(account, |state, no| {
            if let Some(account) = state.accounts.get_mut(no.0) {
                account.spec.models = models.iter().map(|&model| model.to_owned()).collect();
            }
        });
    }

    /// Gives an account one more reset credit.
    #[track_caller]
    pub fn add_reset_credit(&self, account: &str, credit: &str) {
        self.known(account, |state, no| {
            if let Some(account) = state.accounts.get_mut(no.0) {
                account.spec.reset_credits.push(credit.to_owned());
            }
        });
    }

    /// Sets what an account's `accounts/check` asks for: an origin and a routing override.
    #[track_caller]
    pub fn set_workspace(&self, account: &str, origin: Option<&str>, routing: Option<&str>) {
        self.known(account, |state, no| {
            if let Some(account) = state.accounts.get_mut(no.0) {
                account.spec.origin = origin.map(str::to_owned);
                account.spec.routing = routing.map(str::to_owned);
            }
        });
    }

    /// How long tokens live that are issued from now on.
    pub fn set_tokens_ttl(&self, ttl: Duration) {
        self.shared.state.lock().config.tokens_ttl = ttl;
    }

    /// Sets for how long a just-spent refresh token still gets its successor.
    pub fn set_grace(&self, grace: Duration) {
        self.shared.state.lock().config.grace = grace;
    }

    /// Sets what is answered; `{account}` stands for the account's name.
    pub fn set_reply_text(&self, text: &str) {
        text.clone_into(&mut self.shared.state.lock().config.reply_text);
    }

    /// Sets whether a reply begins with reasoning.
    pub fn set_reasoning(&self, reasoning: bool) {
        self.shared.state.lock().config.reasoning = reasoning;
    }

    /// Sets what happens to items that another workspace sealed.
    pub fn set_encrypted(&self, encrypted: Encrypted) {
        self.shared.state.lock().config.encrypted = encrypted;
    }

    /// Something that was sealed for an account's workspace, as an item of its thread holds it.
    ///
    /// # Panics
    /// When there is no such account.
    #[track_caller]
    pub fn sealed_for(&self, account: &str) -> String {
        self.known(account, |state, no| {
            let serial = state.serial();
            let spec = state.account(no).map(|account| &account.spec);
            sealed::seal(spec.map_or("", |spec| &spec.workspace_id), serial)
        })
    }

    /// Sets the time between two events of a reply.
    pub fn set_event_gap(&self, gap: Duration) {
        self.shared.state.lock().config.event_gap = gap;
    }

    /// Sets how old a WebSocket may be when a turn begins on it.
    pub fn set_socket_age(&self, age: Duration) {
        self.shared.state.lock().config.socket_age = age;
    }

    /// Scripts one tool call: the first session that offers a command tool and
    /// has no tool output yet is told to run `command`, then gets the text.
    ///
    /// Only that session: a CLI that the tool starts has a session of its own
    /// and gets the text, else it would run the tool again without end.
    pub fn script_tool_call(&self, command: &str) {
        self.shared.state.lock().script_tool_call(command);
    }

    /// The same, also where the thread has had a tool in an earlier turn.
    pub fn script_another_tool_call(&self, command: &str) {
        let mut state = self.shared.state.lock();
        state.script_tool_call(command);
        if let Some(script) = &mut state.tool {
            script.in_any_turn = true;
        }
    }

    /// No session is asked to run a command any more.
    pub fn clear_tool_call(&self) {
        self.shared.state.lock().tool = None;
    }

    /// Refuses connections and cuts the open ones; the port stays reserved.
    pub fn stop_listening(&self) -> io::Result<()> {
        self.shared.commands.ask(Command::Pause)
    }

    /// Listens again on the same port.
    pub fn resume_listening(&self) -> io::Result<()> {
        self.shared.commands.ask(Command::Resume)
    }

    /// The requests so far, oldest first (bounded: the oldest are dropped).
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state.lock().record.seen()
    }

    /// Which rules of the upstream were broken, in words, oldest first.
    pub fn violations(&self) -> Vec<String> {
        self.shared.state.lock().record.violations()
    }

    /// What was counted.
    pub fn stats(&self) -> Stats {
        self.shared.state.lock().record.stats()
    }

    #[track_caller]
    fn known<T>(
        &self,
        account: &str,
        act: impl FnOnce(&mut state::State, state::AccountNo) -> T,
    ) -> T {
        let mut state = self.shared.state.lock();
        let Some(no) = state.find(account) else {
            drop(state);
            unknown_account(account);
        };
        act(&mut state, no)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.shared.commands.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the serving thread has been printed; nothing to add.
            thread.join().ok();
        }
    }
}

#[track_caller]
#[expect(clippy::panic, reason = "naming an account that is not there is a mistake in the test")]
fn unknown_account(account: &str) -> ! {
    panic!("the simulated upstream has no account `{account}`")
}
