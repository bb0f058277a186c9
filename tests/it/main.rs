//! Scenarios over real processes: one binary, a module each.

mod smoke;
