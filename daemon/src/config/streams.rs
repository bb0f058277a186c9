//! Settings of streams: for how long their beginning is held back, and when a silent one is given up.

use super::duration;
use serde::Deserialize;
use std::time::Duration;

/// How long and how much of a stream's beginning is held back, and when silence ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Streams {
    /// From the head on, at most. The official CLI shows nothing for what is held, has no limit for
    /// the head, and counts its idle time (300 s) from the head (0.169.0, observed).
    pub(crate) hold: Duration,
    /// Bytes, at most. Upstream's first two events each repeat the request's instructions and tools
    /// (public Responses API): that is a few kilobytes or, with many tools, some hundreds.
    pub(crate) hold_bytes: usize,
    /// Silence within the hold after which another account is asked, once for each request.
    pub(crate) hold_silence: Duration,
    /// Silence after the hold that breaks the stream. The CLI's own idle limit.
    pub(crate) stall: Duration,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(20),
            hold_bytes: 1024 * 1024,
            hold_silence: Duration::from_secs(15),
            stall: Duration::from_secs(300),
        }
    }
}

/// The table `[streams]` of `config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileStreams {
    hold: Option<String>,
    hold_bytes: Option<u32>,
    hold_silence: Option<String>,
    stall: Option<String>,
}

/// The variables that stand for the table's durations.
pub(super) const VARIABLES: [&str; 3] = ["CMA_HOLD", "CMA_HOLD_SILENCE", "CMA_STALL"];

impl FileStreams {
    /// Defaults, then the table, then what `var` gives.
    ///
    /// # Errors
    /// A line for people with each setting that can't be used.
    pub(super) fn resolve(&self, var: impl Fn(&str) -> Option<String>) -> Result<Streams, String> {
        let mut streams = Streams::default();
        let mut faults = Vec::new();
        for (name, key, written, slot) in [
            ("CMA_HOLD", "hold", &self.hold, &mut streams.hold),
            ("CMA_HOLD_SILENCE", "hold_silence", &self.hold_silence, &mut streams.hold_silence),
            ("CMA_STALL", "stall", &self.stall, &mut streams.stall),
        ] {
            let (whence, value) = match (var(name), written) {
                (Some(value), _written) => (name, value),
                (None, Some(value)) => ("config.toml", value.clone()),
                (None, None) => continue,
            };
            match duration(&value) {
                Ok(length) => *slot = length,
                Err(why) => faults.push(format!("`{whence}`: {key} {why}")),
            }
        }
        match self.hold_bytes {
            Some(bytes @ 1024..=16_777_216) => {
                streams.hold_bytes = usize::try_from(bytes).unwrap_or(streams.hold_bytes);
            },
            Some(bytes) => faults.push(format!(
                "`config.toml`: hold_bytes {bytes} is not between 1024 and 16777216"
            )),
            None => {},
        }
        if faults.is_empty() { Ok(streams) } else { Err(faults.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, env: Option<(&str, &str)>) -> Result<Streams, String> {
        let file: FileStreams = toml::from_str(text).unwrap();
        file.resolve(|name| env.filter(|one| one.0 == name).map(|one| one.1.to_owned()))
    }

    #[test]
    fn the_environment_goes_before_the_file_and_faults_are_named() {
        assert_eq!(read("", None).unwrap(), Streams::default());
        let file = "hold = '2s'\nhold_bytes = 4096\nstall = '1m'";
        let streams = read(file, Some(("CMA_STALL", "250ms"))).unwrap();
        assert_eq!((streams.hold, streams.hold_bytes), (Duration::from_secs(2), 4096));
        assert_eq!(streams.stall, Duration::from_millis(250));
        let why = read("hold = 'soon'\nhold_bytes = 1", None).unwrap_err();
        assert!(why.contains("hold `soon`") && why.contains("hold_bytes 1"), "{why}");
    }
}
