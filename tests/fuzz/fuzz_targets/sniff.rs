//! See `cma_fuzz::sniff`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::sniff(bytes));
