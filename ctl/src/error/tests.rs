use super::*;
use cma_proto::message::{Launch, LaunchPlan, Reply};

#[test]
fn an_unexpected_answer_is_named_without_what_it_carries() {
    let plan = LaunchPlan {
        env: vec![("CODEX_ACCESS_TOKEN".to_owned(), "at-cma-canary".to_owned())],
        args: Vec::new(),
        base_url: String::new(),
        client_key: "at-cma-canary".to_owned(),
        key_expires_at: 0,
        session: String::new(),
    };
    let refusal = unexpected(Reply::Launch(Box::new(Launch::Through(plan))));
    assert_eq!(refusal.code, ErrorCode::Internal);
    assert!(refusal.message.contains("`Launch`") && !refusal.message.contains("canary"));
}

#[test]
fn a_missing_file_and_a_forbidden_one_have_their_own_codes() {
    let code = |kind: io::ErrorKind| file(Path::new("/f"), &kind.into(), "hint").code;
    assert_eq!(code(io::ErrorKind::NotFound), ErrorCode::NotFound);
    assert_eq!(code(io::ErrorKind::PermissionDenied), ErrorCode::Store);
}
