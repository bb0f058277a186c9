//! See `cma_fuzz::plain`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::plain(bytes));
