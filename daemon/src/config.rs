//! Settings: defaults, then `config.toml`, then the environment; everything checked before anything
//! starts, every fault named at once.
//!
//! Where tokens go is special. A repository's environment file must not be able to send them
//! elsewhere, so from the environment only loopback hosts count; any other host has to stand in the
//! root's own `config.toml`, and plain http is for loopback alone.

pub(crate) mod notify;
pub(crate) mod streams;

use crate::{
    fault::Fault,
    network::{FileNetwork, Network},
};
use cma_core::pace::Pace;
use cma_proto::{endpoint::Root, error::ErrorCode, message::Setting};
use http::Uri;
use serde::Deserialize;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// Variables the daemon reads, apart from those that name the root. `status` shows those set.
pub(crate) const VARIABLES: [&str; 7] = [
    "CMA_LISTEN",
    "CMA_UPSTREAM_BACKEND",
    "CMA_UPSTREAM_ISSUER",
    "CMA_HEAD_TIMEOUT",
    "CMA_HOST_WAIT",
    "CMA_LOG",
    "CMA_WEBSOCKET",
];

/// Ten years: no clock's arithmetic fails before.
const MAX_LEDGER_DAYS: u64 = 3_650;
/// Below it a segment holds hardly a row.
const MIN_LEDGER_BYTES: u64 = 64 * 1024;
const BACKEND: &str = "https://chatgpt.com/backend-api";
const ISSUER: &str = "https://auth.openai.com";

/// All settings, valid.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Loopback address of the proxy; port 0 picks one once per root.
    pub(crate) listen: SocketAddr,
    /// Where requests go, without a slash at the end.
    pub(crate) backend: Endpoint,
    /// Where credentials are renewed.
    pub(crate) issuer: Endpoint,
    /// How long an attempt waits for the head of an answer.
    pub(crate) head_timeout: Duration,
    /// How long a turn waits for a host that is out of reach, in all.
    pub(crate) host_wait: Duration,
    /// How long a stop lets running responses end.
    pub(crate) drain_timeout: Duration,
    /// How fast credentials are renewed ahead of their expiry.
    pub(crate) pace: Pace,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub(crate) log: tracing::Level,
    /// Whether CLIs stay on their own `auth.json` (`auth_mode = "own"`).
    pub(crate) own_auth: bool,
    /// How streams are held and given up.
    pub(crate) streams: streams::Streams,
    /// Whether CLIs may use WebSockets; else they are told to use HTTP (426).
    pub(crate) websocket: bool,
    /// What the usage ledger may take.
    pub(crate) ledger: Caps,
    /// Whom to tell what.
    pub(crate) notify: notify::Notify,
    /// What is done with calls around turns.
    pub(crate) around: Around,
    /// How other hosts are reached.
    pub(crate) network: Network,
    /// The variables that were set.
    pub(crate) environment: Vec<Setting>,
}

/// What the usage ledger may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caps {
    /// Rows older than this go; 0 keeps none at all.
    pub(crate) days: u64,
    /// Bytes of all of it.
    pub(crate) bytes: u64,
}

impl Default for Caps {
    /// A quarter of a year, and three million requests.
    fn default() -> Self {
        Self { days: 92, bytes: 256 * 1024 * 1024 }
    }
}

/// A base address, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// As written, without a slash at the end.
    pub(crate) base: String,
    /// Whether it is spoken to over TLS.
    pub(crate) tls: bool,
    /// Host as it stands in a URL.
    pub(crate) host: String,
    /// Port, the scheme's own when none is written.
    pub(crate) port: u16,
    /// `host[:port]` for the Host header.
    pub(crate) authority: String,
    /// Path before every route, without a slash at the end.
    pub(crate) path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Option<String>,
    head_timeout: Option<String>,
    host_wait: Option<String>,
    drain_timeout: Option<String>,
    renewals_per_second: Option<f64>,
    renewals_at_once: Option<u32>,
    log: Option<String>,
    auth_mode: Option<String>,
    websocket: Option<String>,
    ledger_days: Option<u64>,
    ledger_bytes: Option<u64>,
    notify: notify::File,
    analytics: Analytics,
    background_responses: bool,
    upstream: FileUpstream,
    network: FileNetwork,
    streams: streams::FileStreams,
}

