//! Whether the two runs of a case show the same.

use super::{
    case::{Case, Expect, Wire, numbers},
    run::{Shown, alone, through},
};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Parts of the CLI's log that aren't compared, the version for which that holds if not for all, and why.
const UNHEARD: [(&str, Option<&str>, &str); 4] = [
    (
        "rmcp::transport",
        None,
        "connectors are probed beside the turn; whether the end of that is logged is a race",
    ),
    (
        "codex_api::endpoint::responses_websocket",
        None,
        "the daemon takes the CLI's handshake and answers inside",
    ),
    (
        "failed to load models cache: EOF",
        None,
        "two parts of the CLI write that file at its start, and one reads it meanwhile: a race",
    ),
    (
        "codex_api::endpoint::responses: error=",
        Some("0.98.0"),
        "it logs each refusal with its body, also those that are healed",
    ),
];
/// Lines shown of a difference.
const MAX_LINES: usize = 12;

/// What came of a case.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) case: String,
    pub(super) version: &'static str,
    pub(super) verdict: Verdict,
}

/// Whether a case holds.
#[derive(Debug)]
pub(super) enum Verdict {
    Ok,
    /// How the two differ.
    Differs(String),
    /// Why this version has no such case.
    Cannot(&'static str),
}

/// Runs a case of a version. The set-up's failures count as a difference.
pub(super) fn judge(case: &Case, version: &'static str) -> Judged {
    let verdict = match case.cannot(version) {
        Some(why) => Verdict::Cannot(why),
        None => match catch_unwind(AssertUnwindSafe(|| differences(case, version))) {
            Ok(found) if found.is_empty() => Verdict::Ok,
            Ok(found) => Verdict::Differs(found.join("\n")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Verdict::Differs(format!("it broke off: {}", text.unwrap_or("without a word")))
            },
        },
    };
    Judged { case: case.name.clone(), version, verdict }
}

fn differences(case: &Case, version: &str) -> Vec<String> {
    let (Some(alone), Some(through)) = (alone(case, version), through(case, version)) else {
        return vec![format!("the official CLI {version} is not installed")];
    };
    let mut found = Vec::new();
    match case.expect {
        Expect::Same | Expect::Hidden => {
            found.extend(lines("output", &alone.lines, &through.lines));
            found.extend(log(version, &alone, &through));
            found.extend(files(&alone, &through));
            // A limit that a prewarm met is not asked about again.
            let known = case.is_hopeless() && through.sent.is_empty();
            let [alone, through] = [&alone.sent, &through.sent].map(|sent| of_anyone(sent));
            found.extend(lines("what upstream got", &alone, &through).filter(|_| !known));
        },
        Expect::Ours { says, why: _ } => {
            found.extend(lines("exit status", &text(&alone.codes), &text(&through.codes)));
            if !through.talk.contains(says) {
                found.push(format!("it doesn't say `{says}`:\n{}", through.talk));
            }
        },
    }
    found.extend(unmet(case, "with the daemon", &through));
    found.extend(unmet(case, "to the CLI alone", &alone));
    if case.is_hopeless() && !through.is_bounded() {
        found.push(format!("{} upstream attempts in {:?}", through.attempts, through.took));
    }
    found.extend(strayed(case, &alone, &through));
    let broken: Vec<_> = through
        .violations
        .difference(&alone.violations)
        .filter(|rule| !(numbers(version) < numbers("0.149.0") && rule.contains(OLD_NAME)))
        .collect();
    if !broken.is_empty() {
        found.push(format!("upstream's rules were broken: {broken:?}"));
    }
    found
}

/// Faults that never applied in a run which has them.
fn unmet(case: &Case, run: &str, shown: &Shown) -> Vec<String> {
    let scripts = case.faults.iter().zip(&shown.met);
    scripts
        .filter(|(script, met)| script.sure && !**met)
        .map(|(script, _met)| {
            format!("the fault of {:?} never applied {run}: {:?}", script.route, shown.asked)
        })
        .collect()
}

/// How turns went when that is not by the transport of the case.
fn strayed(case: &Case, alone: &Shown, through: &Shown) -> Option<String> {
    let strayed = match case.wire {
        Wire::Http => alone.frames + through.frames > 0,
        // The daemon may go over HTTP then; but where a handshake is refused for once, it comes about as
        // it does for the CLI alone.
        Wire::Ws if case.may_do_without() => {
            matches!(case.expect, Expect::Same) && alone.frames > 0 && through.frames == 0
        },
        Wire::Ws => {
            let fell_back = through.posts > 0 && alone.posts == 0;
            alone.frames == 0 || through.frames == 0 || fell_back
        },
    };
    strayed.then(|| {
        let [alone, through] = [alone, through].map(|it| (it.frames, it.posts));
        format!(
            "the wrong transport, frames and POSTs: {alone:?} alone, {through:?} with the daemon"
        )
    })
}

/// What older versions call their session, over HTTP as well; the simulated upstream knows the newest.
const OLD_NAME: &str = "header `session_id` is none the CLI sends";

/// What the CLI sends by its way of signing in, and what it is.
const BY_LOGIN: [(&str, &str); 1] = [(
    "guardian_credits_requested",
    "asked for with a login from `auth.json`, not with a token from the environment",
)];

fn of_anyone(sent: &[String]) -> Vec<String> {
    sent.iter()
        .filter(|line| !BY_LOGIN.iter().any(|(part, _)| line.contains(part)))
        .cloned()
        .collect()
}

fn text(codes: &[i32]) -> Vec<String> {
    codes.iter().map(|code| format!("exit {code}")).collect()
}

/// The lines in which two differ, each from shortly before its first difference.
fn lines(what: &str, alone: &[String], through: &[String]) -> Option<String> {
    if alone == through {
        return None;
    }
    let mut out = format!("{what}:");
    let mut shown = 0;
    for at in 0..alone.len().max(through.len()) {
        let (left, right) = (alone.get(at), through.get(at));
        if left == right {
            continue;
        }
        shown += 1;
        if shown > MAX_LINES {
            out.push_str("\n  …");
            break;
        }
        let pair = [left, right].map(|it| it.map_or("", String::as_str));
        let same = pair[0].chars().zip(pair[1].chars()).take_while(|(a, b)| a == b).count();
        for (sign, side, there) in [("-", pair[0], left.is_some()), ("+", pair[1], right.is_some())]
        {
            if there {
                let part: String = side.chars().skip(same.saturating_sub(80)).take(300).collect();
                out.extend(["\n", &format!("  {at:>4} {sign} {part}")]);
            }
        }
    }
    Some(out)
}

fn log(version: &str, alone: &Shown, through: &Shown) -> Option<String> {
    let unheard = |line: &str| {
        let here = UNHEARD.iter().filter(|(_, only, _)| only.is_none_or(|one| one == version));
        here.map(|(part, ..)| part).any(|part| line.contains(part))
    };
    let of =
        |shown: &Shown| shown.log.iter().filter(|line| !unheard(line)).cloned().collect::<Vec<_>>();
    lines("log", &of(alone), &of(through))
}

fn files(alone: &Shown, through: &Shown) -> Vec<String> {
    let names = |shown: &Shown| shown.files.keys().cloned().collect::<Vec<_>>();
    let mut found: Vec<_> = lines("files", &names(alone), &names(through)).into_iter().collect();
    for (name, content) in &alone.files {
        if let Some(other) = through.files.get(name) {
            found.extend(lines(name, content, other));
        }
    }
    found
}
