//! Usage, budgets, probes, and who is told what: which command does it.

use super::{Context, budget, monitor, probe, token, usage};
use crate::{cli::BooksCommand, error::Failure, render::Screen};
use cma_proto::usage::UsageRequest;
use std::process::ExitCode;

/// Does what was typed.
pub(super) fn books(
    context: &Context,
    command: BooksCommand,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    match command {
        BooksCommand::Usage(args) => usage::usage(context, &args, screen),
        BooksCommand::Budget(command) => budget::budget(context, command, screen),
        BooksCommand::Monitor { watch, every } => monitor::monitor(context, watch, every, screen),
        BooksCommand::Probe { accounts, stale, force, probe_model, show, stop } => {
            let stale_s = if force { 0 } else { stale.saturating_mul(60) };
            let request = match (show, stop) {
                (true, _) => UsageRequest::ProbeShow,
                (_, true) => UsageRequest::ProbeStop,
                (false, false) => {
                    UsageRequest::ProbeStart { accounts, stale_s, model: probe_model }
                },
            };
            probe::probe(context, request, screen)
        },
        BooksCommand::Token(command) => token::token(context, command, screen),
        BooksCommand::Metrics(command) => monitor::metrics(context, &command, screen),
        BooksCommand::Notify(command) => monitor::notify(context, &command, screen),
    }
}
