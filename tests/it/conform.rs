//! The official CLI with the daemon in between, held against the CLI alone: same text, same exit
//! status, same files but ids and times.
//!
//! Each case is one row of what upstream may do. Its two runs are on machines of their own, with the
//! same CLI, the same script and the same simulated upstream. `docs/conformance.md` says how to read
//! the table and what is replaced before the two are compared.
//!
//! `CMA_CONFORM=all` runs the whole matrix, `CMA_CONFORM_ONLY=WORD[,WORD]` the cases and versions that
//! contain a word of each comma-separated kind.

mod case;
mod http;
mod judge;
mod kinds;
mod normal;
mod run;
mod sent;
mod surface;
mod ws;

use case::{Case, Expect, VERSIONS};
use cma_tests::world::real_codex;
use judge::{Judged, Verdict};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Those of every commit: broad, and without the CLI's long rounds of retries.
const TWENTY: [&str; 20] = [
    "http/401x1/same",
    "http/401x1/hidden",
    "http/400/same_for_two",
    "http/429usage/same_for_two",
    "http/429usage/hidden",
    "http/429ul_owner_credits/same",
    "http/429x1retryafter/hidden",
    "http/500all/hidden",
    "http/drop1/same",
    "http/rf_server_error_x1/healed",
    "http/rf_context/same_for_two",
    "http/dropmid1/same",
    "http/do_tool/same",
    "http/do_compaction/hidden",
    "ws/do_resume/hidden",
    "ws/do_app_server/same",
    "ws/fr_drop/healed",
    "ws/fr_connlimit/healed",
    "ws/fr_usage429/hidden",
    "ws/up500/healed",
];
/// Time for them, as in the acceptance of the suite.
const TWENTY_LIMIT: Duration = Duration::from_secs(240);
/// The least number of cases.
const ROWS: usize = 120;

/// Rows by what is said of them.
type Rows = BTreeMap<&'static str, Vec<String>>;

fn cases() -> Vec<Case> {
    let mut all = http::heads();
    all.extend(http::streams());
    all.extend(ws::handshakes());
    all.extend(http::failures());
    all.extend(http::whole());
    all.extend(ws::frames());
    all.extend(ws::lost());
    all.extend(kinds::all());
    all.extend(surface::quota());
    all.extend(surface::aux());
    all
}

/// Runs cases some at a time: most of their time is waiting.
fn judge_all(work: &[(&Case, &'static str)]) -> Vec<Judged> {
    let next = AtomicUsize::new(0);
    let threads = std::env::var("CMA_CONFORM_JOBS").ok().and_then(|it| it.parse().ok());
    let threads = threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(4, |it| it.get() * 4));
    let mut all: Vec<Judged> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut judged = Vec::new();
                    while let Some((case, version)) = work.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        judged.push(judge::judge(case, version));
                    }
                    judged
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    all.sort_by(|a, b| (&a.case, a.version).cmp(&(&b.case, b.version)));
    all
}

/// Prints what differs and the table; the number of what differs.
fn report(all: &[Judged], begun: Instant) -> usize {
    for judged in all {
        if let Verdict::Differs(how) = &judged.verdict {
            println!("=== {} {}\n{how}", judged.case, judged.version);
        }
    }
    let names: BTreeSet<_> = all.iter().map(|judged| judged.case.as_str()).collect();
    println!("{:<44}{}", "case", VERSIONS.map(|it| format!("{it:>9}")).concat());
    for name in names {
        let cell = |version| {
            let found = all.iter().find(|it| it.case == name && it.version == version);
            found.map_or("", |judged| match judged.verdict {
                Verdict::Ok => "ok",
                Verdict::Differs(_) => "DIFFERS",
                Verdict::Cannot(_) => "can't",
            })
        };
        println!("{name:<44}{}", VERSIONS.map(|it| format!("{:>9}", cell(it))).concat());
    }
    let reasons: BTreeSet<_> = all
        .iter()
        .filter_map(|judged| match judged.verdict {
            Verdict::Cannot(why) => {
                Some(format!("can't: {} {}: {why}", judged.version, judged.case))
            },
            Verdict::Ok | Verdict::Differs(_) => None,
        })
        .collect();
    reasons.iter().for_each(|reason| println!("{reason}"));
    let count = |is: fn(&Verdict) -> bool| all.iter().filter(|it| is(&it.verdict)).count();
    let differ = count(|it| matches!(it, Verdict::Differs(_)));
    println!(
        "{} ok, {differ} differ, {} can't, {} s",
        count(|it| matches!(it, Verdict::Ok)),
        count(|it| matches!(it, Verdict::Cannot(_))),
        begun.elapsed().as_secs()
    );
    differ
}

