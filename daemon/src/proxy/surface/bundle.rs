//! The managed policies of the workspace that the CLI believes to be in.
//!
//! Plans that are not managed have none. For the others the CLI doesn't begin without (0.169.0: five tries,
//! then it ends), so a token that is refused here is renewed once, and a bundle that was had within a day
//! stands in for one that can't be had now (no answer, a 5xx, a login that is over). Never an empty one:
//! that would lift the policies.

use super::super::{
    Proxy, aux,
    keys::Launch,
    relay::{Answer, Out},
    respond,
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header, response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Policies older than this are not what their workspace wants any more. The CLI itself keeps them for an
/// hour.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Workspaces of which one is kept.
const KEPT: usize = 64;

/// The last bundles, by workspace.
#[derive(Debug, Default)]
pub(super) struct Bundles(Mutex<BTreeMap<String, (Instant, Bytes)>>);

impl Bundles {
    fn keep(&self, workspace: &str, bytes: Bytes) {
        let mut kept = self.0.lock();
        if kept.len() >= KEPT && !kept.contains_key(workspace) {
            kept.pop_first();
        }
        kept.insert(workspace.to_owned(), (Instant::now(), bytes));
    }

    fn get(&self, workspace: &str) -> Option<Bytes> {
        let kept = self.0.lock();
        let (at, bytes) = kept.get(workspace)?;
        (at.elapsed() < KEPT_FOR).then(|| bytes.clone())
    }
}

/// Serves the call, with the account that speaks for the pool.
pub(super) async fn serve(
    proxy: &Arc<Proxy>,
    launch: &Launch,
    request: Request<Incoming>,
) -> Answer {
    let Some(face) = proxy.roster.face(launch.face.as_ref(), &launch.bounds) else {
        return respond::not_here();
    };
    if !managed(face.plan.as_deref()) {
        return respond::json(StatusCode::OK, &serde_json::json!({}));
    }
    let (id, need) = (aux::id_of(&face), launch.bounds.need());
    let (parts, _none) = request.into_parts();
    aux::renew_expired(proxy, &need, &id).await;
    let refused = proxy.vault.generation(&id);
    let mut answer = aux::ask(proxy, &id, &parts, Bytes::new()).await;
    if is(answer.as_ref(), StatusCode::UNAUTHORIZED) {
        aux::renew(proxy, &need, &id, refused).await;
        answer = aux::ask(proxy, &id, &parts, Bytes::new()).await;
    }
    let kept = &proxy.surface.bundles;
    if let Some((head, bytes)) = answer.as_ref().filter(|(head, _)| head.status.is_success()) {
        tracing::debug!(account = %id, status = head.status.as_u16(), "policies of its workspace");
        kept.keep(&face.workspace, bytes.clone());
    } else if is_outage(answer.as_ref())
        && let Some(bytes) = kept.get(&face.workspace)
    {
        tracing::warn!(account = %id, "its workspace's policies can't be had; those of before are told");
        return again(bytes);
    }
    if is(answer.as_ref(), StatusCode::UNAUTHORIZED) {
        return respond::not_here();
    }
    aux::passed(answer)
}

fn is(answer: Option<&(response::Parts, Bytes)>, status: StatusCode) -> bool {
    answer.is_some_and(|(head, _bytes)| head.status == status)
}

/// Whether it says nothing of the policies: a 403 or 404 is their workspace's word.
fn is_outage(answer: Option<&(response::Parts, Bytes)>) -> bool {
    answer.is_none_or(|(head, _)| {
        head.status.is_server_error() || head.status == StatusCode::UNAUTHORIZED
    })
}

/// An answer of before.
fn again(bytes: Bytes) -> Answer {
    let mut answer = Response::new(Out::Whole(bytes));
    let kind = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// Plans for which the CLI insists on the bundle (0.169.0): those of organisations.
fn managed(plan: Option<&str>) -> bool {
    const UNMANAGED: [&str; 7] = ["free", "go", "plus", "pro", "prolite", "team", "unknown"];
    plan.is_some_and(|plan| !UNMANAGED.contains(&plan))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn organisations_are_managed_and_persons_are_not() {
        assert!(managed(Some("business")) && managed(Some("enterprise")) && managed(Some("edu")));
        assert!(!managed(Some("plus")) && !managed(Some("team")) && !managed(None));
    }

    #[tokio::test(start_paused = true)]
    async fn policies_are_kept_for_a_day() {
        let bundles = Bundles::default();
        bundles.keep("w", Bytes::from_static(b"{\"a\":1}"));
        assert!(bundles.get("w").is_some() && bundles.get("other").is_none());
        tokio::time::advance(KEPT_FOR).await;
        assert!(bundles.get("w").is_none());
        for n in 0..2 * KEPT {
            bundles.keep(&n.to_string(), Bytes::new());
        }
        assert_eq!(bundles.0.lock().len(), KEPT);
    }
}
