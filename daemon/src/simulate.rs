//! `cmad simulate`: a week of threads over accounts that are none, by several rules, as a table.
//!
//! It starts no daemon and changes nothing: of a root it reads the ledger, when it is asked to. It is
//! here because the pool is here: what it replays is the choice that the daemon makes.

use crate::{fault::Fault, ledger};
use cma_core::{
    simulate::{Contender, Made, Report, Scene, Traffic, Workload, alone, run},
    strategy::Strategy,
};
use cma_proto::error::ErrorCode;
use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// A recorded week of more requests than this is not one person's.
const MAX_TRACE: u64 = 256 * 1024 * 1024;
/// Milliseconds of the week that is replayed from a ledger.
const WEEK: u64 = 7 * 24 * 3_600_000;
/// Requests of it, at most: a hundred a minute for all of it.
const MAX_ROWS: usize = 1_000_000;
/// More accounts than anybody has, and than the simulation is quick with.
const MAX_ACCOUNTS: usize = 500;
/// What a slot's height is drawn with, lowest first.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is to be simulated.
#[derive(Debug, PartialEq)]
struct Asked {
    contenders: Vec<Contender>,
    accounts: usize,
    workload: Workload,
    trace: Option<PathBuf>,
    /// A root whose ledger is replayed.
    ledger: Option<PathBuf>,
    seed: u64,
    json: bool,
}

/// Runs what the arguments ask for and gives what is to be printed.
///
/// # Errors
/// [`ErrorCode::BadRequest`] for arguments, [`ErrorCode::NotFound`] for a trace that can't be read.
pub(crate) fn simulate(args: impl Iterator<Item = OsString>) -> Result<String, Fault> {
    let asked = read(args)?;
    let (traffic, what) = match (&asked.trace, &asked.ledger) {
        (Some(path), _) => (recorded(path)?, path.display().to_string()),
        (None, Some(root)) => (kept(root)?, "your last seven days".to_owned()),
        (None, None) => (
            Traffic::week(asked.workload, asked.accounts, asked.seed),
            asked.workload.name().to_owned(),
        ),
    };
    let scene = Scene { accounts: asked.accounts, seed: asked.seed, limits: true };
    let alone = alone(&traffic, asked.seed);
    let reports: Vec<Report> =
        asked.contenders.iter().map(|contender| run(scene, &traffic, *contender)).collect();
    if asked.json {
        let all: Vec<_> = reports.iter().map(Report::json).collect();
        let answer = serde_json::json!({
            "schema": 1,
            "workload": what,
            "accounts": asked.accounts,
            "seed": asked.seed,
            "requests": traffic.asks.len(),
            "alone": alone.json(),
            "rules": all,
        });
        return Ok(answer.to_string());
    }
    let mut text = format!(
        "{what} · {} requests in {} days · {} accounts · seed {}\n\n",
        traffic.asks.len(),
        traffic.days(),
        asked.accounts,
        asked.seed
    );
    text += &table(&reports, &alone);
    text.push('\n');
    text += &picture(&reports);
    Ok(text)
}

/// A week that somebody recorded.
fn recorded(path: &Path) -> Result<Traffic, Fault> {
    let bad = |what: String| {
        Fault::new(
            ErrorCode::NotFound,
            format!("`{}` can't be replayed: {what}", path.display()),
            "each line is a JSON object with `at` (seconds), `thread`, `input` and `output`",
        )
    };
    let size = fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
    if size > MAX_TRACE {
        return Err(bad("it is too large".to_owned()));
    }
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    Traffic::recorded(&text).map_err(bad)
}

/// The last week of a root's ledger, as far as its answers told their tokens. A daemon may write to
/// it meanwhile.
fn kept(root: &Path) -> Result<Traffic, Fault> {
    let mut made = Vec::new();
    ledger::each(root, ledger::now_ms().saturating_sub(WEEK), |row| {
        let Some(usage) = row.usage.filter(|_told| made.len() < MAX_ROWS) else { return };
        // A request without a thread is one of its own.
        let alone = || format!("{}-{}", row.id.0, row.id.1).into();
        made.push(Made {
            at: row.at_ms,
            thread: row.thread.clone().unwrap_or_else(alone),
            input: usage.input,
            output: usage.output,
            lasts: row.total_ms,
        });
    })?;
    Traffic::made(made).ok_or_else(|| {
        Fault::new(
            ErrorCode::NotFound,
            "the ledger has no answered request of the last seven days",
            "use the pool for a while, or simulate a generated week with `cmactl simulate`",
        )
    })
}

fn read(args: impl Iterator<Item = OsString>) -> Result<Asked, Fault> {
    let bad = |what: String, hint: &str| Fault::new(ErrorCode::BadRequest, what, hint);
    let mut asked = Asked {
        contenders: Vec::new(),
        accounts: 3,
        workload: Workload::Steady,
        trace: None,
        ledger: None,
        seed: 1,
        json: false,
    };
    let mut args = args;
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        if name == "--json" {
            asked.json = true;
            continue;
        }
        let Some(value) = args.next() else {
            return Err(bad(
                format!("`{name}` says nothing alone"),
                "run `cmactl simulate --help`",
            ));
        };
        let word = value.to_string_lossy().into_owned();
        let number = || word.parse::<u64>().ok();
        match name.as_str() {
            "--strategy" => {
                let one = Contender::of(&word).ok_or_else(|| {
                    let names: Vec<String> = all().into_iter().map(Contender::name).collect();
                    let hint = format!("choose from {}", names.join(", "));
                    bad(format!("there is no rule `{word}`"), &hint)
                })?;
                asked.contenders.push(one);
            },
            "--accounts" => {
                let count = number().and_then(|count| usize::try_from(count).ok());
                asked.accounts =
                    count.filter(|count| (1..=MAX_ACCOUNTS).contains(count)).ok_or_else(|| {
                        bad(format!("`{word}` is no number of accounts"), "from 1 to 500")
                    })?;
            },
            "--workload" => {
                let names = Workload::ALL.map(Workload::name).join(", ");
                asked.workload = Workload::of(&word)
                    .ok_or_else(|| bad(format!("there is no workload `{word}`"), &names))?;
            },
            "--seed" => {
                asked.seed =
                    number().ok_or_else(|| bad(format!("`{word}` is no seed"), "a number"))?;
            },
            "--trace" => asked.trace = Some(value.into()),
            "--from-ledger" => asked.ledger = Some(value.into()),
            _ => {
                return Err(bad(format!("`{name}` is unknown"), "run `cmactl simulate --help`"));
            },
        }
    }
    if asked.contenders.is_empty() {
        asked.contenders = all();
    }
    Ok(asked)
}

