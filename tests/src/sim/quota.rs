//! Keeps the two quota windows of an account and says them three ways: response
//! headers, the body of a 429, and `/wham/usage`.
//!
//! A window lets requests through until it is full, and is empty again at its
//! reset. The three ways always tell the same numbers, except that the usage
//! document has whole percents (clients refuse fractions there), rounded down.

use std::time::Duration;

use serde_json::{Value, json};

use super::clock::UnixMs;
use super::config::{AccountSpec, OwnLimit, Window};

/// One window as it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    per_request: f64,
    minutes: u64,
    used: f64,
    reset_at: UnixMs,
}

/// Both windows as they stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quota {
    pub(super) primary: Bucket,
    pub(super) secondary: Bucket,
}

impl Bucket {
    fn new(window: Window, now: UnixMs) -> Self {
        Self {
            per_request: window.per_request.max(0.0),
            minutes: window.minutes,
            used: window.used.clamp(0.0, 100.0),
            reset_at: now.after(window.reset_in).whole(),
        }
    }

    pub(super) fn set_used(&mut self, percent: f64) {
        self.used = percent.clamp(0.0, 100.0);
    }

    pub(super) fn set_reset_in(&mut self, span: Duration) {
        self.reset_at = UnixMs::now().after(span).whole();
    }

    fn roll(&mut self, now: UnixMs) {
        if now >= self.reset_at {
            self.used = 0.0;
            let span = Duration::from_secs(self.minutes.saturating_mul(60));
            self.reset_at = now.after(span).whole();
        }
    }

    fn is_full(&self) -> bool {
        self.percent() >= 100.0
    }

    /// To the hundredth, so that thirds add up to what people expect.
    fn percent(&self) -> f64 {
        (self.used * 100.0).round() / 100.0
    }

    fn document(&self, now: UnixMs) -> Value {
        json!({
            "used_percent": whole(self.percent()),
            "limit_window_seconds": self.minutes.saturating_mul(60),
            "reset_after_seconds": now.until(self.reset_at).as_secs(),
            "reset_at": self.reset_at.secs(),
        })
    }

    fn headers(&self, name: &str, into: &mut Vec<(String, String)>) {
        self.family("codex", name, into);
    }

    fn family(&self, family: &str, name: &str, into: &mut Vec<(String, String)>) {
        let prefix = format!("x-{family}-{name}");
        into.push((format!("{prefix}-used-percent"), format!("{:?}", self.percent())));
        into.push((format!("{prefix}-window-minutes"), self.minutes.to_string()));
        into.push((format!("{prefix}-reset-at"), self.reset_at.secs().to_string()));
    }

    /// As the control routes show it.
    pub(super) fn state(&self) -> Value {
        json!({
            "used_percent": self.percent(),
            "per_request": self.per_request,
            "window_minutes": self.minutes,
            "reset_at": self.reset_at.secs(),
        })
    }
}

impl Quota {
    pub(super) fn new(spec: &AccountSpec) -> Self {
        let now = UnixMs::now();
        Self {
            primary: Bucket::new(spec.primary, now),
            secondary: Bucket::new(spec.secondary, now),
        }
    }

    /// Brings both windows to now; must precede every look at them.
    pub(super) fn roll(&mut self) {
        let now = UnixMs::now();
        self.primary.roll(now);
        self.secondary.roll(now);
    }

    /// Adds one served response.
    pub(super) fn charge(&mut self) {
        self.primary.set_used(self.primary.used + self.primary.per_request);
        self.secondary.set_used(self.secondary.used + self.secondary.per_request);
    }

    /// When the last of the full windows resets, if any is full.
    pub(super) fn full_until(&self) -> Option<UnixMs> {
        [self.primary, self.secondary]
            .into_iter()
            .filter(Bucket::is_full)
            .map(|bucket| bucket.reset_at)
            .max()
    }

    /// The same windows with the short one full for `span`.
    pub(super) fn exhausted_for(mut self, span: Duration) -> Self {
        self.primary.used = 100.0;
        self.primary.reset_at = UnixMs::now().after(span).whole();
        self
    }

