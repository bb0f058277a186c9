//! Which calls around turns there are, and what kind each is; docs/surface.md has the same as a table.
//!
//! A path that stands here for nothing is answered 404 and never forwarded: a credential goes only
//! where it is known to belong. The names are those that the CLI 0.169.0 was seen to call or holds.

use http::Method;
use std::borrow::Cow;

/// A call around turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// The model list: a union over the launch's accounts.
    Models,
    /// What is left: of the pool.
    Usage,
    /// The managed policies of the account's workspace.
    Bundle,
    /// Reset credits of all accounts.
    Credits,
    /// The use of one reset credit, at the account that has it.
    Consume,
    /// Analytics events: passed or dropped, as the person set.
    Analytics,
    /// Passed with the account that speaks for the pool.
    Face,
    /// The unary compaction of older CLIs: a turn in all but its answer.
    Compact,
    /// Done by an account that is chosen for it, as for a turn.
    Errand(Errand),
}

/// What an errand is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Pictures made or edited.
    Images,
    /// A search of the web.
    Search,
    /// Notes and history that upstream keeps; the flag says whether the call only reads.
    Kept(bool),
    /// A summary for memories.
    Memories,
    /// The start of a voice call.
    Realtime,
    /// A file uploaded, or what belongs to one.
    Files(bool),
    /// `HEAD` of the Responses path: whether it can be reached.
    Head,
    /// A stored response: read, cancelled or deleted.
    Stored,
}

/// How often a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Safety {
    /// As often as need be: it changes nothing, or the same again is the same.
    Repeatable,
    /// Once it may have reached upstream, only after a refusal: it makes something.
    Once,
    /// One account has what it asks for; others answer 404.
    Owned,
}

impl Errand {
    pub(super) const fn safety(self) -> Safety {
        match self {
            Self::Search | Self::Memories | Self::Head => Safety::Repeatable,
            Self::Kept(true) | Self::Files(true) => Safety::Repeatable,
            Self::Images | Self::Realtime | Self::Kept(false) | Self::Files(false) => Safety::Once,
            Self::Stored => Safety::Owned,
        }
    }

    /// Names the family, where an account may lack it without lacking anything else. A turn's own
    /// kinds have no family: what they are refused, turns are refused too.
    pub(super) const fn family(self) -> Option<&'static str> {
        match self {
            Self::Head | Self::Stored => None,
            Self::Images => Some("cma:images"),
            Self::Search => Some("cma:search"),
            Self::Kept(_) => Some("cma:kept"),
            Self::Memories => Some("cma:memories"),
            Self::Realtime => Some("cma:realtime"),
            Self::Files(_) => Some("cma:files"),
        }
    }

    /// Whether a model works for it, which budgets count as a request.
    pub(super) const fn spends(self) -> bool {
        match self {
            Self::Images | Self::Search | Self::Memories | Self::Realtime => true,
            Self::Kept(_) | Self::Files(_) | Self::Head | Self::Stored => false,
        }
    }

    /// Whether upstream keeps something of it with the account, so that what follows in the same
    /// launch has to go there even without a session.
    pub(super) const fn stays(self) -> bool {
        matches!(self, Self::Kept(_) | Self::Realtime | Self::Files(_))
    }
}

/// A path below the backend, whichever of the CLI's base addresses and path styles it was made with:
/// a `chatgpt_base_url` with `/backend-api` in it gets `/wham/…`, one without gets `/api/codex/…`
/// (0.169.0). None for what could mean another path to somebody else.
pub(crate) fn place(path: &str) -> Option<Cow<'_, str>> {
    let odd = |part: &str| path.contains(part);
    if odd("..") || odd("//") || odd("\\") || odd("%2e") || odd("%2E") || odd("%2f") || odd("%2F") {
        return None;
    }
    if let Some(rest) = path.strip_prefix("/api/codex") {
        return match rest.strip_prefix("/ps/") {
            Some(_apps) => Some(Cow::Borrowed(rest)),
            None => Some(Cow::Owned(format!("/wham{rest}"))),
        };
    }
    if let Some(rest) = path.strip_prefix("/backend-api") {
        let turns = rest.starts_with("/codex/") && rest != ANALYTICS;
        return (!turns).then_some(Cow::Borrowed(rest));
    }
    let known = ["/codex/", "/ps/", "/connectors/", "/files"];
    known.iter().any(|base| path.starts_with(base)).then_some(Cow::Borrowed(path))
}

const ANALYTICS: &str = "/codex/analytics-events/events";

/// What `place` has passed with the account that speaks for the pool, when it is read.
const READ: [&str; 10] = [
    "/wham/settings/user",
    "/wham/security-setup",
    "/wham/profiles/me",
    "/wham/workspace-messages",
    "/wham/environments",
    "/wham/environments/",
    "/wham/tasks",
    "/wham/tasks/",
    "/ps/plugins/",
    "/connectors/directory/",
];

