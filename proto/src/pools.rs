//! Projects with accounts of their own, folders' policies, workspaces, and what a person writes on
//! an account: the messages of [`crate::message::Request::Pools`].
//!
//! A folder (`dir`) is an absolute path; the daemon finds the project it belongs to. A project is
//! named by its key where it may be gone from the disk. Times are seconds since 1970.

use crate::message::{AccountInfo, PinInfo};
use serde::{Deserialize, Serialize};

/// What a client asks about pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolsRequest {
    /// Read a login into the pool of a folder's project. Answer:
    /// [`Reply::Imported`](crate::message::Reply::Imported).
    Import {
        /// Absolute path of an `auth.json`; the daemon reads it.
        path: String,
        /// A label for the account.
        label: Option<String>,
        /// A folder of the project.
        dir: String,
    },
    /// The pool of a folder's project. Answer: [`PoolsReply::Project`].
    Show {
        /// A folder of the project, or a project's key.
        project: String,
    },
    /// All projects known. Answer: [`PoolsReply::Projects`].
    List,
    /// Pin a project's pool to one account, or let it choose again. Answer:
    /// [`Reply::Switched`](crate::message::Reply::Switched).
    Switch {
        /// Index, e-mail, label, id or a unique prefix of one; none unpins.
        selector: Option<String>,
        /// Refuse unless the pool is still in this epoch.
        expected_epoch: Option<u64>,
        /// A folder of the project.
        dir: String,
    },
    /// Let an account that is in another pool serve a project too. Answer:
    /// [`Reply::Changed`](crate::message::Reply::Changed).
    Join {
        /// Which account.
        selector: String,
        /// A folder of the project.
        dir: String,
        /// It leaves all other pools.
        only: bool,
    },
    /// Take an account out of a project's pool; it stays in its others. Answer:
    /// [`Reply::Changed`](crate::message::Reply::Changed).
    Leave {
        /// Which account.
        selector: String,
        /// A folder of the project.
        dir: String,
    },
    /// Say whether a folder's policy file counts as it is now. Answer: [`PoolsReply::Policy`].
    Judge {
        /// The folder.
        dir: String,
        /// Whether it may count.
        allowed: bool,
    },
    /// Forget a project: its pool, its pin, its policies. Accounts in no other pool are removed as
    /// by [`Request::Remove`](crate::message::Request::Remove). Answer: [`PoolsReply::Forgotten`].
    Forget {
        /// A folder of the project, or its key.
        project: String,
    },
    /// Add and take away tags of an account. Answer:
    /// [`Reply::Changed`](crate::message::Reply::Changed).
    Tag {
        /// Which account.
        selector: String,
        /// Tags to add.
        add: Vec<String>,
        /// Tags to take away.
        remove: Vec<String>,
    },
    /// Write a note on an account. Answer: [`Reply::Changed`](crate::message::Reply::Changed).
    Note {
        /// Which account.
        selector: String,
        /// The note; empty takes it away.
        text: String,
    },
    /// What is known of each account besides its state. Answer: [`PoolsReply::Details`].
    Details,
    /// The workspaces of each user. Answer: [`PoolsReply::Workspaces`].
    Workspaces {
        /// Ask upstream as each account, besides reading the logins.
        live: bool,
        /// The folder whose limit is wanted besides the global one.
        dir: String,
    },
    /// Limit new launches to some workspaces. Answer: [`PoolsReply::Limit`].
    Limit {
        /// Workspace ids or names; none lifts the limit.
        workspaces: Vec<String>,
        /// A folder of the project that is meant; none for everywhere.
        dir: Option<String>,
    },
}

/// What the daemon answers about pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolsReply {
    /// To [`PoolsRequest::Show`].
    Project(Box<ProjectPool>),
    /// To [`PoolsRequest::List`].
    Projects(Vec<ProjectInfo>),
    /// To [`PoolsRequest::Judge`].
    Policy(PolicyInfo),
    /// To [`PoolsRequest::Forget`].
    Forgotten(Forgotten),
    /// To [`PoolsRequest::Details`], in the order of the list.
    Details(Vec<AccountDetail>),
    /// To [`PoolsRequest::Workspaces`].
    Workspaces(Workspaces),
    /// To [`PoolsRequest::Limit`].
    Limit(Limit),
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectInfo {
    /// Names it for ever.
    pub key: String,
    /// Its main folder.
    pub path: String,
    /// Accounts in its pool.
    pub accounts: u32,
    /// The account that its pool is pinned to.
    pub pin: Option<String>,
    /// Workspaces that launches in it are limited to; empty for no limit of its own.
    pub workspaces: Vec<String>,
}

/// A project's pool at one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectPool {
    /// The project.
    pub project: ProjectInfo,
    /// The n-th state of all pools since the daemon started.
    pub epoch: u64,
    /// Where launches in this folder are served: `project`, `project_then_global` or `global`.
    pub serves: String,
    /// What is to be said of the folder's policy file, if it has one.
    pub policy: Option<PolicyInfo>,
    /// Its pin.
    pub pin: Option<PinInfo>,
    /// The account a new thread would get now.
    pub next: Option<String>,
    /// Its accounts.
    pub accounts: Vec<AccountInfo>,
    /// Things a person should know, one line each.
    pub notes: Vec<String>,
}

