use super::*;
use crate::render::plain;

fn tell(change: Change) -> String {
    let mut teller = Teller::new(Clock::utc());
    teller.names.insert("a1".to_owned(), "work".to_owned());
    plain(&teller.line(&Event { epoch: 5, at_ms: 1_770_000_000_123, change }))
}

#[test]
fn each_change_is_one_line_with_the_names_people_use() {
    let account = "a1".to_owned();
    assert_eq!(
        tell(Change::State {
            account: account.clone(),
            state: "cooling".to_owned(),
            reason: Some("usage limit".to_owned()),
            until: Some(1_770_000_060),
        }),
        "02:40:00.123 5 work is cooling for 1 min: usage limit\n"
    );
    assert_eq!(
        tell(Change::Pin { account: Some(account.clone()) }),
        "02:40:00.123 5 pinned to work\n"
    );
    assert_eq!(tell(Change::Pin { account: None }), "02:40:00.123 5 unpinned\n");
    assert_eq!(
        tell(Change::Retry {
            request: "r1".to_owned(),
            account: "unknown".to_owned(),
            reason: "429\x1b[2J".to_owned(),
        }),
        "02:40:00.123 5 request r1 goes on without unknown: 429 [2J\n"
    );
    assert_eq!(
        tell(Change::Served {
            request: "r1".to_owned(),
            account: Some(account),
            model: Some("gpt".to_owned()),
            status: 200,
            outcome: "complete".to_owned(),
            attempts: 2,
            first_byte_ms: Some(12),
            total_ms: 90,
            input_tokens: Some(3),
            cached_tokens: None,
            output_tokens: Some(4),
        }),
        "02:40:00.123 5 request r1 served by work: 200 complete · gpt · first byte 12 ms · 90 ms \
         · 3 tokens in, 4 out · 2 attempts\n"
    );
}
