//! See `cma_fuzz::chunks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::chunks(bytes));