    /// As a WebSocket's `codex.rate_limits` says it.
    pub(super) fn event(&self, plan: &str) -> Value {
        let now = UnixMs::now();
        let window = |bucket: &Bucket| {
            json!({
                "used_percent": bucket.percent(),
                "window_minutes": bucket.minutes,
                "reset_after_seconds": now.until(bucket.reset_at).as_secs(),
                "reset_at": bucket.reset_at.secs(),
            })
        };
        json!({
            "plan_type": plan,
            "rate_limits": {
                "allowed": true,
                "limit_reached": false,
                "primary": window(&self.primary),
                "secondary": window(&self.secondary),
            },
            "credits": { "has_credits": false, "unlimited": false, "balance": "0" },
            "metered_limit_name": "codex",
        })
    }

    pub(super) fn headers(&self, plan: &str) -> Vec<(String, String)> {
        let mut headers = Vec::with_capacity(11);
        self.primary.headers("primary", &mut headers);
        self.secondary.headers("secondary", &mut headers);
        for (name, value) in [
            ("x-codex-plan-type", plan),
            ("x-codex-active-limit", "codex"),
            ("x-codex-credits-has-credits", "False"),
            ("x-codex-credits-unlimited", "False"),
            ("x-codex-credits-balance", "0"),
        ] {
            headers.push((name.to_owned(), value.to_owned()));
        }
        headers
    }

    /// The body of a 429 whose window resets at `until`.
    pub(super) fn refusal(plan: &str, until: UnixMs) -> Value {
        json!({
            "error": {
                "type": "usage_limit_reached",
                "message": "The usage limit has been reached",
                "plan_type": plan,
                "resets_at": until.secs(),
                "resets_in_seconds": UnixMs::now().until(until).as_secs(),
            }
        })
    }

    /// The answer of `/wham/usage`.
    pub(super) fn usage(&self, spec: &AccountSpec) -> Value {
        let now = UnixMs::now();
        let full = self.full_until().is_some();
        json!({
            "user_id": spec.user_id,
            "account_id": spec.workspace_id,
            "email": spec.email,
            "plan_type": spec.plan,
            "rate_limit": {
                "allowed": !full,
                "limit_reached": full,
                "primary_window": self.primary.document(now),
                "secondary_window": self.secondary.document(now),
            },
            "code_review_rate_limit": null,
            "additional_rate_limits": [],
            "credits": {
                "has_credits": false,
                "unlimited": false,
                "balance": "0",
                "approx_local_messages": null,
                "approx_cloud_messages": null,
            },
            "promo": null,
        })
    }
}

/// A model's own limit as it stands.
#[derive(Debug)]
pub(super) struct Own {
    spec: OwnLimit,
    bucket: Bucket,
}

impl Own {
    pub(super) fn new(spec: &OwnLimit) -> Self {
        Self { spec: spec.clone(), bucket: Bucket::new(spec.window, UnixMs::now()) }
    }

    /// Adds one served response of its model; when it is full, the time of its reset.
    pub(super) fn charge(&mut self) -> Result<(), UnixMs> {
        self.bucket.roll(UnixMs::now());
        if self.bucket.is_full() {
            return Err(self.bucket.reset_at);
        }
        self.bucket.set_used(self.bucket.used + self.bucket.per_request);
        Ok(())
    }

    pub(super) fn counts(&self, model: &str) -> bool {
        self.spec.model == model
    }

    /// A family of headers of its own, and that the answer is about it.
    pub(super) fn headers(&self, all: &mut Vec<(String, String)>) {
        let family = self.spec.id.replace('_', "-");
        self.bucket.family(&family, "primary", all);
        all.push((format!("x-{family}-limit-name"), self.spec.title.clone()));
        for (_name, value) in all.iter_mut().filter(|(name, _)| name == "x-codex-active-limit") {
            value.clone_from(&self.spec.id);
        }
    }

    /// As `/wham/usage` says it.
    pub(super) fn usage(&mut self) -> Value {
        let now = UnixMs::now();
        self.bucket.roll(now);
        json!({
            "limit_name": self.spec.title,
            "metered_feature": self.spec.id,
            "rate_limit": {
                "allowed": !self.bucket.is_full(),
                "limit_reached": self.bucket.is_full(),
                "primary_window": self.bucket.document(now),
                "secondary_window": null,
            },
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=100 just before"
)]
fn whole(percent: f64) -> u64 {
    percent.clamp(0.0, 100.0).floor() as u64
}
