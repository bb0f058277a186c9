//! Reset credits, as a person asks for them.

use super::convert::stopping;
use crate::{app::App, fault::Fault, proxy::surface::credits, roster};
use cma_core::{account::State, identity::AccountId, time::Wall};
use cma_proto::{
    credits::{Credit, CreditsReply, CreditsRequest, Purse, Used},
    error::ErrorCode,
    message::Reply,
};
use std::sync::Arc;

/// Answers one request of this family.
pub(super) async fn handle(app: &Arc<App>, asked: CreditsRequest) -> Result<Reply, Fault> {
    let answer = match asked {
        CreditsRequest::List => CreditsReply::Purses { accounts: purses(app).await },
        CreditsRequest::Use { selector, credit } => {
            CreditsReply::Used(spend(app, &selector, credit).await?)
        },
    };
    Ok(Reply::Credits(answer))
}

async fn purses(app: &Arc<App>) -> Vec<Purse> {
    let found = credits::purses(&app.proxy).await;
    let purse = |found: credits::Purse| {
        let record = app.roster.get(&found.account)?;
        let asked = found.credits.is_some();
        let all = found.credits.unwrap_or_default().into_iter();
        Some(Purse {
            account: record.id.clone(),
            name: roster::name(&record).to_owned(),
            available: if asked { found.available } else { 0 },
            credits: all.map(|one| Credit { id: one.id, detail: one.detail }).collect(),
            problem: (!asked).then(|| "upstream could not be asked".to_owned()),
        })
    };
    found.into_iter().filter_map(purse).collect()
}

/// Uses a credit of exactly that account.
async fn spend(app: &Arc<App>, selector: &str, credit: Option<String>) -> Result<Used, Fault> {
    let record = app.roster.select(selector)?;
    let (id, name) = (AccountId::from_written(&record.id), roster::name(&record).to_owned());
    let list = "run `cmactl reset-credits list` to see those there are";
    let purse = purses(app).await.into_iter().find(|purse| purse.account == record.id);
    let purse = purse.filter(|purse| purse.problem.is_none()).ok_or_else(|| {
        Fault::new(
            ErrorCode::Upstream,
            format!("the reset credits of `{name}` could not be read; nothing was used"),
            "run `cmactl status` to see what is wrong with it",
        )
    })?;
    let has = |wanted: &String| purse.credits.iter().any(|known| known.id == *wanted);
    let chosen = match credit {
        Some(wanted) if has(&wanted) => Some(wanted),
        Some(_other) => None,
        None => purse.credits.first().map(|first| first.id.clone()),
    };
    let Some(credit) = chosen else {
        let what =
            if purse.credits.is_empty() { "no reset credit" } else { "no such reset credit" };
        return Err(Fault::new(ErrorCode::NotFound, format!("`{name}` has {what}"), list));
    };
    match credits::use_one(&app.proxy, &id, &credit).await {
        Some((status, _said)) if status.is_success() => {},
        Some((status, said)) => {
            return Err(Fault::new(
                ErrorCode::Upstream,
                format!("upstream refused to use the credit: status {}: {said}", status.as_u16()),
                list,
            ));
        },
        None => {
            return Err(Fault::new(
                ErrorCode::Upstream,
                "upstream gave no answer; whether the credit was used is not known",
                list,
            ));
        },
    }
    let (state, until) = state(app, &id).await?;
    let mut notes = Vec::new();
    if state == "cooling" {
        notes.push("it still rests: its windows are asked for again with its next turn".to_owned());
    }
    Ok(Used { account: record.id.clone(), name, credit, state, until, notes })
}

async fn state(app: &App, id: &AccountId) -> Result<(String, Option<u64>), Fault> {
    let id = id.clone();
    let look = move |pool: &cma_core::pool::Pool, now| {
        let account = pool.accounts().iter().find(|account| account.id == id);
        account.map(|account| account.state(now))
    };
    let state = app.actor.look(look).await.map_err(stopping)?;
    let until = state.as_ref().and_then(State::until).map(Wall::secs);
    Ok((state.as_ref().map_or("unknown", State::word).to_owned(), until))
}
