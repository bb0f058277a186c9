//! See `cma_fuzz::pool_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::pool_ops(bytes));
