//! See `cma_fuzz::wrapped`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::wrapped(bytes));
