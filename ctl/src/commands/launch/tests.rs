use super::*;

fn sample() -> LaunchPlan {
    LaunchPlan {
        env: vec![
            ("CODEX_ACCESS_TOKEN".to_owned(), "at-cma-x".to_owned()),
            ("NO_PROXY".to_owned(), "a b,127.0.0.1".to_owned()),
        ],
        args: vec!["-c".to_owned(), "openai_base_url=\"http://127.0.0.1:1/codex\"".to_owned()],
        base_url: "http://127.0.0.1:1/codex".to_owned(),
        client_key: "at-cma-x".to_owned(),
        key_expires_at: 9,
        session: "s".to_owned(),
    }
}

#[test]
fn a_shell_reads_the_text_back() {
    assert_eq!(
        shell(&sample()),
        "export CODEX_ACCESS_TOKEN=at-cma-x\n\
         export NO_PROXY='a b,127.0.0.1'\n\
         codex -c 'openai_base_url=\"http://127.0.0.1:1/codex\"'\n"
    );
}

#[test]
fn words_are_quoted_only_where_they_must_be() {
    assert_eq!(quote("a-b_c.d/e:f=g@h,i%j+1"), "a-b_c.d/e:f=g@h,i%j+1");
    assert_eq!(quote(""), "''");
    assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    assert_eq!(quote("~"), "'~'");
}

#[test]
fn json_has_env_as_an_object() {
    let line = crate::render::json_line(&printed(&sample())).unwrap();
    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(read["env"]["CODEX_ACCESS_TOKEN"], "at-cma-x");
    assert_eq!(read["args"][0], "-c");
    assert_eq!(read["client_key"], "at-cma-x");
    assert_eq!(read["schema"], 1);
}

#[test]
fn both_spellings_of_no_proxy_count() {
    let joined = |upper: Option<&str>, lower: Option<&str>| {
        no_proxy(|name| if name == "NO_PROXY" { upper } else { lower }.map(ToOwned::to_owned))
    };
    assert_eq!(joined(Some("a"), Some("b")), "a,b");
    assert_eq!(joined(Some(""), Some("b")), "b");
    assert_eq!(joined(None, None), "");
}
