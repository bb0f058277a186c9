//! Rows survive what can happen to their files, and a million of them are added up at once.

use super::{
    row::{Client, Ended},
    segment::Segment,
    table::{Asked, By, Table},
    *,
};
use cma_core::usage::Usage;
use proptest::prelude::*;
use std::{fs, time::Instant};

fn caps(bytes: u64) -> Caps {
    Caps { days: 92, bytes }
}

fn row(number: u64) -> Row {
    let name = |what: &str, of: u64| Some(format!("{what}{}", number % of).into());
    let usage = Usage { input: 1000 + number % 7, cached: 400, output: 50, reasoning: 20 };
    Row {
        at_ms: 1_000_000 + number,
        id: (7, number),
        total_ms: 900,
        first_ms: (!number.is_multiple_of(3)).then_some(40),
        status: 200,
        attempts: 1,
        ended: if number.is_multiple_of(10) { Ended::Cut } else { Ended::Complete },
        client: Client::Cli,
        token: if number.is_multiple_of(6) { name("token-", 3) } else { None },
        account: Some(AccountId::from_written(&format!("a{}", number % 4))),
        project: if number.is_multiple_of(5) { None } else { name("p", 9) },
        model: name("gpt-5.", 3),
        thread: name("thread-", 100),
        usage: (!number.is_multiple_of(10)).then_some(usage),
        cost: prices::Cost { low: 10, high: 12, priced: false },
    }
}

fn rows(numbers: std::ops::Range<u64>) -> Vec<Row> {
    numbers.map(row).collect()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &Path, caps: Caps, batches: &[Vec<Row>]) -> u64 {
    let mut writer = Writer::new(folder.to_owned(), caps);
    writer.look().unwrap();
    batches.iter().map(|rows| writer.write(rows)).sum()
}

fn all(folder: &Path) -> Vec<Row> {
    let mut found = Vec::new();
    table::each(folder, (0, u64::MAX), |row| found.push(row.clone())).unwrap();
    found
}

fn sums(folder: &Path, by: By) -> Table {
    table::table(folder, &Asked { since: 0, until: u64::MAX, by, days: Vec::new() }).unwrap()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let numbers = segment::numbers(folder).unwrap();
    numbers.into_iter().map(|number| segment::path(folder, number)).collect()
}

#[test]
fn what_is_written_is_read_and_a_start_goes_on() {
    let dir = folder();
    let folder = dir.path().join("usage");
    assert_eq!(write(&folder, caps(1 << 20), &[rows(0..3), rows(3..50)]), 0);
    assert_eq!(write(&folder, caps(1 << 20), &[rows(50..90)]), 0);
    assert_eq!(all(&folder), rows(0..90));
    assert_eq!(segments(&folder).len(), 1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&segments(&folder)[0])), (0o700, 0o600));
    }
}

#[test]
fn a_segment_torn_at_any_byte_keeps_its_whole_blocks_and_takes_new_rows() {
    let dir = folder();
    let folder = dir.path().join("usage");
    let batches = [rows(0..2), rows(2..3), rows(3..7)];
    write(&folder, caps(1 << 20), &batches);
    let path = segments(&folder).remove(0);
    let whole = fs::read(&path).unwrap();
    let mut seen = [0_usize; 8];
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let before = all(&folder);
        assert!([0, 2, 3, 7].contains(&before.len()), "cut at {cut}: {} rows", before.len());
        assert_eq!(before, rows(0..before.len() as u64), "cut at {cut}");
        seen[before.len()] += 1;
        assert_eq!(write(&folder, caps(1 << 20), &[rows(100..103)]), 0, "cut at {cut}");
        let after = all(&folder);
        assert_eq!(after, [before, rows(100..103)].concat(), "cut at {cut}");
        assert_eq!(sums(&folder, By::Model).damaged, 0, "cut at {cut}");
        for path in segments(&folder) {
            fs::remove_file(path).unwrap();
        }
    }
    assert!(seen[0] > 0 && seen[2] > 0 && seen[3] > 0 && seen[7] == 1);
}

#[test]
fn a_damaged_block_is_passed_over_and_the_rest_counts() {
    let dir = folder();
    let folder = dir.path().join("usage");
    write(&folder, caps(1 << 20), &[rows(0..10), rows(10..20), rows(20..30)]);
    let path = segments(&folder).remove(0);
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5a;
        fs::write(&path, &bytes).unwrap();
        let found = all(&folder);
        assert!(found.len() < 30, "byte {at}");
        // Every row that is read is one that was written; names may be missing, none is another's.
        for one in &found {
            let wanted = row(one.id.1);
            assert_eq!(
                (one.at_ms, one.usage, one.ended),
                (wanted.at_ms, wanted.usage, wanted.ended)
            );
            let names = one.names().into_iter().zip(wanted.names());
            assert!(names.into_iter().all(|(is, was)| is.is_none() || is == was), "byte {at}");
        }
        write(&folder, caps(1 << 20), &[rows(100..103)]);
        assert_eq!(all(&folder)[found.len()..], rows(100..103), "byte {at}");
        let newer = segments(&folder);
        newer.iter().skip(1).for_each(|path| fs::remove_file(path).unwrap());
    }
}

