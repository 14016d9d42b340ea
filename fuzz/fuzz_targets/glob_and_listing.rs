//! Fuzz target of the property `ftpd_properties::glob_and_listing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ftpd_properties::glob_and_listing(input));