fn all() -> Vec<Contender> {
    Strategy::ALL.map(Contender::Ours).into_iter().chain(Contender::PEERS).collect()
}

fn table(reports: &[Report], alone: &Report) -> String {
    let mut text = format!(
        "{:<24} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8}\n",
        "rule", "served", "refused", "failovers", "wasted", "re-read", "cached", "switches"
    );
    for one in reports.iter().chain([alone]) {
        // Writing to a String can't fail.
        let _infallible = writeln!(
            text,
            "{:<24} {:>8} {:>8} {:>9} {:>6.1} % {:>6.1} % {:>6.1} % {:>8}",
            one.rule,
            one.served,
            one.refused,
            one.failovers,
            one.wasted,
            one.reread,
            one.cached,
            one.switches
        );
    }
    text += "\nwasted: weekly quota that ended unused; re-read: quota spent on what another account had \
             cached\n";
    text
}

/// Served requests over the week, a sign for six hours; a slot in which some were refused is marked
/// below.
fn picture(reports: &[Report]) -> String {
    let most =
        reports.iter().flat_map(|one| &one.slots).map(|slot| slot.0).max().unwrap_or(0).max(1);
    let mut text = String::from("served in six hours each (x: some were refused)\n");
    for one in reports {
        let sign = |served: u64| {
            let at = usize::try_from(served * 7 / most).unwrap_or(0);
            if served == 0 { ' ' } else { HEIGHTS.get(at).copied().unwrap_or('█') }
        };
        let served: String = one.slots.iter().map(|slot| sign(slot.0)).collect();
        let refused: String =
            one.slots.iter().map(|slot| if slot.1 > 0 { 'x' } else { ' ' }).collect();
        // Writing to a String can't fail.
        let _infallible = writeln!(text, "{:<24} {}", one.rule, served.trim_end());
        if !refused.trim().is_empty() {
            let _infallible = writeln!(text, "{:<24} {}", "", refused.trim_end());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split_whitespace().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn the_same_seed_gives_the_same_week_and_another_gives_another() {
        let line = "--strategy balanced --strategy peer:round-robin --accounts 3 --json";
        let one = simulate(words(line)).unwrap();
        assert_eq!(simulate(words(line)), Ok(one.clone()));
        assert_ne!(simulate(words(&format!("{line} --seed 2"))), Ok(one.clone()));
        let json: serde_json::Value = serde_json::from_str(&one).unwrap();
        assert_eq!(json["rules"][1]["rule"], "peer:round-robin");
        let sum = |rule: usize| {
            let of = |name: &str| json["rules"][rule][name].as_u64().unwrap();
            of("served") + of("refused")
        };
        assert_eq!(Some(sum(0)), json["requests"].as_u64());
        assert_eq!(sum(0), sum(1), "every request is served or refused");
    }

    #[test]
    fn a_recorded_week_is_replayed_and_nonsense_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("week.jsonl");
        let line = |at: u64, thread: &str| {
            format!(
                "{{\"at\": {at}, \"thread\": \"{thread}\", \"input\": 20000, \"output\": 500}}\n"
            )
        };
        fs::write(
            &path,
            line(1_800_000_000, "a") + &line(1_800_000_060, "a") + &line(1_800_000_090, "b"),
        )
        .unwrap();
        let said =
            simulate(words(&format!("--trace {} --strategy balanced", path.display()))).unwrap();
        assert!(said.contains("3 requests") && said.contains("balanced"), "{said}");
        fs::write(&path, line(1, "a") + "{\"at\": 2}\n").unwrap();
        let fault = simulate(words(&format!("--trace {}", path.display()))).unwrap_err();
        assert!(fault.refusal.message.contains("line 2"), "{fault}");
        let empty = simulate(words(&format!("--from-ledger {}", dir.path().display())));
        assert_eq!(empty.unwrap_err().code(), ErrorCode::NotFound);
        ledger::fill(dir.path(), 300).unwrap();
        let line = format!("--from-ledger {} --strategy balanced --json", dir.path().display());
        let json: serde_json::Value =
            serde_json::from_str(&simulate(words(&line)).unwrap()).unwrap();
        let of = |name: &str| json["rules"][0][name].as_u64().unwrap();
        assert_eq!((json["requests"].as_u64(), of("served") + of("refused")), (Some(300), 300));
        for bad in [
            "--strategy fastest",
            "--accounts 0",
            "--workload lazy",
            "--seed x",
            "--what 1",
            "--seed",
        ] {
            assert_eq!(simulate(words(bad)).unwrap_err().code(), ErrorCode::BadRequest, "{bad}");
        }
    }
}
