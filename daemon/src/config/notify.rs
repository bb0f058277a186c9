//! Whom to tell what, and how: `[notify]` of `config.toml`. Nothing is told unless a way is set up.
//!
//! A token is named by its file or variable and never stands in the settings; a notice leaves this
//! machine by https alone; a hook is a program with its arguments, and no shell reads it.

use super::{Endpoint, endpoint, is_loopback};
use serde::Deserialize;
use std::path::PathBuf;

/// How much of its fullest window the best account must have left, in percent, before the pool is
/// called low: an hour's work of a five-hour window.
const LOW: f64 = 10.0;
/// Where a token may stand instead of a file.
pub(crate) const TOKEN_VARIABLE: &str = "CMA_NTFY_TOKEN";

/// What a person is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Every account that can serve is nearly used up.
    PoolLow,
    /// An account's login is gone.
    NeedsLogin,
    /// An account that was used up can serve again.
    Reset,
    /// No account can serve.
    AllDry,
    /// Somebody tries whether notices arrive.
    Test,
}

impl Kind {
    /// As it is written in the settings, and in a hook's environment.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::PoolLow => "pool_low",
            Self::NeedsLogin => "needs_login",
            Self::Reset => "reset",
            Self::AllDry => "all_dry",
            Self::Test => "test",
        }
    }
}

/// The settings, checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notify {
    pub(crate) on: Vec<Kind>,
    pub(crate) desktop: bool,
    pub(crate) ntfy: Option<Ntfy>,
    /// A program and its arguments.
    pub(crate) command: Vec<String>,
    pub(crate) quiet: Option<Quiet>,
    /// Percent.
    pub(crate) low: f64,
}

/// A topic to post to.
#[derive(Debug, Clone)]
pub(crate) struct Ntfy {
    pub(crate) at: Endpoint,
    pub(crate) token_file: Option<PathBuf>,
}

/// Minutes of the day from which, and until which, nobody is told anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quiet {
    from: u16,
    until: u16,
}

/// The settings as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    on: Option<Vec<String>>,
    desktop: bool,
    ntfy: Option<String>,
    ntfy_token_file: Option<PathBuf>,
    command: Vec<String>,
    quiet: Option<String>,
    low: Option<f64>,
}

impl Notify {
    /// Whether anybody is to be told.
    pub(crate) const fn is_off(&self) -> bool {
        !self.desktop && self.ntfy.is_none() && self.command.is_empty()
    }
}

impl Quiet {
    /// Whether a minute of the day lies in it; it may go over midnight.
    pub(crate) const fn has(self, minute: u16) -> bool {
        if self.from <= self.until {
            self.from <= minute && minute < self.until
        } else {
            minute >= self.from || minute < self.until
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (from, until) = text.split_once('-')?;
        let (from, until) = (minute(from)?, minute(until)?);
        (from != until).then_some(Self { from, until })
    }
}

fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

impl File {
    pub(super) fn resolve(&self) -> Result<Notify, String> {
        let all = [Kind::PoolLow, Kind::NeedsLogin, Kind::Reset, Kind::AllDry];
        let on = match &self.on {
            None => all.to_vec(),
            Some(words) => words
                .iter()
                .map(|word| {
                    all.into_iter().find(|kind| kind.word() == word).ok_or_else(|| {
                        format!(
                            "`config.toml`: notify.on `{word}` is none of pool_low, needs_login, reset, \
                             all_dry"
                        )
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        let quiet = self.quiet.as_deref().map(|text| {
            Quiet::read(text).ok_or_else(|| {
                format!("`config.toml`: notify.quiet `{text}` is not like 22:00-07:00")
            })
        });
        let low = self.low.unwrap_or(LOW);
        if !(0.0..=100.0).contains(&low) {
            return Err(format!("`config.toml`: notify.low {low} is no percentage"));
        }
        let ntfy = self.ntfy.as_deref().map(|text| {
            let at = endpoint(text).map_err(|why| format!("`config.toml`: notify.ntfy {why}"))?;
            if !at.tls && !is_loopback(&at.host) {
                return Err(format!(
                    "`config.toml`: notify.ntfy `{text}` is plain http to a host that is not loopback"
                ));
            }
            Ok(Ntfy { at, token_file: self.ntfy_token_file.clone() })
        });
        Ok(Notify {
            on,
            desktop: self.desktop,
            ntfy: ntfy.transpose()?,
            command: self.command.clone(),
            quiet: quiet.transpose()?,
            low,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Notify, String> {
        toml::from_str::<File>(text).unwrap().resolve()
    }

    #[test]
    fn nothing_is_told_unless_a_way_is_set_up() {
        assert!(read("").unwrap().is_off());
        assert!(read("on = ['reset']").unwrap().is_off());
        let hook = read("command = ['/bin/true']").unwrap();
        assert!(!hook.is_off() && hook.on.len() == 4);
        assert!(read("on = ['payday']").is_err());
        assert!(read("low = 101.0").is_err());
    }

    #[test]
    fn notices_leave_the_machine_by_https_alone() {
        assert!(read("ntfy = 'https://ntfy.example.test/topic'").is_ok());
        assert!(read("ntfy = 'http://127.0.0.1:8/topic'").is_ok());
        assert!(read("ntfy = 'http://ntfy.example.test/topic'").is_err());
        assert!(read("ntfy = 'https://user:pass@ntfy.example.test/t'").is_err());
    }

    #[test]
    fn quiet_hours_may_go_over_midnight() {
        let night = read("quiet = '22:00-07:30'").unwrap().quiet.unwrap();
        for (minute, quiet) in [(1319, false), (1320, true), (0, true), (449, true), (450, false)] {
            assert_eq!(night.has(minute), quiet, "{minute}");
        }
        let noon = read("quiet = '12:00-13:00'").unwrap().quiet.unwrap();
        assert!(noon.has(720) && !noon.has(780) && !noon.has(0));
        for bad in ["22", "22:00-22:00", "25:00-07:00", "22:61-07:00", "x-y"] {
            assert!(read(&format!("quiet = '{bad}'")).is_err(), "{bad}");
        }
    }
}
