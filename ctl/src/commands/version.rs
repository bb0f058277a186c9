//! `version`: of this program, of the protocol, of the daemon if it runs. Starts nothing.

use super::Context;
use crate::{
    error::Failure,
    render::{Screen, Tone, clean},
};
use cma_proto::{PROTOCOL, PROTOCOL_MIN, VERSION};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Serialize)]
struct Versions {
    version: &'static str,
    protocol: Range,
    daemon: Option<Running>,
}

#[derive(Debug, Serialize)]
struct Range {
    min: u32,
    max: u32,
}

#[derive(Debug, Serialize)]
struct Running {
    version: String,
    pid: u32,
    instance: String,
}

pub(super) fn version(context: &Context, screen: &mut Screen) -> Result<ExitCode, Failure> {
    let found = context.connect_running();
    let daemon = found.as_ref().ok().and_then(Option::as_ref).map(|client| Running {
        version: client.daemon_version.clone(),
        pid: client.daemon_pid,
        instance: client.instance.clone(),
    });
    let protocol = Range { min: PROTOCOL_MIN, max: PROTOCOL };
    screen.answer(&Versions { version: VERSION, protocol, daemon }, text)?;
    match found {
        // It runs, but this program can't talk to it: worth a line, and no failure of `version`.
        Err(refusal) => {
            screen.notes(&[refusal.message, refusal.hint])?;
        },
        Ok(Some(client)) if client.daemon_version != VERSION && !screen.json() => {
            let text = "the daemon has another version; run `cmactl daemon restart`";
            screen.say(Tone::Warn, "warning", text)?;
        },
        Ok(_) => {},
    }
    Ok(ExitCode::SUCCESS)
}

fn text(versions: &Versions) -> String {
    let Range { min, max } = versions.protocol;
    let protocol = if min == max { max.to_string() } else { format!("{min} to {max}") };
    let daemon = versions.daemon.as_ref().map_or_else(
        || "not running".to_owned(),
        |daemon| format!("{} (pid {})", clean(&daemon.version), daemon.pid),
    );
    format!("cmactl   {}\nprotocol {protocol}\ndaemon   {daemon}\n", versions.version)
}
