//! How accounts are chosen: strategies, forces, an account's terms, projects' profiles, forecasts, and
//! why a choice came out as it did.

use crate::message::{LaunchRequest, Why};
use serde::{Deserialize, Serialize};

/// What a client asks about choosing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChooseRequest {
    /// How choices are made. Answer: [`ChooseReply::Rules`].
    Rules,
    /// Change that. Answer: [`ChooseReply::Rules`].
    SetRules(RulesChange),
    /// Let only some accounts serve for a while. Answer: [`ChooseReply::Rules`].
    Force {
        /// An account as everywhere, or a tag for all that have it.
        selector: String,
        /// For how long.
        secs: u64,
    },
    /// End a force. Answer: [`ChooseReply::Rules`].
    Unforce,
    /// Change what an account may do. Answer: [`crate::message::Reply::Changed`].
    SetTerms {
        /// Which account.
        selector: String,
        /// What changes.
        change: TermsChange,
    },
    /// What every account may do. Answer: [`ChooseReply::Terms`].
    Terms,
    /// What the accounts can still take. Answer: [`ChooseReply::Forecast`].
    Forecast {
        /// For requests to this model.
        model: Option<String>,
        /// For launches in this folder; the global pool when none.
        dir: Option<String>,
        /// Ask upstream first.
        live: bool,
    },
    /// How a choice was or would be made. Answer: [`ChooseReply::Why`].
    Why {
        /// A request's id, `last`, or none for one that came now.
        request: Option<String>,
        /// For one that came now: in this folder; the global pool when none.
        dir: Option<String>,
    },
    /// What a folder's project wants. Answer: [`ChooseReply::Profile`].
    Profile {
        /// A folder of it.
        dir: String,
        /// What changes; nothing shows it.
        edit: Option<ProfileEdit>,
    },
    /// A launch that only some accounts may serve. Answer: [`crate::message::Reply::Launch`].
    Launch {
        /// As for any launch.
        launch: LaunchRequest,
        /// An account, or a tag for all that have it.
        selector: String,
        /// Whether the CLI stays on its own login.
        own: bool,
    },
}

/// What changes about all choices; what is none stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RulesChange {
    /// Name of a strategy.
    pub strategy: Option<String>,
    /// Name of a preset; takes its thresholds.
    pub preset: Option<String>,
    /// Percent of headroom below which an account gets no new thread.
    pub low: Option<f64>,
    /// Percent below which threads leave as well.
    pub critical: Option<f64>,
    /// `off`, `until-reset` or a time like `30s`.
    pub wait: Option<String>,
    /// Whether all answers carry `x-cma-…` headers.
    pub headers: Option<bool>,
}

/// A change of what an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TermsChange {
    /// Serve nothing new, or again.
    Pause(bool),
    /// Take no new thread, or again.
    Drain(bool),
    /// Its weight, in thousandths.
    Weight(u32),
    /// Requests at once; none lifts the cap.
    Cap(Option<u32>),
}

/// A change of what a project wants; what is none stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProfileEdit {
    /// Forget everything first.
    pub clear: bool,
    /// Name of a strategy; empty for the pool's own.
    pub strategy: Option<String>,
    /// Tags to prefer.
    pub prefer: Option<Vec<String>>,
    /// Tags to avoid.
    pub avoid: Option<Vec<String>>,
    /// Models that may be asked for, `*` at the end for any ending.
    pub allow: Option<Vec<String>>,
    /// Models that may not.
    pub deny: Option<Vec<String>>,
    /// Accounts and their weights here in thousandths; none for their own.
    pub weights: Vec<(String, Option<u32>)>,
}

/// What the daemon answers about choosing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChooseReply {
    /// How choices are made.
    Rules(RulesInfo),
    /// What every account may do.
    Terms(Vec<TermsInfo>),
    /// What the accounts can still take.
    Forecast(Box<Forecast>),
    /// How a choice was or would be made.
    Why(Box<Explained>),
    /// What a project wants.
    Profile(ProfileInfo),
}

/// How choices are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RulesInfo {
    /// Name of the strategy.
    pub strategy: String,
    /// All names.
    pub strategies: Vec<String>,
    /// Name of the preset.
    pub preset: String,
    /// Percent of headroom below which an account gets no new thread.
    pub low: f64,
    /// Percent below which threads leave as well.
    pub critical: f64,
    /// `off`, `until-reset` or a time like `30s`.
    pub wait: String,
    /// Whether all answers carry `x-cma-…` headers.
    pub headers: bool,
    /// The force that is on.
    pub force: Option<ForceInfo>,
    /// Requests that wait for an account.
    pub waiting: u32,
    /// When the first of them should go on.
    pub waiting_until: Option<u64>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// A force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForceInfo {
    /// Account ids.
    pub accounts: Vec<String>,
    /// What they are called.
    pub names: Vec<String>,
    /// When it ends by itself.
    pub until: u64,
    /// What it holds for, for a person.
    pub scope: String,
    /// Why requests are refused, when none of them can serve.
    pub out: Option<String>,
}