#[test]
fn the_oldest_segments_go_by_size_and_by_age() {
    let dir = folder();
    let folder = dir.path().join("usage");
    let limit = 64 * 1024;
    let batches: Vec<_> = (0..200).map(|batch| rows(batch * 40..(batch + 1) * 40)).collect();
    assert_eq!(write(&folder, caps(limit), &batches), 0);
    let bytes: u64 = segments(&folder).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes <= limit, "{bytes}");
    let found = all(&folder);
    let first = found[0].id.1;
    assert!(first > 0 && found.len() > 300, "{} rows", found.len());
    assert_eq!(found, rows(first..8000), "the newest are there, without a gap");
    let old = std::time::SystemTime::now() - Duration::from_secs(8 * 86_400);
    for path in segments(&folder).iter().take(2) {
        fs::File::options().append(true).open(path).unwrap().set_modified(old).unwrap();
    }
    let before = segments(&folder).len();
    write(&folder, Caps { days: 7, bytes: limit }, &[]);
    assert_eq!(segments(&folder).len(), before - 2);
}

#[test]
fn sums_are_those_of_the_rows_by_every_group() {
    let dir = folder();
    let folder = dir.path().join("usage");
    // Several segments: each has its own numbers for the names.
    write(&folder, caps(64 * 1024), &[rows(0..70), rows(70..90), rows(90..170), rows(170..300)]);
    assert!(segments(&folder).len() > 1);
    let kept = all(&folder);
    let word = |name: Option<&str>| name.unwrap_or_default().to_owned();
    for by in [By::Account, By::Project, By::Model, By::Thread, By::Outcome, By::Client] {
        let table = sums(&folder, by);
        let key = |row: &Row| match by {
            By::Account => row.account.as_ref().unwrap().to_string(),
            By::Project => word(row.project.as_deref()),
            By::Model => word(row.model.as_deref()),
            By::Thread => word(row.thread.as_deref()),
            By::Outcome => row.ended.word().to_owned(),
            By::Client => row
                .token
                .as_ref()
                .map_or_else(|| row.client.word().to_owned(), |name| format!("token:{name}")),
            By::Day => String::new(),
        };
        let mut requests = 0;
        for (name, sums) in &table.groups {
            let of: Vec<_> = kept.iter().filter(|row| key(row) == *name).collect();
            assert_eq!(sums.requests(), of.len() as u64, "{by:?} {name}");
            let input: u64 = of.iter().filter_map(|row| row.usage).map(|usage| usage.input).sum();
            assert_eq!(sums.input, input, "{by:?} {name}");
            let told = of.iter().filter(|row| row.usage.is_some()).count();
            assert_eq!(sums.told, told as u64, "{by:?} {name}");
            requests += sums.requests();
        }
        assert_eq!((requests, table.total.requests()), (300, 300), "{by:?}");
        assert_eq!((table.total.low, table.total.high), (3000, 3600));
    }
    let days = vec![1_000_000, 1_000_100, 1_000_200];
    let asked = Asked { since: 1_000_050, until: 1_000_250, by: By::Day, days };
    let table = table::table(&folder, &asked).unwrap();
    let shown: Vec<_> =
        table.groups.iter().map(|(day, sums)| (day.as_str(), sums.requests())).collect();
    assert_eq!(shown, [("1000000", 50), ("1000100", 100), ("1000200", 50)]);
    let newest = table::rows(&folder, 0, u64::MAX, 2).unwrap();
    assert_eq!(newest, [row(299), row(298)]);
}

