//! `reset-credits`: those of all accounts, and the use of one, which is for good and asked about.

use super::Context;
use crate::{
    cli::ResetCredits,
    error::{Failure, unexpected},
    render::{Screen, clean, put, time},
};
use cma_proto::{
    credits::{CreditsReply, CreditsRequest, Purse, Used},
    error::{ErrorCode, Refusal},
    message::{Reply, Request},
};
use std::process::ExitCode;

/// `reset-credits list` and `use`.
pub(super) fn credits(
    context: &Context,
    command: ResetCredits,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let asked = match command {
        ResetCredits::List => CreditsRequest::List,
        ResetCredits::Use { account, credit, yes } => {
            if !yes {
                agreed(&account, screen)?;
            }
            CreditsRequest::Use { selector: account, credit }
        },
    };
    match context.connect()?.call(&Request::Credits(asked))? {
        Reply::Credits(CreditsReply::Purses { accounts }) => {
            let reply = CreditsReply::Purses { accounts };
            screen.answer(&reply, |reply| match reply {
                CreditsReply::Purses { accounts } => listed(accounts),
                CreditsReply::Used(used) => done(used, time::now()),
            })?;
        },
        Reply::Credits(CreditsReply::Used(used)) => {
            screen.answer(&used, |used| done(used, time::now()))?;
            screen.notes(&used.notes)?;
        },
        other => return Err(unexpected(other).into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A credit that is gone doesn't come back: a person says yes.
fn agreed(account: &str, screen: &mut Screen) -> Result<(), Failure> {
    if !screen.can_ask() {
        return Err(Refusal::new(
            ErrorCode::BadRequest,
            "nobody can be asked here whether the credit is really meant to be used",
            format!("run `cmactl reset-credits use {account} --yes`"),
        )
        .into());
    }
    let question = format!("Use a reset credit of `{}`? It can't be had back.", clean(account));
    if screen.ask(&question)? {
        return Ok(());
    }
    Err(Refusal::new(ErrorCode::Negative, "nothing was used: the answer was no", "").into())
}

fn listed(accounts: &[Purse]) -> String {
    let mut text = String::new();
    for purse in accounts {
        put!(text, "{}: ", clean(&purse.name));
        match &purse.problem {
            Some(problem) => put!(text, "{}\n", clean(problem)),
            None if purse.available == 0 && purse.credits.is_empty() => text += "none\n",
            None => put!(text, "{} available\n", purse.available),
        }
        for credit in &purse.credits {
            put!(text, "    {}  {}\n", clean(&credit.id), clean(&credit.detail));
        }
    }
    if accounts.is_empty() {
        text += "the pool is empty\n";
    }
    text
}

fn done(used: &Used, now: u64) -> String {
    let mut text = format!(
        "Used credit {} of {}; it is {} now",
        clean(&used.credit),
        clean(&used.name),
        clean(&used.state)
    );
    if let Some(until) = used.until {
        put!(text, ", until {}", time::relative(until, now));
    }
    text + ".\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_proto::credits::Credit;

    #[test]
    fn each_account_has_its_line_and_its_credits_below() {
        let purse = |available, problem: Option<&str>| Purse {
            account: "aa".to_owned(),
            name: "work".to_owned(),
            available,
            credits: (0..available)
                .map(|n| Credit { id: format!("c{n}"), detail: "{}".to_owned() })
                .collect(),
            problem: problem.map(str::to_owned),
        };
        let text = listed(&[purse(1, None), purse(0, None), purse(0, Some("silent"))]);
        assert_eq!(text, "work: 1 available\n    c0  {}\nwork: none\nwork: silent\n");
    }

    #[test]
    fn a_use_says_what_became_of_the_account() {
        let used = Used {
            account: "aa".to_owned(),
            name: "work".to_owned(),
            credit: "c0".to_owned(),
            state: "ready".to_owned(),
            until: None,
            notes: Vec::new(),
        };
        assert_eq!(done(&used, 1), "Used credit c0 of work; it is ready now.\n");
    }
}
