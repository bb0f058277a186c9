//! `cmactl` asks and commands the daemon `cmad`.
//!
//! One process per command, one connection, no thread and no time zone database on the way of
//! `status`. stdout is data, stderr is talk; every failure is a typed refusal with its exit code.
//! Reading order: [`cli`] (what can be typed), [`commands`] (what it does), [`render`] (how it
//! looks), [`error`] (how it fails).

mod cli;
mod commands;
mod error;
mod render;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let mut screen = render::Screen::new(cli.global.json);
    let done = commands::run(cli, &mut screen);
    done.unwrap_or_else(|failure| error::report(&failure, &mut screen))
}
