//! What a simulated upstream is told at the start: accounts, windows, manners.
//!
//! Nothing here acts; the defaults are an upstream that serves everything at
//! once and breaks no rule.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::sealed::Encrypted;

/// The client id of the official CLI; the only one the issuer knows.
pub const CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";

/// The string in every token unless configured otherwise.
pub const DEFAULT_CANARY: &str = "canary7Qx2TOKENmustNotLeak";

/// How a simulated upstream behaves.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Where to listen; must be loopback. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// TLS, with the protocols it agrees on; none speaks plain HTTP/1.1.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Names it may be called by besides `localhost` and its address.
    pub names: Vec<String>,
    /// Who has an account.
    pub accounts: Vec<AccountSpec>,
    /// For how long a just-spent refresh token still gets its successor.
    pub grace: Duration,
    /// The time between two events of a reply.
    pub event_gap: Duration,
    /// What is answered; `{account}` stands for the account's name.
    pub reply_text: String,
    /// Whether a reply begins with an item of reasoning, sealed for the account's workspace.
    pub reasoning: bool,
    /// What happens to items that another workspace sealed.
    pub encrypted: Encrypted,
    /// How long an access token lives.
    pub tokens_ttl: Duration,
    /// Whether broken rules are noted in [`super::Sim::violations`].
    pub strict: bool,
    /// Part of every token, in clear, so that outputs can be searched for it.
    /// Characters other than letters, digits, `-` and `_` are left out.
    pub canary: String,
    /// The issuer named in tokens and in `oauth_provenance`.
    pub issuer_claim: String,
    /// What a client key begins with; none may ever arrive here.
    pub client_key_marks: Vec<String>,
    /// How many tokens each turn is said to have read; by its size when there is no number.
    pub input_tokens: Option<usize>,
    /// Whether Responses are served over WebSockets; else an upgrade is answered 426.
    pub websocket: bool,
    /// How old a WebSocket may be when a turn begins on it.
    pub socket_age: Duration,
    /// How many requests are kept in the record.
    pub keep_requests: usize,
    /// The largest decoded body kept in the record.
    pub keep_body: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: None,
            names: Vec::new(),
            accounts: vec![AccountSpec::new("a")],
            grace: Duration::ZERO,
            event_gap: Duration::ZERO,
            reply_text: "hello from the simulated upstream".to_owned(),
            reasoning: false,
            encrypted: Encrypted::Strict,
            // What the issuer was seen to answer in `expires_in`.
            tokens_ttl: Duration::from_secs(864_000),
            strict: true,
            canary: DEFAULT_CANARY.to_owned(),
            issuer_claim: "https://auth.openai.com".to_owned(),
            client_key_marks: vec!["at-cma-".to_owned()],
            input_tokens: None,
            websocket: true,
            // The code of its own that upstream answers then says 60 minutes.
            socket_age: Duration::from_secs(3600),
            keep_requests: 10_000,
            keep_body: 1 << 20,
        }
    }
}

/// One account: a user in a workspace with a plan.
#[derive(Debug, Clone)]
pub struct AccountSpec {
    /// What tests and the control routes call it.
    pub name: String,
    /// The address in its tokens.
    pub email: String,
    /// Its `chatgpt_user_id`.
    pub user_id: String,
    /// Its `chatgpt_account_id`.
    pub workspace_id: String,
    /// Its `chatgpt_plan_type`.
    pub plan: String,
    /// The short window.
    pub primary: Window,
    /// The long window.
    pub secondary: Window,
    /// A limit that one of its models has for itself.
    pub own_limit: Option<OwnLimit>,
    /// The slugs of its models.
    pub models: Vec<String>,
    /// The ids of its reset credits.
    pub reset_credits: Vec<String>,
    /// The origin that its workspace asks for.
    pub origin: Option<String>,
    /// The routing override that its workspace asks for.
    pub routing: Option<String>,
}

impl AccountSpec {
    /// `NAME@example.test` on the plus plan, with quota for a long test.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            email: format!("{name}@example.test"),
            user_id: format!("user-{name}"),
            workspace_id: format!("acct-{name}"),
            plan: "plus".to_owned(),
            primary: Window::new(0.01, 300, Duration::from_secs(3 * 3600)),
            secondary: Window::new(0.001, 10_080, Duration::from_secs(5 * 86_400)),
            own_limit: None,
            models: vec!["gpt-5.5".to_owned()],
            reset_credits: Vec::new(),
            origin: None,
            routing: None,
        }
    }

    /// The same with another plan.
    #[must_use]
    pub fn plan(mut self, plan: &str) -> Self {
        plan.clone_into(&mut self.plan);
        self
    }

    /// The same with other models.
    #[must_use]
    pub fn models(mut self, models: &[&str]) -> Self {
        self.models = models.iter().map(|&model| model.to_owned()).collect();
        self
    }

    /// The same with another short window.
    #[must_use]
    pub fn primary(mut self, window: Window) -> Self {
        self.primary = window;
        self
    }

    /// The same with another long window.
    #[must_use]
    pub fn secondary(mut self, window: Window) -> Self {
        self.secondary = window;
        self
    }
}

/// A limit that counts one model only, beside the two windows that count all.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnLimit {
    /// The slug of the model.
    pub model: String,
    /// Its id, as in `metered_feature` and `x-codex-active-limit`.
    pub id: String,
    /// What people call it.
    pub title: String,
    /// Its window.
    pub window: Window,
}

/// A quota window at the start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// How many percent one served response uses.
    pub per_request: f64,
    /// How long the window is once it has reset.
    pub minutes: u64,
    /// When it resets for the first time, counted from the start.
    pub reset_in: Duration,
    /// How many percent are used at the start.
    pub used: f64,
}

impl Window {
    /// An unused window.
    pub fn new(per_request: f64, minutes: u64, reset_in: Duration) -> Self {
        Self { per_request, minutes, reset_in, used: 0.0 }
    }

    /// The same with `used` percent gone.
    #[must_use]
    pub fn used(mut self, used: f64) -> Self {
        self.used = used;
        self
    }
}