#[test]
fn the_queue_is_bounded_and_nobody_waits_for_it() {
    let dir = folder();
    // Nobody writes, as when the disk hangs.
    let ledger = Ledger(Arc::new(Shared::new(dir.path(), true)));
    let more = 1_000;
    let begun = Instant::now();
    for number in 0..QUEUE as u64 + more {
        ledger.push(row(number));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let full = Health { dropped: more, queued: QUEUE as u64, ..Health::default() };
    assert_eq!(ledger.health(), full);
    // The disk is back: what waited is written.
    let mut writer = Writer::new(ledger.0.folder.clone(), caps(1 << 26));
    writer.look().unwrap();
    ledger.0.queue.lock().closed = true;
    writer::run(&ledger.0, writer);
    assert_eq!(ledger.health().written, QUEUE as u64);
    assert_eq!(sums(&ledger.0.folder, By::Model).total.requests(), QUEUE as u64);
    ledger.push(row(0));
    assert_eq!(ledger.health().dropped, more + 1, "after its end a row is dropped");
}

#[test]
fn rows_are_written_within_a_tenth_of_a_second() {
    let dir = folder();
    let ledger = Ledger::start(dir.path(), caps(1 << 20)).unwrap();
    ledger.flush();
    let mut slowest = Duration::ZERO;
    for number in 0..20 {
        let begun = Instant::now();
        ledger.push(row(number));
        while ledger.health().written <= number {
            std::thread::yield_now();
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        slowest = slowest.max(begun.elapsed());
    }
    // The rule is 100 ms; a machine that is busy with other tests gets some more.
    assert!(slowest < Duration::from_millis(400), "{slowest:?}");
    ledger.close();
}

#[test]
fn a_ledger_that_is_off_keeps_nothing_and_one_without_a_disk_counts_its_losses() {
    let dir = folder();
    let off = Ledger::start(dir.path(), Caps { days: 0, bytes: 1 << 20 }).unwrap();
    off.push(row(1));
    off.flush();
    assert_eq!(off.health(), Health::default());
    assert!(!dir.path().join("usage").exists());
    off.close();
    fs::write(dir.path().join("usage"), "a file where the folder should be").unwrap();
    let ledger = Ledger::start(dir.path(), caps(1 << 20)).unwrap();
    ledger.push(row(1));
    ledger.close();
    assert_eq!(ledger.health(), Health { lost: 1, failing: true, ..Health::default() });
}

#[test]
fn names_are_cut_at_a_character_and_numbers_at_their_largest() {
    let dir = folder();
    let path = dir.path();
    let long = Row {
        model: Some("ä".repeat(300).into()),
        usage: Some(Usage { input: u64::MAX, ..Usage::default() }),
        total_ms: u64::MAX,
        attempts: u32::MAX,
        ..row(1)
    };
    let mut segment = Segment::create(path, 1).unwrap();
    segment.append(&[long]).1.unwrap();
    let found = all(path).remove(0);
    assert_eq!(found.model.as_deref(), Some("ä".repeat(128).as_str()));
    assert_eq!(found.usage.unwrap().input, u64::from(u32::MAX));
    assert_eq!((found.total_ms, found.attempts), (u64::from(u32::MAX), u32::from(u16::MAX)));
}

/// The figures of docs/performance.md come from a release build of this.
#[test]
fn a_million_rows_are_added_up_at_once() {
    let count: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    let dir = folder();
    let folder = dir.path().join("usage");
    let mut writer = Writer::new(folder.clone(), caps(1 << 30));
    writer.look().unwrap();
    let begun = Instant::now();
    for first in (0..count).step_by(2000) {
        writer.write(&rows(first..first + 2000));
    }
    println!("{count} rows written in {:?}", begun.elapsed());
    for by in [By::Project, By::Thread, By::Model] {
        let mut took: Vec<_> = (0..5)
            .map(|_time| {
                let begun = Instant::now();
                assert_eq!(sums(&folder, by).total.requests(), count);
                begun.elapsed()
            })
            .collect();
        took.sort();
        println!("{count} rows by {by:?}: {:?}", took[2]);
        if !cfg!(debug_assertions) {
            assert!(took[2] < Duration::from_millis(100), "{took:?}");
        }
    }
}

/// Ten million requests in a release build (`cargo test --release -p cmad ledger`).
#[test]
fn the_cap_holds_under_any_number_of_requests() {
    let count: u64 = if cfg!(debug_assertions) { 200_000 } else { 10_000_000 };
    let limit = if cfg!(debug_assertions) { 4 << 20 } else { 256 << 20 };
    let dir = folder();
    let folder = dir.path().join("usage");
    let mut writer = Writer::new(folder.clone(), caps(limit));
    writer.look().unwrap();
    let mut most = 0;
    for first in (0..count).step_by(4000) {
        assert_eq!(writer.write(&rows(first..first + 4000)), 0);
        if first % 40_000 == 0 {
            let sizes = segments(&folder).into_iter().map(|path| fs::metadata(path).unwrap().len());
            most = most.max(sizes.sum::<u64>());
        }
    }
    println!("{count} requests, at most {most} bytes of {limit}");
    assert!(most <= limit && most > limit / 2, "{most} of {limit}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn any_bytes_are_a_segment_or_not(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        magic in any::<bool>(),
    ) {
        let mut file = if magic { b"CMAUSE01".to_vec() } else { Vec::new() };
        file.extend(bytes);
        segment::read(&file, |_row, _names| ());
    }

    #[test]
    fn any_batches_are_read_back(sizes in proptest::collection::vec(0..60_u64, 1..20)) {
        let dir = folder();
        let folder = dir.path().join("usage");
        let (mut next, mut batches) = (0, Vec::new());
        for size in sizes {
            batches.push(rows(next..next + size));
            next += size;
        }
        for batch in batches {
            // Each by a daemon of its own.
            prop_assert_eq!(write(&folder, caps(1 << 20), &[batch]), 0);
        }
        prop_assert_eq!(all(&folder), rows(0..next));
    }

    #[test]
    fn a_time_is_half_open(since in 0..400_u64, length in 0..400_u64) {
        let dir = folder();
        let folder = dir.path().join("usage");
        write(&folder, caps(1 << 20), &[rows(0..300)]);
        let (since, until) = (1_000_000 + since, 1_000_000 + since + length);
        let asked = Asked { since, until, by: By::Model, days: Vec::new() };
        let table = table::table(&folder, &asked).unwrap();
        let wanted = (0..300).filter(|n| (since..until).contains(&(1_000_000 + n))).count();
        prop_assert_eq!(table.total.requests(), wanted as u64);
        prop_assert_eq!(table.oldest, Some(1_000_000));
    }
}
