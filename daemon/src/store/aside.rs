//! What is kept beside an account: why it was set aside, and which of its tokens were lent.
//!
//! Files of their own, `accounts/<id>.flag.json` and `<id>.lent.json`: neither decides whether an
//! account can be used, so neither may keep one from loading.

use super::Store;
use crate::fault::Fault;
use cma_core::identity::AccountId;
use serde::{Deserialize, Serialize};

/// How many lent tokens are remembered for one account.
const LENT: usize = 32;
/// How much of an answer is kept, in characters.
const EXCERPT: usize = 300;
/// A run of token characters as long as this may be a credential.
const SECRETIVE: usize = 20;

/// The answer that decided that a login is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// The generation whose refresh token was refused.
    pub(crate) generation: u64,
    /// Seconds since 1970.
    pub(crate) at: u64,
    /// HTTP status.
    pub(crate) status: u16,
    /// The issuer's error code, or its status.
    pub(crate) code: String,
    /// The beginning of the answer's body, redacted.
    pub(crate) excerpt: String,
}

impl Store {
    /// Why an account was set aside; a file that can't be read is as good as none.
    pub(crate) fn evidence(&self, id: &AccountId) -> Option<Evidence> {
        self.get(&self.account_file(id.as_str(), ".flag")).ok().flatten()
    }

    /// Keeps the answer that decided.
    pub(crate) fn save_evidence(&self, id: &AccountId, evidence: &Evidence) -> Result<(), Fault> {
        self.put(&self.account_file(id.as_str(), ".flag"), evidence)
    }

    /// Fingerprints of the access tokens lent to CLIs.
    pub(crate) fn lent(&self, id: &AccountId) -> Result<Vec<String>, Fault> {
        Ok(self.get(&self.account_file(id.as_str(), ".lent"))?.unwrap_or_default())
    }

    /// Makes that list durable, without the oldest when it is long; returns it as kept.
    pub(crate) fn save_lent(
        &self,
        id: &AccountId,
        mut lent: Vec<String>,
    ) -> Result<Vec<String>, Fault> {
        let drop = lent.len().saturating_sub(LENT);
        lent.drain(..drop);
        self.put(&self.account_file(id.as_str(), ".lent"), &lent)?;
        Ok(lent)
    }

    /// Removes what is kept beside an account.
    pub(crate) fn remove_asides(&self, id: &AccountId) -> Result<(), Fault> {
        self.drop_file(&self.account_file(id.as_str(), ".flag"))?;
        self.drop_file(&self.account_file(id.as_str(), ".lent"))
    }
}

/// The beginning of a body, without anything that looks like a credential.
pub(crate) fn redacted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut out = String::new();
    let mut run = String::new();
    let flush = |run: &mut String, out: &mut String| {
        out.push_str(if run.chars().count() >= SECRETIVE && has_digit_or_mixed(run) {
            "[masked]"
        } else {
            run
        });
        run.clear();
    };
    for c in text.chars().take(4 * EXCERPT) {
        if c.is_ascii_alphanumeric() || "-_.~+/=".contains(c) {
            run.push(c);
            continue;
        }
        flush(&mut run, &mut out);
        out.push(if c.is_control() { ' ' } else { c });
    }
    flush(&mut run, &mut out);
    out.chars().take(EXCERPT).collect()
}

/// Words of a message and error codes are all lower case; tokens aren't.
fn has_digit_or_mixed(run: &str) -> bool {
    run.bytes().any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_keeps_words_and_codes_and_masks_what_may_be_a_token() {
        let body = br#"{"error":{"code":"refresh_token_invalidated","message":"Your session has ended."},"t":"eyJhbGciOiJub25lIn0.e30.c2ln","u":"rt-0123456789abcdefghij"}"#;
        let kept = redacted(body);
        assert!(kept.contains("refresh_token_invalidated") && kept.contains("session has ended"));
        assert!(!kept.contains("eyJ") && !kept.contains("0123456789"), "{kept}");
        assert!(redacted(&[b'x'; 10_000]).len() <= EXCERPT);
        assert_eq!(redacted(b"a\x1b[2Jb"), "a [2Jb");
    }
}
