//! Scenarios over real processes: one binary, a module each.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod bad_world;
#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod choosing;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod codex_faults;
#[cfg(test)]
mod codex_home;
#[cfg(test)]
mod codex_kit;
#[cfg(test)]
mod codex_launch;
#[cfg(test)]
mod codex_live;
#[cfg(test)]
mod conform;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod crash_matrix;
#[cfg(test)]
mod ctl;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod eight;
#[cfg(test)]
mod errands;
#[cfg(test)]
mod flagged;
#[cfg(test)]
mod fuzz_corpus;
#[cfg(test)]
mod gate;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod handover;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod in_stream;
#[cfg(test)]
mod in_stream_codex;
#[cfg(test)]
mod ipc;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod login;
#[cfg(test)]
mod login_batch;
#[cfg(test)]
mod login_kit;
#[cfg(test)]
mod losses;
#[cfg(test)]
mod mirror;
#[cfg(test)]
mod network;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod own_auth;
#[cfg(test)]
mod projects;
#[cfg(test)]
mod refresh;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod rounds;
#[cfg(test)]
mod smoke;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod soak;
#[cfg(test)]
mod surface;
#[cfg(test)]
mod surface_kit;
#[cfg(test)]
mod survive;
#[cfg(test)]
mod takeover;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod threads;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod usage;
#[cfg(test)]
mod usage_told;
#[cfg(test)]
mod ws;
#[cfg(test)]
mod ws_again;
#[cfg(test)]
mod ws_codex;
#[cfg(test)]
mod ws_doubt;
#[cfg(test)]
mod ws_joined;
#[cfg(test)]
mod ws_kit;
#[cfg(test)]
mod ws_links;
