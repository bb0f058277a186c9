//! See `cma_fuzz::models`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::models(bytes));