/// A folder's policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// The file.
    pub path: String,
    /// `allowed`, `denied`, `new` (nobody has said) or `changed` (another content was allowed).
    pub state: String,
    /// What it says: names and values, for a person.
    pub says: Vec<(String, String)>,
    /// Why it can't be understood.
    pub broken: Option<String>,
}

/// A project that is no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Its key.
    pub key: String,
    /// Its main folder.
    pub path: String,
    /// Accounts that were in no other pool; their logins are kept in the root's `removed/` folder.
    pub removed: Vec<String>,
    /// Accounts that stay in other pools.
    pub stayed: Vec<String>,
}

/// What is known of an account besides its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountDetail {
    /// Account id.
    pub id: String,
    /// Whose login it is, from its claims.
    pub user: String,
    /// Tags that a person gave it.
    pub tags: Vec<String>,
    /// A person's note.
    pub note: Option<String>,
    /// The pools it is in: `global` and project keys.
    pub pools: Vec<String>,
}

/// The workspaces of everybody in the pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspaces {
    /// One for each user and workspace known.
    pub known: Vec<WorkspaceInfo>,
    /// The global limit; empty for none.
    pub limit: Vec<String>,
    /// The asked folder's own limit; empty for none.
    pub here: Vec<String>,
    /// What could not be asked, one line each.
    pub notes: Vec<String>,
}

/// A workspace of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceInfo {
    /// Workspace id.
    pub id: String,
    /// What it is called, where that is known.
    pub name: Option<String>,
    /// The user.
    pub user: String,
    /// The user's e-mail.
    pub email: Option<String>,
    /// The account that serves it; none when no login of it is in a pool.
    pub account: Option<String>,
    /// What that account is called.
    pub account_name: Option<String>,
    /// Whether the limits let new launches use it.
    pub allowed: bool,
}

/// A limit as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Workspace ids; empty for none.
    pub workspaces: Vec<String>,
    /// Key of the project it is for; none for everywhere.
    pub project: Option<String>,
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

    fn requests() -> Vec<PoolsRequest> {
        let dir = || text("/home/a/src");
        let selector = || text("work");
        vec![
            PoolsRequest::Import { path: text("/a/auth.json"), label: None, dir: dir() },
            PoolsRequest::Show { project: dir() },
            PoolsRequest::List,
            PoolsRequest::Switch { selector: None, expected_epoch: Some(300), dir: dir() },
            PoolsRequest::Join { selector: selector(), dir: dir(), only: true },
            PoolsRequest::Leave { selector: selector(), dir: dir() },
            PoolsRequest::Judge { dir: dir(), allowed: true },
            PoolsRequest::Forget { project: text("src-0123456789ab") },
            PoolsRequest::Tag { selector: selector(), add: vec![text("a")], remove: Vec::new() },
            PoolsRequest::Note { selector: selector(), text: text("ä") },
            PoolsRequest::Details,
            PoolsRequest::Workspaces { live: true, dir: dir() },
            PoolsRequest::Limit { workspaces: vec![text("w")], dir: None },
        ]
    }

    fn replies() -> Vec<PoolsReply> {
        let project = || ProjectInfo {
            key: text("src-0123456789ab"),
            path: text("/home/a/src"),
            accounts: 2,
            pin: Some(text("aa")),
            workspaces: vec![text("w")],
        };
        let policy = || PolicyInfo {
            path: text("/home/a/src/.cma.toml"),
            state: text("changed"),
            says: vec![(text("pool"), text("project"))],
            broken: Some(text("line 1")),
        };
        let pool = ProjectPool {
            project: project(),
            epoch: 7,
            serves: text("project"),
            policy: Some(policy()),
            pin: Some(PinInfo { account: text("aa"), since: 5, yielded: None }),
            next: None,
            accounts: Vec::new(),
            notes: vec![text("n")],
        };
        let workspace = WorkspaceInfo {
            id: text("w"),
            name: None,
            user: text("u"),
            email: Some(text("a@example.test")),
            account: Some(text("aa")),
            account_name: Some(text("work")),
            allowed: true,
        };
        vec![
            PoolsReply::Project(Box::new(pool)),
            PoolsReply::Projects(vec![project()]),
            PoolsReply::Policy(policy()),
            PoolsReply::Forgotten(Forgotten {
                key: text("k"),
                path: text("/p"),
                removed: vec![text("a")],
                stayed: Vec::new(),
            }),
            PoolsReply::Details(vec![AccountDetail {
                id: text("aa"),
                user: text("u"),
                tags: vec![text("t")],
                note: None,
                pools: vec![text("global")],
            }]),
            PoolsReply::Workspaces(Workspaces {
                known: vec![workspace],
                limit: Vec::new(),
                here: vec![text("w")],
                notes: Vec::new(),
            }),
            PoolsReply::Limit(Limit {
                workspaces: Vec::new(),
                project: Some(text("k")),
                notes: Vec::new(),
            }),
        ]
    }

    #[test]
    fn every_message_survives_both_codecs() {
        for codec in [Codec::Bincode, Codec::Json] {
            for request in requests().into_iter().map(Request::Pools) {
                let bytes = codec.encode(&request).unwrap();
                assert_eq!(codec.decode::<Request>(&bytes).unwrap(), request);
            }
            for reply in replies().into_iter().map(Reply::Pools) {
                let bytes = codec.encode(&reply).unwrap();
                assert_eq!(codec.decode::<Reply>(&bytes).unwrap(), reply);
            }
        }
        assert_eq!((requests().len(), replies().len()), (13, 7));
    }
}