/// What is asked for by `CMA_CONFORM_ONLY`.
fn chosen<'a>(all: &'a [Case], versions: &[&'static str]) -> Vec<(&'a Case, &'static str)> {
    let only = std::env::var("CMA_CONFORM_ONLY").unwrap_or_default();
    let words: Vec<_> = only.split(',').filter(|word| !word.is_empty()).collect();
    let (numbers, names): (Vec<&str>, Vec<&str>) =
        words.iter().partition(|word| word.starts_with("0."));
    let mut work = Vec::new();
    // Slow ones are of all versions: those of a version go last, so that all kinds overlap.
    for version in versions.iter().filter(|it| numbers.is_empty() || numbers.contains(it)) {
        for case in all
            .iter()
            .filter(|it| names.is_empty() || names.iter().any(|word| it.name.contains(word)))
        {
            work.push((case, *version));
        }
    }
    work
}

/// What is said of the cases holds of them: names, number, and that each of those whose expectation is
/// our own words stands in the documentation with its reason and its text.
#[test]
fn the_table_is_whole() {
    let all = cases();
    let names: BTreeSet<_> = all.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "each case has a name of its own");
    assert!(all.len() >= ROWS, "{}", all.len());
    for name in TWENTY {
        assert!(names.contains(name), "{name}");
    }
    for case in &all {
        assert!(case.faults_at < case.steps.len(), "{}: its faults are never scripted", case.name);
    }
    let (mut reasons, mut texts) = (Rows::new(), Rows::new());
    for case in &all {
        if let Expect::Ours { says, why } = case.expect {
            assert!(!says.is_empty(), "{}: any words would do", case.name);
            let (row, _ours) = case.name.rsplit_once('/').unwrap();
            reasons.entry(why).or_default().push(format!("`{row}`"));
            texts.entry(says).or_default().push(format!("`{row}`"));
        }
    }
    let docs = include_str!("../../docs/conformance.md");
    let reasons = reasons.iter().map(|(why, rows)| format!("| {} | {why} |", rows.join(" ")));
    let texts = texts.iter().map(|(says, rows)| format!("| {} | “{says}” |", rows.join(" ")));
    let missing: Vec<_> = reasons.chain(texts).filter(|line| !docs.contains(line)).collect();
    assert!(missing.is_empty(), "not in docs/conformance.md:\n{}", missing.join("\n"));
}

/// Those of every commit, with the newest version.
#[test]
fn twenty_cases_of_the_newest_version() {
    if real_codex(VERSIONS[0]).is_none() {
        return;
    }
    let all = cases();
    let begun = Instant::now();
    let work: Vec<_> = all
        .iter()
        .filter(|case| TWENTY.contains(&case.name.as_str()))
        .map(|case| (case, VERSIONS[0]))
        .collect();
    let judged = judge_all(&work);
    assert_eq!(report(&judged, begun), 0, "see above");
    assert!(begun.elapsed() < TWENTY_LIMIT, "{:?}", begun.elapsed());
}

#[test]
fn the_whole_matrix() {
    let all = cases();
    if std::env::var("CMA_CONFORM").as_deref() != Ok("all") {
        eprintln!("skipped: the whole matrix runs with CMA_CONFORM=all (docs/conformance.md)");
        return;
    }
    let begun = Instant::now();
    let work = chosen(&all, &VERSIONS);
    assert!(!work.is_empty(), "`CMA_CONFORM_ONLY` names nothing");
    let judged = judge_all(&work);
    assert_eq!(report(&judged, begun), 0, "see above");
}
