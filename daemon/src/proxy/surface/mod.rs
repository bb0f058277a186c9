//! Everything the CLI calls around its turns, each with the account that it belongs to.
//!
//! `table` says which calls there are; `members` who may serve them; `desk` asks upstream beside
//! them. Then one module for each kind: what an account is chosen for (`errand`), the model list
//! (`models`), the policies of workspaces (`bundle`), what is left (`usage`, `standing`, `pooled`),
//! reset credits (`credits`), where workspaces live (`checks`); what is passed for the account that
//! speaks for the pool is `aux`'s.
//!
//! None of it may hurt: no 401 of upstream's reaches the CLI, nothing here keeps a turn waiting, and
//! what stands in no table goes nowhere.

mod bundle;
mod checks;
pub(crate) mod credits;
mod desk;
mod errand;
mod members;
mod models;
mod pooled;
pub(crate) mod standing;
mod table;
mod usage;

use super::{Proxy, aux, keys::Launch, relay::Answer, respond, turn};
use crate::app::Tasks;
use http::{HeaderMap, Request, StatusCode, Uri};
use hyper::body::Incoming;
use std::{sync::Arc, time::Duration};
pub(crate) use table::{Call, find, place};

/// What is known around turns, all of it from upstream and disposable.
#[derive(Debug)]
pub(crate) struct Surface {
    desk: desk::Desk,
    models: models::Models,
    usage: usage::Usage,
    standings: standing::Standings,
    credits: credits::Credits,
    checks: checks::Checks,
    bundles: bundle::Bundles,
}

impl Surface {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self {
            desk: desk::Desk::new(tasks),
            models: models::Models::default(),
            usage: usage::Usage::default(),
            standings: standing::Standings::default(),
            credits: credits::Credits::default(),
            checks: checks::Checks::default(),
            bundles: bundle::Bundles::default(),
        }
    }

    /// What a person should know, one line each.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.checks.notes()
    }
}

/// `accounts/check`, which every start of the CLI begins with: the time to learn where the accounts'
/// workspaces live.
pub(crate) fn accounts_check(proxy: &Arc<Proxy>, launch: &Launch) -> Answer {
    checks::learn(proxy, launch.bounds.need(), Duration::ZERO);
    aux::accounts_check(proxy, launch)
}

/// Serves a call around turns.
pub(crate) async fn serve(
    proxy: Arc<Proxy>,
    launch: &Launch,
    call: Call,
    mut request: Request<Incoming>,
) -> Answer {
    let Some(uri) = meant(request.uri()) else { return respond::not_here() };
    *request.uri_mut() = uri;
    proxy.surface.desk.hear(request.headers());
    match call {
        Call::Models => models::serve(&proxy, launch, &request).await,
        Call::Usage => usage::serve(&proxy, launch).await,
        Call::Bundle => bundle::serve(&proxy, launch, request).await,
        Call::Credits => credits::list(&proxy, launch).await,
        Call::Consume => credits::consume(&proxy, launch, request).await,
        Call::Analytics if !proxy.config.around.analytics => {
            respond::json(StatusCode::OK, &serde_json::json!({}))
        },
        Call::Analytics | Call::Face => aux::pass(proxy, launch, request).await,
        Call::Errand(table::Errand::Stored) if !proxy.config.around.background => {
            respond::not_here()
        },
        // Its thread's sealed items go with it, as in a turn.
        Call::Compact => turn::serve(proxy, launch, request).await,
        Call::Errand(errand) => Box::pin(errand::serve(proxy, launch, errand, request)).await,
    }
}

/// The place that a client's address means, with its query.
fn meant(uri: &Uri) -> Option<Uri> {
    let place = place(uri.path())?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Uri::try_from(format!("{place}{query}")).ok()
}

/// What a turn's answer brings along: the tag of a model list.
pub(crate) fn after_turn(proxy: &Arc<Proxy>, launch: &Launch, headers: &mut HeaderMap) {
    models::after_turn(proxy, launch, headers);
    look_around(proxy, launch);
}

/// A turn was served: once an hour that is the time to learn where the accounts' workspaces live.
pub(crate) fn look_around(proxy: &Arc<Proxy>, launch: &Launch) {
    // A CLI asks `accounts/check` at its start, other clients never do.
    if proxy.surface.checks.is_time() {
        checks::learn(proxy, launch.bounds.need(), checks::AFTER_TURN);
    }
}
