//! See `cma_fuzz::stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::ws_frame(bytes));
