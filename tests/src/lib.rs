//! What the scenarios of this project run against: a simulated upstream, and
//! the harness around the programs under test.
//!
//! Nothing here knows how the daemon works inside. The rules the simulated
//! upstream enforces are the upstream's own, so that a wrong idea in the daemon
//! cannot hide in the thing that judges it.

#[cfg(unix)]
#[expect(clippy::expect_used, clippy::panic, reason = "what goes wrong here fails the test")]
pub mod http;
pub mod sim;
#[cfg(unix)]
#[expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "what goes wrong here fails the test"
)]
pub mod world;
#[cfg(unix)]
#[expect(clippy::expect_used, clippy::panic, reason = "what goes wrong here fails the test")]
pub mod ws;
