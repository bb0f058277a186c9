//! Scenarios over real processes: one binary, a module each.

mod smoke;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod ipc;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod codex_faults;
#[cfg(test)]
mod codex_kit;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod refresh;
#[cfg(test)]
mod ctl;
#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod tidy;