/// What becomes of the CLI's analytics events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Analytics {
    #[default]
    Pass,
    Drop,
}

/// What is done with calls around turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Around {
    /// Whether the CLI's analytics events are passed on (`analytics = "pass"`) or dropped.
    pub(crate) analytics: bool,
    /// Whether stored responses can be read, cancelled and deleted (`background_responses`).
    pub(crate) background: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileUpstream {
    backend: Option<String>,
    issuer: Option<String>,
}

impl File {
    /// Whether WebSockets are on; the environment's word counts before the file's.
    fn websocket(&self, set: Option<&str>) -> Result<bool, String> {
        match set.or(self.websocket.as_deref()) {
            None | Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => Err(format!("websocket `{other}` is neither on nor off")),
        }
    }

    fn ledger(&self) -> Result<Caps, String> {
        let Caps { days, bytes } = Caps::default();
        let (days, bytes) = (self.ledger_days.unwrap_or(days), self.ledger_bytes.unwrap_or(bytes));
        if days > MAX_LEDGER_DAYS {
            return Err(format!("`config.toml`: ledger_days {days} is over {MAX_LEDGER_DAYS}"));
        }
        if bytes < MIN_LEDGER_BYTES {
            return Err(format!("`config.toml`: ledger_bytes {bytes} is below {MIN_LEDGER_BYTES}"));
        }
        Ok(Caps { days, bytes })
    }

    fn around(&self) -> Around {
        Around {
            analytics: self.analytics == Analytics::Pass,
            background: self.background_responses,
        }
    }

    fn pace(&self) -> Result<Pace, String> {
        Pace::default()
            .with(self.renewals_per_second, self.renewals_at_once)
            .map_err(|why| format!("`config.toml`: {why}"))
    }
}

/// The variables that are set, of those that mean something here.
fn environment(var: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
    let names = VARIABLES.iter().chain(&streams::VARIABLES);
    names.filter_map(|&name| Some(Setting { name: name.to_owned(), value: var(name)? })).collect()
}

