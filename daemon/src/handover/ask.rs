//! Newer credentials for what a daemon still serves after it gave its root away.

use crate::{
    app::App,
    app::Phase,
    blocking::{self, Panicked},
    fault::Fault,
    renewal::Fresh,
    roster::Roster,
};
use cma_core::{identity::AccountId, pool::RenewalFailure, token::Generation};
use cma_proto::{
    client::Client,
    codec::Codec,
    error::ErrorCode,
    handover::{HandoverReply, HandoverRequest},
    message::{Reply, Request},
};
use std::sync::Arc;

/// Asks the daemon that has the root now, and reads what it saved.
pub(crate) async fn for_newer(
    roster: Arc<Roster>,
    id: AccountId,
    from: Generation,
) -> Result<Fresh, RenewalFailure> {
    let asked = blocking::run(move || {
        ask(&roster, &id, from)?;
        let record = roster.reread(&id).map_err(|fault| unreached(&fault.refusal.message))?;
        let Some(record) = record else {
            return Err(RenewalFailure::Permanent("it left the pool meanwhile".into()));
        };
        let (generation, expires_at) = (Generation(record.generation), record.expires_at);
        Ok(Fresh { generation, expires_at })
    });
    asked.await.unwrap_or_else(|Panicked| Err(unreached("a task panicked")))
}

fn ask(roster: &Roster, id: &AccountId, from: Generation) -> Result<(), RenewalFailure> {
    let mut client = Client::connect(&roster.truth().root, "cmad", Codec::Bincode)
        .map_err(|_nobody| unreached("the daemon that took over is not there"))?;
    let request = HandoverRequest::Renew { account: id.to_string(), generation: from.0 };
    match client.call(&Request::Handover(request)) {
        Ok(Reply::Handover(HandoverReply::Renewed { .. })) => Ok(()),
        Ok(Reply::Handover(HandoverReply::NotRenewed { gone: true, why })) => {
            Err(RenewalFailure::Permanent(why.into()))
        },
        Ok(Reply::Handover(HandoverReply::NotRenewed { gone: false, why })) => Err(unreached(&why)),
        Ok(_other) => Err(unreached("the daemon that took over answered something else")),
        Err(refusal) => Err(unreached(&refusal.message)),
    }
}

fn unreached(why: &str) -> RenewalFailure {
    RenewalFailure::Unreached(why.into())
}

/// Answers the requests of this family.
///
/// # Errors
/// When this daemon can't give its root away.
pub(crate) async fn serve(app: &Arc<App>, request: HandoverRequest) -> Result<Reply, Fault> {
    match request {
        #[cfg(unix)]
        HandoverRequest::Begin { socket, now } => super::give::begin(app, socket.into(), now).await,
        #[cfg(not(unix))]
        HandoverRequest::Begin { .. } => Err(Fault::new(
            ErrorCode::BadRequest,
            "sockets can't be handed over on this system",
            "run `cmactl daemon stop`, then `cmactl daemon start`",
        )),
        HandoverRequest::Renew { account, generation } => {
            renew(app, AccountId::from_written(&account), Generation(generation)).await
        },
    }
}

/// Renews for the daemon before this one, unless it was done meanwhile.
async fn renew(app: &Arc<App>, id: AccountId, from: Generation) -> Result<Reply, Fault> {
    if app.phases.now() >= Phase::Flushing {
        // A stop has waited for those under way: one that is begun now would be cut.
        let why = "the daemon stops".to_owned();
        return Ok(Reply::Handover(HandoverReply::NotRenewed { gone: false, why }));
    }
    if app.roster.get(&id).is_none() {
        return Err(Fault::new(
            ErrorCode::NotFound,
            format!("account {id} is no longer in the pool"),
            "run `cmactl list` to see them",
        ));
    }
    // A task of its own: what was begun is finished, whether or not the asker waits.
    let (done, outcome) = tokio::sync::oneshot::channel();
    let asked = Arc::clone(app);
    app.renewals.spawn("renewal for the daemon before", async move {
        let outcome = Arc::clone(&asked.renewer).renew(id.clone(), from).await;
        if let Some(record) = asked.roster.get(&id).filter(|_| outcome.is_ok()) {
            let seed = cma_core::pool::Input::Upsert(asked.roster.seed(&record));
            let _stopping = asked.actor.command(seed).await;
        }
        let _asker_gone = done.send(outcome);
    });
    let not = |gone, why: Arc<str>| HandoverReply::NotRenewed { gone, why: why.to_string() };
    let reply = match outcome.await {
        Ok(Ok(fresh)) => HandoverReply::Renewed { generation: fresh.generation.0 },
        Ok(Err(RenewalFailure::Permanent(why))) => not(true, why),
        Ok(Err(
            RenewalFailure::Transient(why)
            | RenewalFailure::Unreached(why)
            | RenewalFailure::Held(why),
        )) => not(false, why),
        Err(_panicked) => return Err(Fault::internal("a renewal panicked")),
    };
    Ok(Reply::Handover(reply))
}
