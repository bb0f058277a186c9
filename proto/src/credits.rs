//! Reset credits: what an account may spend to have its windows reset, listed and used on command.

use serde::{Deserialize, Serialize};

/// What a client asks of this family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreditsRequest {
    /// Ask upstream for every account's credits. Answer: [`CreditsReply::Purses`].
    List,
    /// Use one credit, for good. Answer: [`CreditsReply::Used`].
    Use {
        /// Which account, as in [`crate::message::Request::Switch`].
        selector: String,
        /// Which of its credits; its first one when none is named.
        credit: Option<String>,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreditsReply {
    /// To [`CreditsRequest::List`].
    Purses {
        /// In the order of the pool.
        accounts: Vec<Purse>,
    },
    /// To [`CreditsRequest::Use`].
    Used(Used),
}

/// The credits of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purse {
    /// Account id.
    pub account: String,
    /// How it is called by its person.
    pub name: String,
    /// How many can be used now, as upstream says.
    pub available: u64,
    /// Each of them.
    pub credits: Vec<Credit>,
    /// Why nothing is known of them; none when upstream answered.
    pub problem: Option<String>,
}

/// One credit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// What it is called in a use.
    pub id: String,
    /// All that upstream says of it, as JSON.
    pub detail: String,
}

/// A credit that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Account id.
    pub account: String,
    /// How it is called by its person.
    pub name: String,
    /// Which credit.
    pub credit: String,
    /// The account's state after it, as in `status`.
    pub state: String,
    /// When that state ends by itself.
    pub until: Option<u64>,
    /// Worth knowing, one line each.
    pub notes: Vec<String>,
}