/// The same, when it is sent.
const SENT: [&str; 2] = ["/ps/apps/batch", "/wham/accounts/send_add_credits_nudge_email"];

/// What a method and a [`place`] mean.
pub(crate) fn find(method: &Method, place: &str) -> Option<Call> {
    let (get, post) = (*method == Method::GET, *method == Method::POST);
    if let Some(path) = place.strip_prefix("/codex/") {
        return provider(method, path);
    }
    Some(match place {
        "/wham/usage" if get => Call::Usage,
        "/wham/config/bundle" if get => Call::Bundle,
        "/wham/rate-limit-reset-credits" if get => Call::Credits,
        "/wham/rate-limit-reset-credits/consume" if post => Call::Consume,
        "/wham/usage/thread_usage/query" if get || post => Call::Face,
        "/files" if post => Call::Errand(Errand::Files(false)),
        _ if get && place.starts_with("/files/") => Call::Errand(Errand::Files(true)),
        _ if post && place.starts_with("/files/") => Call::Errand(Errand::Files(false)),
        _ if get && READ.iter().any(|known| within(place, known)) => Call::Face,
        _ if post && SENT.contains(&place) => Call::Face,
        _ => return None,
    })
}

/// Below the base of Responses.
fn provider(method: &Method, path: &str) -> Option<Call> {
    let (get, post) = (*method == Method::GET, *method == Method::POST);
    let kept = |known: &str| path.strip_prefix(known).is_some_and(|rest| rest.starts_with('/'));
    let errand = match path {
        "models" if get => return Some(Call::Models),
        "analytics-events/events" if post => return Some(Call::Analytics),
        "responses" if *method == Method::HEAD => Errand::Head,
        "responses/compact" if post => return Some(Call::Compact),
        "images/generations" | "images/edits" if post => Errand::Images,
        "alpha/search" if post => Errand::Search,
        "memories/trace_summarize" if post => Errand::Memories,
        "realtime/calls" if post => Errand::Realtime,
        _ if kept("alpha/notes") || kept("alpha/history") => Errand::Kept(get),
        _ => {
            let id = path.strip_prefix("responses/")?;
            let (id, cancel) = id.strip_suffix("/cancel").map_or((id, false), |id| (id, true));
            let method = if cancel { post } else { get || *method == Method::DELETE };
            if id.is_empty() || id.contains('/') || !method {
                return None;
            }
            Errand::Stored
        },
    };
    Some(Call::Errand(errand))
}

/// A known path itself; below it, where it ends with a slash.
fn within(place: &str, known: &str) -> bool {
    place == known || (known.ends_with('/') && place.starts_with(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_path_styles_mean_the_same_places() {
        for (path, meant) in [
            ("/backend-api/wham/usage", "/wham/usage"),
            ("/api/codex/usage", "/wham/usage"),
            ("/api/codex/ps/mcp", "/ps/mcp"),
            ("/ps/plugins/list", "/ps/plugins/list"),
            ("/backend-api/codex/analytics-events/events", ANALYTICS),
            ("/codex/models", "/codex/models"),
        ] {
            assert_eq!(place(path).as_deref(), Some(meant), "{path}");
        }
        for odd in [
            "/backend-api/codex/responses",
            "/backend-api//wham/usage",
            "/codex/../wham/usage",
            "/codex/%2e%2E/x",
            "/codex/a%2fb",
            "/wham/usage",
            "/v1/responses",
        ] {
            assert_eq!(place(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_nothing() {
        let get = |path| find(&Method::GET, path);
        let post = |path| find(&Method::POST, path);
        assert_eq!(get("/codex/models"), Some(Call::Models));
        assert_eq!(post("/codex/responses/compact"), Some(Call::Compact));
        assert_eq!(get("/codex/responses/resp_1"), Some(Call::Errand(Errand::Stored)));
        assert_eq!(post("/codex/responses/resp_1/cancel"), Some(Call::Errand(Errand::Stored)));
        assert_eq!(find(&Method::HEAD, "/codex/responses"), Some(Call::Errand(Errand::Head)));
        assert_eq!(get("/wham/tasks/task_1"), Some(Call::Face));
        for nothing in [
            "/codex/responses",
            "/codex/responses/",
            "/codex/responses/a/b",
            "/codex/images/generations",
            "/wham/tasksx",
            "/wham/remote/control/x",
            "/wham/accounts",
            "/wham",
            "/conversation",
        ] {
            assert_eq!(get(nothing), None, "{nothing}");
        }
        assert_eq!(post("/wham/settings/user"), None);
        assert_eq!(post("/codex/responses/resp_1"), None);
    }

    #[test]
    fn what_makes_something_is_sent_once() {
        for once in [Errand::Images, Errand::Realtime, Errand::Files(false), Errand::Kept(false)] {
            assert_eq!(once.safety(), Safety::Once, "{once:?}");
        }
        assert_eq!(Errand::Files(true).safety(), Safety::Repeatable);
    }
}
