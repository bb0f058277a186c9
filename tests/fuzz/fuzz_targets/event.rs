//! See `cma_fuzz::event`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::event(bytes));
