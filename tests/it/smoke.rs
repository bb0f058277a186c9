//! The straight path.

use cma_tests::{
    sim::SimConfig,
    world::{World, real_codex},
};

#[test]
fn a_turn_of_the_real_cli_is_answered() {
    let Some(codex) = real_codex("0.169.0") else { return };
    let world = World::with_accounts(SimConfig::default()).with_path(&[codex.parent().unwrap()]);
    let ran = world.run("codex", ["exec", "--skip-git-repo-check", "say hi"]).ok();
    assert_eq!(ran.stdout.trim(), "hello from the simulated upstream");
    world.assert_clean();
}
