//! The straight path, and that the search at every scenario's end finds what it looks for.

use cma_tests::{
    sim::SimConfig,
    world::{World, real_codex},
};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

#[test]
fn a_turn_of_the_real_cli_is_answered() {
    let Some(codex) = real_codex("0.169.0") else { return };
    let world = World::with_accounts(SimConfig::default()).with_path(&[codex.parent().unwrap()]);
    let ran = world.run("codex", ["exec", "--skip-git-repo-check", "say hi"]).ok();
    assert_eq!(ran.stdout.trim(), "hello from the simulated upstream");
    world.assert_clean();
}

/// A canary of its own: other scenarios look at all command lines, too.
#[test]
fn a_secret_is_found_in_what_is_printed_in_files_and_on_command_lines() {
    let canary = "bird-of-the-search";
    type Plant = fn(&World, &str);
    let places: [(&str, Plant); 3] = [
        ("stderr of", |world, canary| {
            world.run("sh", ["-c", "printf 'bird-%s' \"$0\" >&2", &canary["bird-".len()..]]).ok();
        }),
        ("home", |world, canary| fs::write(world.path("home/kept"), canary).unwrap()),
        ("a command line of", |world, canary| {
            world.run("sh", ["-c", "sleep 1; true", canary]).ok();
        }),
    ];
    for (place, plant) in places {
        let config = SimConfig { canary: canary.to_owned(), ..SimConfig::default() };
        let world = World::with_accounts(config);
        world.assert_clean();
        plant(&world, canary);
        let found = catch_unwind(AssertUnwindSafe(|| world.assert_no_secrets()));
        let said = *found.expect_err("the search fails").downcast::<String>().unwrap();
        assert!(said.contains(place), "{place}: {said}");
    }
}