/// What an account may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TermsInfo {
    /// Position in the list, from 1.
    pub index: u32,
    /// Account id.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// As `status` shows it.
    pub state: String,
    /// Whether its person lets it serve at all.
    pub enabled: bool,
    /// Whether it serves nothing new.
    pub paused: bool,
    /// Whether it takes no new thread.
    pub drained: bool,
    /// Its weight.
    pub weight: f64,
    /// Its share of all weights, in percent.
    pub share_percent: f64,
    /// Requests it may serve at once.
    pub cap: Option<u32>,
    /// Requests it serves.
    pub in_flight: u32,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its note.
    pub note: Option<String>,
    /// What rests, and on what evidence.
    pub rests: Vec<RestInfo>,
}

/// A rest and the evidence for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestInfo {
    /// `account`, or the model it is for.
    pub scope: String,
    /// Why.
    pub cause: String,
    /// Where that is known from.
    pub source: String,
    /// When it ends by itself.
    pub until: u64,
}

/// What the accounts can still take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// When it was made.
    pub at: u64,
    /// By which strategy.
    pub strategy: String,
    /// The account to use.
    pub recommended: Option<String>,
    /// Why that one.
    pub reason: String,
    /// When the first one is back, when none can serve.
    pub retry_at: Option<u64>,
    /// All accounts, the recommended one first.
    pub accounts: Vec<ForecastInfo>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// What one account can still take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForecastInfo {
    /// Account id.
    pub account: String,
    /// What it is called.
    pub name: String,
    /// `ready`, `waiting` (it ends by itself) or `out`.
    pub readiness: String,
    /// Why it can't serve.
    pub reason: Option<String>,
    /// Seconds until it can.
    pub wait_secs: Option<u64>,
    /// `low`, `medium`, `high`: whether a thread that begins now is cut off before its windows are
    /// renewed.
    pub risk: String,
    /// How the windows stand.
    pub windows: Vec<WindowForecast>,
    /// The keys that were compared, in order: name and value.
    pub keys: Vec<(String, String)>,
}

/// How one window stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowForecast {
    /// Limit id.
    pub limit: String,
    /// Length in minutes.
    pub minutes: Option<u64>,
    /// Percent left.
    pub left_percent: f64,
    /// When it is renewed.
    pub resets_at: Option<u64>,
    /// When it is empty at the pace since it began; none when it lasts until its reset.
    pub empty_at: Option<u64>,
    /// How old what is known of it is, in seconds.
    pub age_secs: u64,
}

/// How a choice was or would be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Who was compared, and how it ended.
    pub why: Why,
    /// By which strategy.
    pub strategy: String,
    /// `pool`, `pin`, `force` or `launch`: what narrowed the choice down.
    pub by: String,
    /// Accounts that could serve.
    pub able: u32,
    /// Tokens that the thread had cached, and with which account.
    pub warm: Option<(String, u32)>,
    /// What the choice means for the thread's prompt cache, for a person.
    pub cache: String,
    /// What the choice cost, in microseconds.
    pub cost_us: Option<f64>,
}

