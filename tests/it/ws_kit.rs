//! What the scenarios over WebSockets by hand share.

use crate::codex_kit::upstream;
use cma_tests::{http::Door, sim::Seen, world::World, ws::Socket};

/// A daemon with these accounts, each of which says who it is.
pub(crate) fn world(names: &[&str]) -> World {
    World::with_accounts(upstream(names))
}

/// A socket of a session.
#[track_caller]
pub(crate) fn open(world: &World, session: &str) -> Socket {
    Door::of(world).socket(session).unwrap_or_else(|answer| panic!("{answer:?}"))
}

/// What reached upstream where turns go: handshakes (`GET`), frames (`WS`) or turns over HTTP (`POST`).
pub(crate) fn asked(world: &World, method: &str) -> Vec<Seen> {
    let turns = |seen: &Seen| seen.method == method && seen.path.ends_with("/codex/responses");
    world.sim().seen().into_iter().filter(turns).collect()
}