impl Config {
    /// Reads the root's `config.toml` and the variables that `var` gives.
    ///
    /// # Errors
    /// [`ErrorCode::Config`] with every fault found, one a line.
    pub(crate) fn load(root: &Root, var: impl Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        let path = root.config_file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(Fault::new(
                    ErrorCode::Config,
                    format!("can't read `{}`: {error}", path.display()),
                    "check its owner and mode",
                ));
            },
        };
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text.get(..span.start).unwrap_or_default().matches('\n').count()
            });
            Fault::new(
                ErrorCode::Config,
                format!("`{}` line {line}: {}", path.display(), error.message()),
                format!("mend line {line} of that file"),
            )
        })?;
        Self::resolve(&file, var)
    }

    /// Takes the network's settings in; gives what is wrong with them.
    fn read_network(
        &mut self,
        file: &FileNetwork,
        var: impl Fn(&str) -> Option<String>,
    ) -> Vec<String> {
        match Network::load(file, var) {
            Ok(network) => {
                self.environment.extend(network.shown.iter().cloned());
                self.network = network;
                Vec::new()
            },
            Err(faults) => faults,
        }
    }

    /// Whether both upstreams are simulated ones: plain http, which is for loopback alone.
    pub(crate) const fn is_simulated(&self) -> bool {
        !self.backend.tls && !self.issuer.tls
    }

    /// Whether tokens go nowhere but to this machine, as in tests.
    pub(crate) fn loopback(&self) -> bool {
        is_loopback(&self.backend.host) && is_loopback(&self.issuer.host)
    }

    /// What holds where nothing is set.
    fn unset(file: &File, var: impl Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        Ok(Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            backend: endpoint(BACKEND).map_err(Fault::internal)?,
            issuer: endpoint(ISSUER).map_err(Fault::internal)?,
            head_timeout: Duration::from_secs(30),
            host_wait: Duration::from_secs(240),
            drain_timeout: Duration::from_secs(600),
            pace: Pace::default(),
            log: tracing::Level::INFO,
            own_auth: false,
            network: Network::default(),
            around: file.around(),
            streams: streams::Streams::default(),
            websocket: true,
            ledger: Caps::default(),
            notify: notify::Notify::default(),
            environment: environment(var),
        })
    }

    fn resolve(file: &File, var: impl Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let mut faults = Vec::new();
        let mut keep = |result: Result<(), String>| {
            if let Err(fault) = result {
                faults.push(fault);
            }
        };
        let pick = |name: &str, written: &Option<String>| match var(name) {
            Some(value) => Some((format!("`{name}`"), value)),
            None => written.clone().map(|value| ("`config.toml`".to_owned(), value)),
        };
        let mut config = Self::unset(file, var)?;
        if let Some((whence, value)) = pick("CMA_LISTEN", &file.listen) {
            keep(
                listen(&value)
                    .map(|at| config.listen = at)
                    .map_err(|why| format!("{whence}: {why}")),
            );
        }
        if let Some((whence, value)) = pick("CMA_HEAD_TIMEOUT", &file.head_timeout) {
            keep(
                duration(&value)
                    .map(|d| config.head_timeout = d)
                    .map_err(|why| format!("{whence}: head_timeout {why}")),
            );
        }
        if let Some((whence, value)) = pick("CMA_HOST_WAIT", &file.host_wait) {
            keep(
                duration(&value)
                    .map(|d| config.host_wait = d)
                    .map_err(|why| format!("{whence}: host_wait {why}")),
            );
        }
        if let Some(value) = &file.drain_timeout {
            keep(
                duration(value)
                    .map(|d| config.drain_timeout = d)
                    .map_err(|why| format!("`config.toml`: drain_timeout {why}")),
            );
        }
        keep(file.streams.resolve(var).map(|streams| config.streams = streams));
        keep(file.pace().map(|pace| config.pace = pace));
        keep(file.ledger().map(|caps| config.ledger = caps));
        keep(file.notify.resolve().map(|notify| config.notify = notify));
        if let Some((whence, value)) = pick("CMA_LOG", &file.log) {
            keep(value.parse().map(|level| config.log = level).map_err(|_unknown| {
                format!("{whence}: log level `{value}` is none of error, warn, info, debug, trace")
            }));
        }
        keep(file.websocket(var("CMA_WEBSOCKET").as_deref()).map(|on| config.websocket = on));
        if let Some(value) = &file.auth_mode {
            keep(own_auth(value).map(|own| config.own_auth = own));
        }
        for (name, written, slot) in [
            ("CMA_UPSTREAM_BACKEND", &file.upstream.backend, &mut config.backend),
            ("CMA_UPSTREAM_ISSUER", &file.upstream.issuer, &mut config.issuer),
        ] {
            let from_env = var(name).is_some();
            if let Some((whence, value)) = pick(name, written) {
                keep(
                    upstream(&value, from_env)
                        .map(|at| *slot = at)
                        .map_err(|why| format!("{whence}: {why}")),
                );
            }
        }
        faults.extend(config.read_network(&file.network, var));
        if faults.is_empty() {
            return Ok(config);
        }
        Err(Fault::new(
            ErrorCode::Config,
            faults.join("; "),
            "mend the setting named, then run the command again",
        ))
    }
}

fn listen(value: &str) -> Result<SocketAddr, String> {
    let at: SocketAddr = value
        .parse()
        .map_err(|_not_one| format!("`{value}` is not an address like 127.0.0.1:8459"))?;
    if !at.ip().is_loopback() {
        return Err(format!(
            "`{value}` is not a loopback address; the proxy never listens elsewhere"
        ));
    }
    // The gate lets in who means one of these, and a CLI's exceptions from a proxy name them.
    if ![IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&at.ip()) {
        return Err(format!("`{value}`: the proxy listens on 127.0.0.1 or [::1] only"));
    }
    Ok(at)
}

/// Whether CLIs run on their own login.
fn own_auth(value: &str) -> Result<bool, String> {
    match value {
        "own" => Ok(true),
        "pool" => Ok(false),
        _ => Err(format!("`config.toml`: auth_mode `{value}` is neither pool nor own")),
    }
}

