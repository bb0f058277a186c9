//! The threads of the Codex CLI: where they run, and moving them: the messages of
//! [`crate::message::Request::Sessions`].
//!
//! Same promises as [`crate::message`]: plain data, positional, no credential.

use serde::{Deserialize, Serialize};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionsRequest {
    /// The threads known, newest first. Answer: [`SessionsReply::List`].
    List {
        /// At most so many; the daemon's own bound counts too.
        limit: u32,
    },
    /// One thread. Answer: [`SessionsReply::Shown`].
    Show {
        /// Its id or a unique prefix.
        id: String,
    },
    /// Pin a thread to an account from its next request on. Answer: [`SessionsReply::Moved`].
    Move {
        /// Its id or a unique prefix.
        id: String,
        /// Index, e-mail, label, id or a unique prefix of one.
        account: String,
        /// Go on without what was compacted, where the account can't read it.
        without_summary: bool,
    },
    /// Let the pool choose for a thread again. Answer: [`SessionsReply::Moved`].
    Unpin {
        /// Its id or a unique prefix.
        id: String,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionsReply {
    /// To [`SessionsRequest::List`].
    List(SessionList),
    /// To [`SessionsRequest::Show`].
    Shown(Box<SessionDetail>),
    /// To [`SessionsRequest::Move`] and [`SessionsRequest::Unpin`].
    Moved(SessionMoved),
}

/// Threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// Newest first.
    pub sessions: Vec<SessionInfo>,
    /// Older ones that are not among them.
    pub more: u32,
}

/// One thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its id.
    pub id: String,
    /// The session that it is a subagent of.
    pub parent: Option<String>,
    /// Key of its project, where that has a pool of its own.
    pub project: Option<String>,
    /// The account that served it last.
    pub account: Option<String>,
    /// What that is called.
    pub account_name: Option<String>,
    /// The model it asked for last.
    pub model: Option<String>,
    /// Requests so far.
    pub requests: u64,
    /// Requests under way.
    pub live: u32,
    /// When it was seen first.
    pub first_seen_at: u64,
    /// When it was seen last.
    pub last_seen_at: u64,
    /// Tokens sent, as far as answers said.
    pub input_tokens: u64,
    /// Those of them that a prompt cache had.
    pub cached_tokens: u64,
    /// Where its person moved it.
    pub pinned: Option<SessionPin>,
}

/// A thread moved by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPin {
    /// Account id.
    pub account: String,
    /// What it is called.
    pub account_name: String,
    /// Since when.
    pub since: u64,
    /// It goes on without what was compacted, where that can't be read.
    pub without_summary: bool,
}

/// One thread and where it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDetail {
    /// The thread.
    pub session: SessionInfo,
    /// Its last moves, oldest first.
    pub moves: Vec<SessionMove>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

/// A thread that went to another account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMove {
    /// When.
    pub at: u64,
    /// Account id.
    pub from: String,
    /// What that is called.
    pub from_name: String,
    /// Account id.
    pub to: String,
    /// What that is called.
    pub to_name: String,
    /// Why, for a person.
    pub reason: String,
    /// What was left out of the request, for a person.
    pub dropped: String,
}

/// A thread's pin as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMoved {
    /// The thread.
    pub id: String,
    /// Where it is pinned now.
    pub pinned: Option<SessionPin>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec::Codec,
        message::{Reply, Request},
    };

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn every_message_survives_both_codecs() {
        let id = || text("01a1fbe7");
        let pin = || SessionPin {
            account: text("aa"),
            account_name: text("work"),
            since: 5,
            without_summary: true,
        };
        let session = || SessionInfo {
            id: id(),
            parent: Some(text("p")),
            requests: 300,
            live: 1,
            pinned: Some(pin()),
            ..SessionInfo::default()
        };
        let moved = SessionMove {
            at: 9,
            from: text("aa"),
            from_name: text("work"),
            to: text("bb"),
            to_name: text("home"),
            reason: text("usage limit reached"),
            dropped: text("turn state, 3 reasoning items"),
        };
        let requests = [
            SessionsRequest::List { limit: 7 },
            SessionsRequest::Show { id: id() },
            SessionsRequest::Move { id: id(), account: text("b"), without_summary: true },
            SessionsRequest::Unpin { id: id() },
        ];
        let detail =
            SessionDetail { session: session(), moves: vec![moved], notes: vec![text("n")] };
        let replies = [
            SessionsReply::List(SessionList { sessions: vec![session()], more: 3 }),
            SessionsReply::Shown(Box::new(detail)),
            SessionsReply::Moved(SessionMoved { id: id(), pinned: None, notes: vec![text("n")] }),
        ];
        for codec in [Codec::Bincode, Codec::Json] {
            for request in requests.clone().map(Request::Sessions) {
                let bytes = codec.encode(&request).unwrap();
                assert_eq!(codec.decode::<Request>(&bytes).unwrap(), request);
            }
            for reply in replies.clone().map(Reply::Sessions) {
                let bytes = codec.encode(&reply).unwrap();
                assert_eq!(codec.decode::<Reply>(&bytes).unwrap(), reply);
            }
        }
    }
}
