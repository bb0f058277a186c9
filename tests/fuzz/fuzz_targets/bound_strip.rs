//! See `cma_fuzz::bound_strip`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::bound_strip(bytes));