/// `30s`, `500ms`, `5m` or a number of seconds.
fn duration(value: &str) -> Result<Duration, String> {
    let text = value.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let number: f64 = digits.trim().parse().map_err(|_nan| format!("`{value}` is no duration"))?;
    let scale = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{value}` has an unknown unit; use ms, s, m or h")),
    };
    let seconds = number * scale;
    if (0.001..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("`{value}` is not between 1 ms and a day"))
    }
}

fn upstream(value: &str, from_env: bool) -> Result<Endpoint, String> {
    let at = endpoint(value)?;
    let loopback = is_loopback(&at.host);
    if !at.tls && !loopback {
        return Err(format!("`{value}` is plain http to a host that is not loopback"));
    }
    if from_env && !loopback {
        return Err(format!(
            "`{value}` is not a loopback host; another host must stand in the root's `config.toml`"
        ));
    }
    Ok(at)
}

/// The issuer that a person names for one sign-in: by the rule for the environment, so that nobody
/// can be talked into sending a login elsewhere.
pub(crate) fn named_issuer(value: &str) -> Result<Endpoint, String> {
    upstream(value, true)
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn endpoint(value: &str) -> Result<Endpoint, String> {
    let bad = || format!("`{value}` is not an http(s) address");
    let uri: Uri = value.parse().map_err(|_invalid| bad())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad());
    };
    let tls = match scheme {
        "https" => true,
        "http" => false,
        _ => return Err(bad()),
    };
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err(format!("`{value}` must not have a user or a query"));
    }
    let path = uri.path().trim_end_matches('/').to_owned();
    Ok(Endpoint {
        base: format!("{scheme}://{authority}{path}"),
        tls,
        host: authority.host().to_owned(),
        port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        authority: authority.as_str().to_owned(),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, Fault> {
        let file: File = toml::from_str(text).unwrap();
        Config::resolve(&file, |name| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn defaults_are_the_official_hosts_and_loopback() {
        let config = load("", &[]).unwrap();
        assert_eq!(config.backend.base, BACKEND);
        assert_eq!((config.backend.port, config.backend.path.as_str()), (443, "/backend-api"));
        assert!(config.listen.ip().is_loopback() && config.environment.is_empty());
    }

    #[test]
    fn the_environment_can_only_point_at_loopback() {
        let ok = load("", &[("CMA_UPSTREAM_BACKEND", "http://127.0.0.1:9/backend-api/")]).unwrap();
        assert_eq!(ok.backend.base, "http://127.0.0.1:9/backend-api");
        for bad in
            ["https://evil.test", "http://evil.test", "http://127.0.0.1.evil.test", "file:///x"]
        {
            let fault = load("", &[("CMA_UPSTREAM_ISSUER", bad)]).unwrap_err();
            assert_eq!(fault.code(), ErrorCode::Config, "{bad}");
        }
        assert!(load("[upstream]\nbackend = 'https://proxy.corp.test/b'", &[]).is_ok());
        assert!(load("[upstream]\nbackend = 'http://proxy.corp.test/b'", &[]).is_err());
    }

    #[test]
    fn all_faults_are_named_at_once_and_durations_have_units() {
        let fault = load("listen = '0.0.0.0:1'\nhead_timeout = 'soon'", &[]).unwrap_err();
        assert!(fault.refusal.message.contains("0.0.0.0:1"), "{fault}");
        assert!(fault.refusal.message.contains("soon"), "{fault}");
        let config = load("", &[("CMA_HEAD_TIMEOUT", "1500ms")]).unwrap();
        assert_eq!(config.head_timeout, Duration::from_millis(1500));
        assert_eq!(load("head_timeout = '2'", &[]).unwrap().head_timeout, Duration::from_secs(2));
        assert!(load("", &[("CMA_HEAD_TIMEOUT", "0")]).is_err());
        assert_eq!(load("", &[]).unwrap().pace, Pace::default());
        assert_ne!(load("renewals_per_second = 2", &[]).unwrap().pace, Pace::default());
        assert!(load("renewals_at_once = 0", &[]).is_err());
        assert!(load("", &[]).unwrap().websocket);
        assert!(!load("websocket = 'on'", &[("CMA_WEBSOCKET", "off")]).unwrap().websocket);
        assert!(load("websocket = 'maybe'", &[]).is_err());
        assert_eq!(load("ledger_days = 7", &[]).unwrap().ledger.days, 7);
        assert!(load("ledger_bytes = 100", &[]).is_err());
        assert!(load("ledger_days = 99999", &[]).is_err());
    }
}
