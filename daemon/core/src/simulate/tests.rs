//! The week's own promises, and what the default has to be better than. What is printed here is the
//! table of `docs/choosing.md`.

use super::*;
use crate::strategy::Strategy;
use proptest::prelude::*;

const BALANCED: Contender = Contender::Ours(Strategy::Balanced);

fn print(report: &Report) {
    println!(
        "{:<26} served {:>6} refused {:>6} wasted {:>5.1} % re-read {:>5.1} % cached {:>5.1} % switches {:>6}",
        report.rule,
        report.served,
        report.refused,
        report.wasted,
        report.reread,
        report.cached,
        report.switches
    );
}

/// The acceptance of the default strategy: at least as much served as the best rule of the other
/// programs, less of the quota lost at resets than that rule loses, and the prompt cache kept.
fn holds(workload: Workload, accounts: usize) {
    let traffic = Traffic::week(workload, accounts, 1);
    let scene = Scene { accounts, seed: 1, limits: true };
    let alone = alone(&traffic, 1);
    let ours = run(scene, &traffic, BALANCED);
    let peers = Contender::PEERS.map(|peer| run(scene, &traffic, peer));
    println!("{} · {accounts} accounts · {} requests", workload.name(), traffic.asks.len());
    [&alone, &ours].into_iter().chain(&peers).for_each(print);
    let best = peers
        .iter()
        .max_by(|a, b| a.served.cmp(&b.served).then(b.wasted.total_cmp(&a.wasted)))
        .expect("there are some");
    assert!(ours.served >= best.served, "{} served {}", best.rule, best.served);
    // Quota is lost at resets, and by reading anew what another account had cached.
    let lost = |report: &Report| report.wasted + report.reread;
    assert!(lost(&ours) < lost(best), "{} lost {}", best.rule, lost(best));
    assert!(ours.wasted < best.wasted, "{} wasted {}", best.rule, best.wasted);
    assert!(ours.cached >= 0.95 * alone.cached, "{} of {}", ours.cached, alone.cached);
}

#[test]
fn balanced_serves_at_least_as_much_as_the_best_other_rule_in_a_steady_week() {
    [3, 8, 20].into_iter().for_each(|accounts| holds(Workload::Steady, accounts));
}

#[test]
fn balanced_serves_at_least_as_much_as_the_best_other_rule_in_a_bursty_week() {
    [3, 8, 20].into_iter().for_each(|accounts| holds(Workload::Bursty, accounts));
}

#[test]
fn balanced_serves_at_least_as_much_as_the_best_other_rule_in_a_two_timezone_week() {
    [3, 8, 20].into_iter().for_each(|accounts| holds(Workload::TwoTimezone, accounts));
}

#[test]
fn over_a_day_of_30_threads_the_cached_share_is_that_of_one_account() {
    let traffic = Traffic::generate(Workload::TwoTimezone, 1, 30, 1);
    let alone = alone(&traffic, 1);
    for accounts in [3, 8] {
        // Limits as for a week of such days.
        let week = Traffic { demand: traffic.demand * 7, ..traffic.clone() };
        let scene = Scene { accounts, seed: 1, limits: true };
        let ours = run(scene, &week, BALANCED);
        let rotated = run(scene, &week, Contender::PeerRoundRobin);
        [&alone, &ours, &rotated].into_iter().for_each(print);
        assert!(ours.cached >= alone.cached - 2.0, "{} of {}", ours.cached, alone.cached);
        assert!(ours.cached > rotated.cached + 2.0, "plain round robin has {}", rotated.cached);
        assert_eq!(ours.refused, 0);
    }
}

#[test]
fn nothing_is_left_to_chance_and_nothing_is_lost() {
    for workload in Workload::ALL {
        assert_eq!(Workload::of(workload.name()), Some(workload));
        let traffic = Traffic::week(workload, 2, 7);
        assert_eq!(traffic, Traffic::week(workload, 2, 7));
        let scene = Scene { accounts: 2, seed: 7, limits: true };
        for contender in Strategy::ALL.map(Contender::Ours).into_iter().chain(Contender::PEERS) {
            assert_eq!(Contender::of(&contender.name()), Some(contender));
            let report = run(scene, &traffic, contender);
            assert_eq!(report.served + report.refused, traffic.asks.len() as u64, "{report:?}");
            let slots =
                report.slots.iter().fold((0, 0), |sum, slot| (sum.0 + slot.0, sum.1 + slot.1));
            assert_eq!(slots, (report.served, report.refused));
            assert!(
                (0.0..=100.0).contains(&report.wasted) && (0.0..=100.0).contains(&report.cached)
            );
        }
        assert_eq!(run(scene, &traffic, BALANCED), run(scene, &traffic, BALANCED));
    }
}

#[test]
fn no_thread_of_ours_moves_from_an_account_that_could_serve_it() {
    let traffic = Traffic::week(Workload::Bursty, 8, 3);
    let scene = Scene { accounts: 8, seed: 3, limits: true };
    for strategy in Strategy::ALL {
        let report = run(scene, &traffic, Contender::Ours(strategy));
        assert_eq!(report.moved_freely, 0, "{report:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_text_is_a_week_or_a_line_that_is_none(text in "([{}\":,a-z0-9 .-]{0,40}\n){0,6}") {
        match Traffic::recorded(&text) {
            Ok(traffic) => prop_assert!(!traffic.asks.is_empty()),
            Err(why) => prop_assert!(why.starts_with("line ") || why.starts_with("it holds")),
        }
    }
}
