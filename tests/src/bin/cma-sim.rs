//! The simulated upstream as a program: `cma-sim serve` plays the upstream for
//! processes, `cma-sim drive` sends turns like the CLI.
//!
//! It only translates flags; everything it does is `cma_tests::sim`. Stdout
//! carries JSON lines and nothing else.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cma_tests::sim::drive::{DriveConfig, drive};
use cma_tests::sim::{AccountSpec, Sim, SimConfig, Window};
use serde_json::json;

const USAGE: &str = "\
cma-sim serve [--accounts N] [--listen 127.0.0.1:PORT] [--grace SECONDS]
              [--quota-per-request PCT[,PCT...]] [--window-minutes N] [--reset-in SECONDS]
              [--event-gap MS] [--reply TEXT] [--tokens-ttl SECONDS] [--auth-dir DIR]
              [--until-stdin-closes]
cma-sim drive --base-url URL --key KEY [--requests N] [--concurrency N] [--gap MS]
              [--timeout SECONDS]";

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let command = if args.is_empty() { String::new() } else { args.remove(0) };
    let flags = Flags { args };
    let result = match command.as_str() {
        "serve" => serve(flags),
        "drive" => run_drive(flags),
        _ => Err(usage("expected `serve` or `drive`")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Nowhere is left to say that stderr is gone.
            writeln!(io::stderr(), "cma-sim: {error}").ok();
            ExitCode::from(2)
        },
    }
}

fn usage(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{why}\n{USAGE}"))
}

/// The flags not taken yet.
struct Flags {
    args: Vec<String>,
}

impl Flags {
    fn switch(&mut self, name: &str) -> bool {
        let at = self.args.iter().position(|arg| arg == name);
        at.map(|at| self.args.remove(at)).is_some()
    }

    fn text(&mut self, name: &str) -> io::Result<Option<String>> {
        let Some(at) = self.args.iter().position(|arg| arg == name) else { return Ok(None) };
        if at + 1 >= self.args.len() {
            return Err(usage(&format!("`{name}` needs a value")));
        }
        self.args.remove(at);
        Ok(Some(self.args.remove(at)))
    }

    fn value<T: std::str::FromStr>(&mut self, name: &str, default: T) -> io::Result<T> {
        match self.text(name)? {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_error| usage(&format!("`{name}` does not take the value `{text}`"))),
        }
    }

    fn millis(&mut self, name: &str, default: u64) -> io::Result<Duration> {
        self.value(name, default).map(Duration::from_millis)
    }

    fn seconds(&mut self, name: &str, default: u64) -> io::Result<Duration> {
        self.value(name, default).map(Duration::from_secs)
    }

    fn finish(self) -> io::Result<()> {
        match self.args.first() {
            None => Ok(()),
            Some(extra) => Err(usage(&format!("unknown argument `{extra}`"))),
        }
    }
}

fn serve(mut flags: Flags) -> io::Result<ExitCode> {
    let defaults = SimConfig::default();
    let count: usize = flags.value("--accounts", 3)?;
    let quotas = quotas(flags.text("--quota-per-request")?)?;
    let minutes: u64 = flags.value("--window-minutes", 300)?;
    let reset_in = flags.seconds("--reset-in", minutes.saturating_mul(60))?;
    let auth_dir = flags.text("--auth-dir")?.map(PathBuf::from);
    let until_stdin_closes = flags.switch("--until-stdin-closes");
    let accounts = (0..count).map(|no| {
        let mut spec = AccountSpec::new(&account_name(no));
        // The last quota given holds for all further accounts.
        if let Some(percent) = quotas.get(no).or(quotas.last()) {
            spec.primary = Window::new(*percent, minutes, reset_in);
        } else {
            spec.primary = Window::new(spec.primary.per_request, minutes, reset_in);
        }
        spec
    });
    let config = SimConfig {
        listen: flags.value::<SocketAddr>("--listen", defaults.listen)?,
        accounts: accounts.collect(),
        grace: flags.seconds("--grace", 0)?,
        event_gap: flags.millis("--event-gap", 0)?,
        reply_text: flags.value("--reply", defaults.reply_text.clone())?,
        tokens_ttl: flags.seconds("--tokens-ttl", defaults.tokens_ttl.as_secs())?,
        ..defaults
    };
    flags.finish()?;
    let sim = Sim::start(config)?;
    announce(&sim, auth_dir.as_deref())?;
    if until_stdin_closes {
        io::copy(&mut io::stdin(), &mut io::sink())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Until a signal ends the process.
    loop {
        std::thread::park();
    }
}

/// `a`, `b`, … `z`, `a27`, `a28`, …
fn account_name(no: usize) -> String {
    match (b'a'..=b'z').nth(no) {
        Some(letter) => char::from(letter).to_string(),
        None => format!("a{}", no + 1),
    }
}

fn quotas(list: Option<String>) -> io::Result<Vec<f64>> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let parse = |part: &str| {
        let percent = part.trim().parse::<f64>().ok().filter(|p| p.is_finite() && *p >= 0.0);
        percent.ok_or_else(|| usage("`--quota-per-request` takes percents"))
    };
    list.split(',').map(parse).collect()
}

/// Writes the logins and says where everything is, on one line.
fn announce(sim: &Sim, auth_dir: Option<&Path>) -> io::Result<()> {
    let mut accounts = Vec::new();
    for name in sim.accounts() {
        let file = match auth_dir {
            None => None,
            Some(dir) => {
                let path = dir.join(format!("{name}.json"));
                write_private(&path, &sim.auth_json(&name))?;
                Some(path.to_string_lossy().into_owned())
            },
        };
        let email = sim.email(&name);
        accounts.push(json!({ "name": name, "email": email, "auth_file": file }));
    }
    let ready = json!({
        "ready": true,
        "url": sim.url(),
        "backend": sim.backend(),
        "issuer": sim.issuer(),
        "accounts": accounts,
    });
    let mut out = io::stdout().lock();
    writeln!(out, "{ready}")?;
    out.flush()
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        options.mode(0o600);
        let mut file = options.open(path)?;
        // The mode above holds for new files only.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())
    }
    #[cfg(not(unix))]
    {
        options.open(path)?.write_all(text.as_bytes())
    }
}

fn run_drive(mut flags: Flags) -> io::Result<ExitCode> {
    let config = DriveConfig {
        base_url: flags.text("--base-url")?.ok_or_else(|| usage("`--base-url` is missing"))?,
        key: match flags.text("--key")?.ok_or_else(|| usage("`--key` is missing"))?.as_str() {
            // A key on the command line is visible to others; `-` reads it.
            "-" => read_key()?,
            key => key.to_owned(),
        },
        requests: flags.value("--requests", 1)?,
        concurrency: flags.value("--concurrency", 1)?,
        gap: flags.millis("--gap", 0)?,
        timeout: flags.seconds("--timeout", 300)?,
    };
    flags.finish()?;
    let summary = drive(config, &mut io::stdout())?;
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_key() -> io::Result<String> {
    let mut key = String::new();
    io::stdin().take(1 << 16).read_to_string(&mut key)?;
    Ok(key.trim().to_owned())
}
