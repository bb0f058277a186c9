//! The pages a person sees in the browser at the end: who signed in and what to do next.
//!
//! Everything from outside is escaped, and the policy forbids scripts, pictures and frames anyway.

use cma_proto::{error::Refusal, login::LoginDone};

/// Nothing but the page's own style may be loaded or run.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                                 form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = "\
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#16191d;--soft:#5b6470;--line:#e2e6eb;--mark:#1a7f4b}\
@media(prefers-color-scheme:dark){:root{--ground:#14171a;--card:#1c2024;--ink:#eceff2;--soft:#9aa4af;--line:#2d333a;--mark:#4cc38a}}\
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;padding:2rem 1rem;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,sans-serif}\
main{width:100%;max-width:34rem;background:var(--card);border:1px solid var(--line);border-radius:14px;padding:2.25rem}\
.bad{--mark:#c2402c}.mark{width:2.75rem;height:2.75rem;border-radius:50%;background:var(--mark);color:#fff;display:grid;place-items:center;font-size:1.4rem;font-weight:700}\
h1{font-size:1.4rem;line-height:1.3;margin:1.1rem 0 .4rem}p{margin:.4rem 0;color:var(--soft)}\
dl{display:grid;grid-template-columns:auto 1fr;gap:.35rem 1.1rem;margin:1.25rem 0;padding:1rem 0;border:solid var(--line);border-width:1px 0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\
ul{list-style:none;margin:.6rem 0 0;padding:0}li{margin:.4rem 0;color:var(--soft)}\
code{background:var(--ground);border:1px solid var(--line);border-radius:6px;padding:.1rem .4rem;color:var(--ink);font:.9em ui-monospace,monospace;overflow-wrap:anywhere}";

/// The account is in the pool.
pub(super) fn success(done: &LoginDone) -> String {
    let who = done.email.as_deref().unwrap_or(&done.name);
    let what = if done.created { "is in the pool now" } else { "is signed in again" };
    let plan = done.plan.as_deref().map(|plan| row("Plan", plan)).unwrap_or_default();
    let label = if done.name == who { String::new() } else { row("Called", &done.name) };
    let rows = [row("Account", who), label, plan, row("Workspace", &done.workspace)].concat();
    let count = match done.accounts {
        1 => "The pool has 1 account.".to_owned(),
        n => format!("The pool has {n} accounts."),
    };
    let body = format!(
        "<div class=\"mark\" aria-hidden=\"true\">✓</div>\
         <h1>{who} {what}</h1>\
         <p>You can close this tab and go back to the terminal. {count}</p>\
         <dl>{rows}</dl>\
         <p>What to do next:</p>\
         <ul><li><code>codex</code> works as always, now with this account too</li>\
         <li><code>cmactl status</code> shows who serves and how full the windows are</li>\
         <li><code>cmactl login</code> adds another account</li></ul>",
        who = escape(who),
    );
    page("Signed in", "good", &body)
}

/// It came to nothing.
pub(super) fn failure(refusal: &Refusal) -> String {
    let body = format!(
        "<div class=\"mark\" aria-hidden=\"true\">!</div>\
         <h1>Not signed in</h1><p>{}.</p>\
         <p>What to do next: {}.</p>",
        escape(&refusal.message),
        ticked(&refusal.hint),
    );
    page("Not signed in", "bad", &body)
}

/// A callback that is not this sign-in's.
pub(super) fn not_accepted(why: &str) -> String {
    let body = format!(
        "<div class=\"mark\" aria-hidden=\"true\">!</div>\
         <h1>This answer was not accepted</h1><p>{}.</p>\
         <p>An older tab, or another program's sign-in, may have brought you here. What to do next: \
         use the link that the terminal shows now, or run <code>cmactl login</code> again.</p>",
        ticked(&capital(why)),
    );
    page("Not accepted", "bad", &body)
}

fn page(title: &str, class: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title} · cma</title><style>{STYLE}</style></head>\
         <body><main class=\"{class}\">{body}</main></body></html>\n"
    )
}

fn row(name: &str, value: &str) -> String {
    format!("<dt>{name}</dt><dd>{}</dd>", escape(value))
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).collect()).unwrap_or_default()
}

/// Escaped text whose backticks become code.
fn ticked(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in escape(text).split('`').enumerate() {
        if at > 0 {
            out.push_str(if at % 2 == 1 { "<code>" } else { "</code>" });
        }
        out.push_str(part);
    }
    if text.matches('`').count() % 2 == 1 {
        out.push_str("</code>");
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_proto::error::ErrorCode;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let evil = "<script>alert('x')</script>\"&";
        let done = LoginDone {
            account: evil.to_owned(),
            name: evil.to_owned(),
            email: Some(evil.to_owned()),
            plan: Some(evil.to_owned()),
            workspace: evil.to_owned(),
            created: true,
            accounts: 1,
            notes: vec![evil.to_owned()],
        };
        let refusal = Refusal::new(ErrorCode::Denied, evil, format!("run `{evil}`"));
        for page in [success(&done), failure(&refusal), not_accepted(evil)] {
            assert!(!page.contains("<script") && !page.contains("alert('"), "{page}");
            assert!(page.contains("&lt;script&gt;"), "{page}");
        }
    }

    #[test]
    fn backticks_become_code_and_always_end() {
        assert_eq!(ticked("run `a`, then `b"), "run <code>a</code>, then <code>b</code>");
    }
}
