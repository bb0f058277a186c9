use super::*;

#[test]
fn only_a_cli_that_knows_the_environment_token_is_used() {
    for (version, enough) in [
        ("0.169.0", true),
        ("0.149.0-alpha.1", true),
        ("1.0.0", true),
        ("0.128.0", false),
        ("codex", false),
        ("", false),
    ] {
        assert_eq!(is_new_enough(version), enough, "{version}");
    }
}

#[test]
fn lines_of_the_built_in_client_are_read() {
    let line = r#"{"n":3,"ok":false,"status":429,"ms":12,"text":null,"error":"limit"}"#;
    let answer: Answer = serde_json::from_str(line).unwrap();
    assert_eq!((answer.n, answer.ok, answer.error.as_deref()), (3, false, Some("limit")));
    assert!(serde_json::from_str::<Answer>(r#"{"requests":40,"errors":0}"#).is_err());
}
