//! How accounts are weighed: the strategies, what is kept as a reserve, what a project wants.
//!
//! A strategy is only an order of the last fields of [`crate::select::Key`]: what a person chose (a
//! force, a pin), what a thread has warm and what can't serve comes before it, whatever its name.

use crate::{identity::AccountId, time::Span};
use std::{collections::BTreeMap, sync::Arc};

/// A weight of one, in the thousandths that weights are counted in.
pub const WEIGHT_ONE: u32 = 1000;
/// The most an account can weigh: ten times another.
pub const WEIGHT_MOST: u32 = 10_000;

/// Which of the accounts that can serve equally well comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Strategy {
    /// The fewest threads for the quota that has to be used by its resets.
    #[default]
    Balanced,
    /// The one whose last turn is longest ago.
    RoundRobin,
    /// The one with the least of its quota used.
    LeastUsed,
    /// Any, each as likely as another.
    Random,
    /// By the weights that a person gave, exactly over time.
    WeightedRoundRobin,
    /// The first of the list until it is empty, then the second.
    Sequential,
    /// The one whose quota is renewed next.
    ResetSoonest,
}

impl Strategy {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 7] = [
        Self::Balanced,
        Self::RoundRobin,
        Self::LeastUsed,
        Self::Random,
        Self::WeightedRoundRobin,
        Self::Sequential,
        Self::ResetSoonest,
    ];

    /// As it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::RoundRobin => "round-robin",
            Self::LeastUsed => "least-used",
            Self::Random => "random",
            Self::WeightedRoundRobin => "weighted-round-robin",
            Self::Sequential => "sequential",
            Self::ResetSoonest => "reset-soonest",
        }
    }

    /// The one of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// What its three ranks are called, and what it says of one that decided.
    pub const fn ranks(self) -> [(&'static str, &'static str); 3] {
        const LOAD: (&str, &str) = ("in flight", "it has less in flight");
        const USED: (&str, &str) = ("used", "less of its quota is used");
        const NONE: (&str, &str) = ("", "it comes first in the list");
        match self {
            Self::Balanced => [
                ("crowding", "it has fewer threads for the quota that it has to use by its resets"),
                LOAD,
                USED,
            ],
            Self::RoundRobin => [("last turn", "its last turn is longer ago"), LOAD, USED],
            Self::LeastUsed => [USED, LOAD, ("served", "it served less")],
            Self::Random => [("drawn", "it was drawn"), NONE, NONE],
            Self::WeightedRoundRobin => [
                ("weight", "the other has no weight"),
                ("owed", "its share by weight is due"),
                NONE,
            ],
            Self::Sequential => [NONE, NONE, NONE],
            Self::ResetSoonest => [
                ("resets in min", "its quota is renewed sooner"),
                ("next window in min", "its next window is renewed sooner"),
                LOAD,
            ],
        }
    }
}

/// How much of a window is kept back, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reserve {
    /// Below it an account gets no new thread while another has more.
    pub low: f64,
    /// Below it a thread leaves as well, when its cache is worth less than what is left.
    pub critical: f64,
}

/// A reserve by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Preset {
    /// A turn or two of the window stays for the threads that are on it.
    #[default]
    Balanced,
    /// A fifth stays: for those who want something left at the end of the day.
    Conservative,
    /// To the last percent.
    Aggressive,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Balanced, Self::Conservative, Self::Aggressive];

    /// As it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Conservative => "conservative",
            Self::Aggressive => "aggressive",
        }
    }

    /// The one of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Its thresholds. Where `balanced` comes from: `docs/choosing.md`, the simulated weeks.
    pub const fn reserve(self) -> Reserve {
        match self {
            Self::Balanced => Reserve { low: 5.0, critical: 1.0 },
            Self::Conservative => Reserve { low: 20.0, critical: 5.0 },
            Self::Aggressive => Reserve { low: 1.0, critical: 0.0 },
        }
    }
}

/// How long a request may wait when every account is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// Not at all.
    #[default]
    Off,
    /// When one is back within this time.
    UpTo(Span),
    /// However long it takes.
    UntilReset,
}

/// What holds for all choices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// The order among equals.
    pub strategy: Strategy,
    /// What is kept back.
    pub reserve: Reserve,
    /// What happens when every account is out.
    pub wait: Wait,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            reserve: Preset::default().reserve(),
            wait: Wait::Off,
        }
    }
}

/// What a project wants of the accounts that serve it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// Its own strategy.
    pub strategy: Option<Strategy>,
    /// Accounts with one of these tags come first.
    pub prefer: Vec<Arc<str>>,
    /// Accounts with one of these come last.
    pub avoid: Vec<Arc<str>>,
    /// Models that may be asked for; empty for all. A `*` at the end stands for anything.
    pub allow: Vec<Arc<str>>,
    /// Models that may not.
    pub deny: Vec<Arc<str>>,
    /// Weights that count here instead of the accounts' own, in thousandths.
    pub weights: BTreeMap<AccountId, u32>,
}

impl Profile {
    /// Whether a model may be asked for.
    pub fn permits(&self, model: &str) -> bool {
        let named = |list: &[Arc<str>]| list.iter().any(|pattern| matches(pattern, model));
        !named(&self.deny) && (self.allow.is_empty() || named(&self.allow))
    }

    /// 0 for an account that is preferred, 2 for one that is avoided.
    pub fn taste(&self, tags: &[Arc<str>]) -> u8 {
        let has = |list: &[Arc<str>]| list.iter().any(|tag| tags.contains(tag));
        if has(&self.avoid) { 2 } else { u8::from(!has(&self.prefer)) }
    }
}

fn matches(pattern: &str, model: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => model.starts_with(start),
        None => pattern == model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_presets_are_ordered() {
        for strategy in Strategy::ALL {
            assert_eq!(Strategy::of(strategy.name()), Some(strategy));
        }
        assert_eq!(Strategy::of("fastest"), None);
        for preset in Preset::ALL {
            assert_eq!(Preset::of(preset.name()), Some(preset));
            assert!(preset.reserve().critical < preset.reserve().low);
        }
        let low = |preset: Preset| preset.reserve().low;
        assert!(low(Preset::Aggressive) < low(Preset::Balanced));
        assert!(low(Preset::Balanced) < low(Preset::Conservative));
    }

    #[test]
    fn a_profile_names_models_and_tags() {
        let list = |words: &[&str]| words.iter().map(|word| Arc::from(*word)).collect::<Vec<_>>();
        let profile = Profile {
            allow: list(&["gpt-5*"]),
            deny: list(&["gpt-5-pro"]),
            prefer: list(&["work"]),
            avoid: list(&["slow"]),
            ..Profile::default()
        };
        assert!(profile.permits("gpt-5-codex"));
        assert!(!profile.permits("gpt-5-pro") && !profile.permits("o3"));
        assert!(Profile::default().permits("anything"));
        assert_eq!(profile.taste(&list(&["work"])), 0);
        assert_eq!(profile.taste(&[]), 1);
        assert_eq!(profile.taste(&list(&["work", "slow"])), 2, "avoiding is stronger");
    }
}
