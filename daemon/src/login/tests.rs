//! A sign-in's life with a simulated clock: tokio's own, paused.

use super::*;
use crate::{actor::Actor, renewal::Renewer, store::Store, vault::Vault};
use cma_proto::endpoint::Root;

struct Kept {
    _dir: tempfile::TempDir,
    logins: Arc<Logins>,
}

fn logins() -> Kept {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(&dir.path().join("root"));
    crate::dirs::prepare(&root).unwrap();
    let var = |name: &str| (name == "CMA_UPSTREAM_ISSUER").then(|| "http://127.0.0.1:9".to_owned());
    let config = Arc::new(Config::load(&root, var).unwrap());
    let vault = Arc::new(Vault::default());
    let store = Store::new(&root);
    let roster = Arc::new(Roster::load(store, Arc::clone(&config), Arc::clone(&vault)).unwrap());
    let renewer = Renewer::new(Arc::clone(&roster), vault, Arc::clone(&config));
    let (_actor, handle) = Actor::new(1, Arc::new(renewer), Tasks::default());
    let logins = Arc::new(Logins::new(config, roster, handle, Tasks::default()));
    Kept { _dir: dir, logins }
}

fn begin() -> LoginBegin {
    LoginBegin {
        method: LoginMethod::Manual,
        org: Some("w-1".to_owned()),
        account: None,
        email: None,
        issuer: None,
        timeout_secs: None,
        label: None,
        tags: Vec::new(),
        enabled: true,
    }
}

async fn started(logins: &Arc<Logins>) -> LoginStarted {
    match logins.step(LoginRequest::Begin(begin())).await {
        Ok(LoginReply::Started(started)) => started,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_that_nobody_finishes_ends_after_a_quarter_of_an_hour() {
    let kept = logins();
    let started = started(&kept.logins).await;
    assert!(started.first);
    let begun = Instant::now();
    let (end, refusal) = loop {
        let poll = LoginRequest::Poll { id: started.id.clone() };
        match kept.logins.step(poll).await.unwrap() {
            LoginReply::Waiting(waiting) => {
                assert_eq!(waiting.stage, "person");
                assert!(begun.elapsed() < TIMEOUT + POLL, "it never ends");
            },
            LoginReply::Ended { end, refusal } => break (end, refusal),
            other => panic!("{other:?}"),
        }
    };
    assert!(begun.elapsed() >= TIMEOUT, "{:?}", begun.elapsed());
    assert_eq!((end, refusal.code), (LoginEnd::TimedOut, ErrorCode::Negative));
    assert!(refusal.message.contains("15 minutes"), "{refusal}");
    assert!(!self::started(&kept.logins).await.first, "the notice is shown once");
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_whose_client_is_gone_ends_and_is_forgotten() {
    let kept = logins();
    let started = started(&kept.logins).await;
    let session = Arc::clone(&kept.logins.open.lock()[&started.id]);
    let begun = Instant::now();
    session.ended().await;
    assert!((ABANDONED..ABANDONED + POLL).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let Stage::Ended(ending) = session.stage.borrow().clone() else { panic!("not ended") };
    assert_eq!(ending.end, LoginEnd::Cancelled);
    tokio::time::sleep(REMEMBERED * 2).await;
    assert!(kept.logins.open.lock().is_empty());
    let gone = kept.logins.step(LoginRequest::Poll { id: started.id }).await.unwrap_err();
    assert_eq!(gone.code(), ErrorCode::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_state_changes_nothing_and_a_cancel_is_final() {
    let kept = logins();
    let started = started(&kept.logins).await;
    let id = started.id;
    let paste = LoginRequest::Paste { id: id.clone(), url: "code#another-state".to_owned() };
    let refused = kept.logins.step(paste).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Denied, "{refused}");
    let LoginReply::Waiting(waiting) =
        kept.logins.step(LoginRequest::Poll { id: id.clone() }).await.unwrap()
    else {
        panic!("it goes on")
    };
    assert_eq!(waiting.notes.len(), 1);
    for step in [LoginRequest::Cancel { id: id.clone() }, LoginRequest::Poll { id }] {
        let reply = kept.logins.step(step).await.unwrap();
        assert!(matches!(reply, LoginReply::Ended { end: LoginEnd::Cancelled, .. }), "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_link_asks_as_the_official_cli_does_and_holds_no_verifier() {
    let kept = logins();
    let started = started(&kept.logins).await;
    let url = oauth2::url::Url::parse(&started.url).unwrap();
    let pairs: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    assert_eq!(url.path(), "/oauth/authorize");
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", exchange::CLIENT_ID),
        ("redirect_uri", "http://127.0.0.1:1455/auth/callback"),
        ("code_challenge_method", "S256"),
        ("scope", "openid profile email offline_access api.connectors.read api.connectors.invoke"),
        ("id_token_add_organizations", "true"),
        ("codex_cli_simplified_flow", "true"),
        ("originator", "cma"),
        ("allowed_workspace_id", "w-1"),
    ] {
        assert_eq!(pairs.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!((pairs["code_challenge"].len(), pairs["state"].len(), pairs.len()), (43, 43, 11));
    let session = Arc::clone(&kept.logins.open.lock()[&started.id]);
    assert!(!format!("{session:?}").contains(&pairs["state"]), "a session's Debug tells its state");
    let elsewhere = LoginBegin { issuer: Some("https://evil.test".to_owned()), ..begin() };
    let refused = kept.logins.step(LoginRequest::Begin(elsewhere)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Config, "{refused}");
}
