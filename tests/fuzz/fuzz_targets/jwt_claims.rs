//! See `cma_fuzz::jwt_claims`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cma_fuzz::jwt_claims(bytes));