/// What a project wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileInfo {
    /// The project's key.
    pub project: String,
    /// Its folder.
    pub path: String,
    /// Its own strategy.
    pub strategy: Option<String>,
    /// Tags it prefers.
    pub prefer: Vec<String>,
    /// Tags it avoids.
    pub avoid: Vec<String>,
    /// Models that may be asked for; empty for all.
    pub allow: Vec<String>,
    /// Models that may not.
    pub deny: Vec<String>,
    /// Account ids and their weights here.
    pub weights: Vec<(String, f64)>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec::Codec,
        message::{Reply, Request},
    };

    fn text(text: &str) -> String {
        text.to_owned()
    }

    fn requests() -> Vec<ChooseRequest> {
        let launch = LaunchRequest {
            printed: false,
            codex_version: text("0.169.0"),
            codex_home: text("/home/a/.codex"),
            cwd: text("/"),
            overrides: Vec::new(),
            profile: None,
            interactive: false,
            no_proxy: String::new(),
            ignore_user_config: false,
        };
        vec![
            ChooseRequest::Rules,
            ChooseRequest::SetRules(RulesChange { low: Some(7.5), ..RulesChange::default() }),
            ChooseRequest::Force { selector: text("work"), secs: 86_400 },
            ChooseRequest::Unforce,
            ChooseRequest::SetTerms { selector: text("1"), change: TermsChange::Cap(Some(3)) },
            ChooseRequest::Terms,
            ChooseRequest::Forecast { model: Some(text("m")), dir: None, live: true },
            ChooseRequest::Why { request: Some(text("last")), dir: None },
            ChooseRequest::Profile {
                dir: text("/home/a/src"),
                edit: Some(ProfileEdit {
                    prefer: Some(vec![text("fast")]),
                    weights: vec![(text("work"), None)],
                    ..ProfileEdit::default()
                }),
            },
            ChooseRequest::Launch { launch, selector: text("tag:team"), own: false },
        ]
    }

    fn rules() -> RulesInfo {
        let force = ForceInfo {
            accounts: vec![text("aa")],
            names: vec![text("work")],
            until: 1_800_000_000,
            scope: text("everywhere"),
            out: None,
        };
        RulesInfo {
            strategy: text("balanced"),
            strategies: vec![text("balanced")],
            preset: text("balanced"),
            low: 5.0,
            critical: 1.0,
            wait: text("30s"),
            headers: false,
            force: Some(force),
            waiting: 2,
            waiting_until: Some(1_800_000_000),
            notes: Vec::new(),
        }
    }

    fn terms() -> TermsInfo {
        TermsInfo {
            index: 1,
            id: text("aa"),
            name: text("work"),
            state: text("ready"),
            enabled: true,
            paused: false,
            drained: true,
            weight: 2.5,
            share_percent: 50.0,
            cap: Some(2),
            in_flight: 1,
            tags: vec![text("t")],
            note: None,
            rests: vec![RestInfo {
                scope: text("account"),
                cause: text("usage limit reached"),
                source: text("upstream"),
                until: 1_800_000_000,
            }],
        }
    }

    fn forecast() -> Forecast {
        Forecast {
            at: 1_800_000_000,
            strategy: text("balanced"),
            recommended: Some(text("aa")),
            reason: text("it is pinned"),
            retry_at: None,
            accounts: vec![ForecastInfo {
                account: text("aa"),
                name: text("work"),
                readiness: text("ready"),
                reason: None,
                wait_secs: None,
                risk: text("low"),
                windows: vec![WindowForecast {
                    limit: text("codex"),
                    minutes: Some(300),
                    left_percent: 40.0,
                    resets_at: Some(1_800_000_000),
                    empty_at: None,
                    age_secs: 5,
                }],
                keys: vec![(text("pin"), text("-"))],
            }],
            notes: Vec::new(),
        }
    }

    fn explained() -> Explained {
        let why = Why {
            request: None,
            at: 5,
            chosen: None,
            decided_by: text("no account can serve"),
            retry_at: None,
            candidates: Vec::new(),
            attempts: Vec::new(),
        };
        Explained {
            why,
            strategy: text("balanced"),
            by: text("pool"),
            able: 0,
            warm: Some((text("aa"), 300)),
            cache: text("kept"),
            cost_us: Some(1.5),
        }
    }

    fn profile() -> ProfileInfo {
        ProfileInfo {
            project: text("src-0123456789ab"),
            path: text("/home/a/src"),
            strategy: None,
            prefer: vec![text("fast")],
            avoid: Vec::new(),
            allow: Vec::new(),
            deny: vec![text("gpt-5-pro*")],
            weights: vec![(text("aa"), 0.5)],
            notes: Vec::new(),
        }
    }

    fn replies() -> Vec<ChooseReply> {
        vec![
            ChooseReply::Rules(rules()),
            ChooseReply::Terms(vec![terms()]),
            ChooseReply::Forecast(Box::new(forecast())),
            ChooseReply::Why(Box::new(explained())),
            ChooseReply::Profile(profile()),
        ]
    }

    #[test]
    fn every_message_survives_both_codecs() {
        for codec in [Codec::Bincode, Codec::Json] {
            for request in requests().into_iter().map(Request::Choose) {
                let bytes = codec.encode(&request).unwrap();
                assert_eq!(codec.decode::<Request>(&bytes).unwrap(), request);
            }
            for reply in replies().into_iter().map(Reply::Choose) {
                let bytes = codec.encode(&reply).unwrap();
                assert_eq!(codec.decode::<Reply>(&bytes).unwrap(), reply);
            }
        }
        assert_eq!((requests().len(), replies().len()), (10, 5));
    }
}
