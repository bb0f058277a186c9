//! See `cma_fuzz::skim`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::skim(bytes));
