//! See `cma_fuzz::quota_headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::quota_headers(bytes));
