//! The comparison by itself, over every pair of what claims can say.

use super::{
    Found,
    plan::{self, State},
    token::{Raw, login},
};
use crate::store::record::{Gone, Record};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::json;
use std::sync::Arc;

fn jwt(iat: Option<u64>, exp: Option<u64>) -> String {
    let claims = json!({
        "iat": iat, "exp": exp,
        "https://api.openai.com/auth": { "chatgpt_user_id": "u", "chatgpt_account_id": "w" },
    });
    format!("e30.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn found(chain: Option<&str>, iat: Option<u64>, exp: Option<u64>) -> Found {
    let raw =
        Raw { access: Some(jwt(iat, exp)), refresh: chain.map(str::to_owned), ..Raw::default() };
    Found {
        login: login(raw).unwrap().0,
        name: "n".to_owned(),
        label: None,
        tags: Vec::new(),
        remark: None,
        enabled: None,
        gone: None,
        pool: None,
        pinned: false,
        touched_at: None,
        format: "f",
        path: format!("/{chain:?}").into(),
        notes: Vec::new(),
    }
}

fn record(chain: &str, iat: Option<u64>, exp: Option<u64>) -> Record {
    let made = found(Some(chain), iat, exp);
    Record {
        id: made.login.id().to_string(),
        user: "u".to_owned(),
        workspace: "w".to_owned(),
        email: None,
        plan: None,
        fedramp: false,
        label: None,
        enabled: true,
        order: 1,
        issuer: "i".to_owned(),
        backend: "b".to_owned(),
        imported_at: 1,
        generation: 1,
        expires_at: exp,
        renewed_at: None,
        tokens: made.login.tokens,
        gone: None,
        spent: Vec::new(),
        tags: Vec::new(),
        notes: None,
        pools: Vec::new(),
        terms: crate::store::record::Terms::default(),
    }
}

#[test]
fn newer_is_what_the_claims_say() {
    let ours = record("ours", Some(100), Some(1000));
    let state = |one: &Found| plan::compare(one, Some(&ours)).state;
    for (chain, iat, exp, wanted) in [
        (Some("ours"), Some(900), Some(9000), State::Same),
        (Some("x"), Some(101), Some(1000), State::Newer),
        (Some("x"), Some(99), Some(9000), State::Older),
        (Some("x"), Some(100), Some(1001), State::Newer),
        (Some("x"), None, Some(999), State::Older),
        (Some("x"), Some(100), Some(1000), State::Conflicting),
        (Some("x"), None, None, State::Conflicting),
        (None, Some(900), Some(9000), State::Older),
    ] {
        assert_eq!(state(&found(chain, iat, exp)), wanted, "{chain:?} {iat:?} {exp:?}");
    }
    assert_eq!(plan::compare(&found(None, None, None), None).state, State::New);
}

#[test]
fn a_spent_chain_is_old_whatever_its_claims_say() {
    let first = record("first", Some(1), Some(2));
    let ours = Record { spent: first.spent_with_current(), ..record("second", Some(1), Some(2)) };
    let again = found(Some("first"), Some(900), Some(9000));
    assert_eq!(plan::compare(&again, Some(&ours)).state, State::Older);
    // Even where the pool's own login is gone: sending it again would burn what is left.
    let gone = Some(Gone { cause: "c".to_owned(), since: 1 });
    let ours = Record { gone, ..ours };
    assert_eq!(plan::compare(&again, Some(&ours)).state, State::Older);
    let other = found(Some("other"), Some(0), Some(1));
    assert_eq!(plan::compare(&other, Some(&ours)).state, State::Newer);
}

#[test]
fn of_several_copies_one_is_taken() {
    let mut flagged = found(Some("flagged"), Some(900), Some(1));
    flagged.gone = Some(Gone { cause: "c".to_owned(), since: 1 });
    flagged.label = Some("name".to_owned());
    let all = [
        flagged,
        found(Some("old"), Some(1), Some(1)),
        found(Some("young"), Some(2), Some(1)),
        found(Some("young"), Some(2), Some(1)),
        found(Some("twin"), Some(2), Some(1)),
        found(None, Some(900), Some(900)),
    ];
    let states = |known: Option<Arc<Record>>| -> Vec<State> {
        plan::plan(&all, |_| known.clone()).into_iter().map(|line| line.state).collect()
    };
    use State::{Conflicting, New, Older, Same};
    assert_eq!(states(None), [Older, Older, New, Same, Conflicting, Older]);
    let ours = Arc::new(record("young", Some(2), Some(1)));
    assert_eq!(states(Some(ours)), [Older, Older, Same, Same, Conflicting, Older]);
    let choices = plan::choices(&all, &all[0].login.id());
    assert_eq!((choices.label.as_deref(), choices.enabled), (Some("name"), None));
}
