//! Scenarios over real processes: one binary, a module each.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod by_hand;
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
mod crash;
#[cfg(test)]
mod ctl;
#[cfg(test)]
mod fuzz_corpus;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod ipc;
#[cfg(test)]
mod projects;
#[cfg(test)]
mod refresh;
#[cfg(test)]
mod restart;
mod smoke;
#[cfg(test)]
mod tidy;
