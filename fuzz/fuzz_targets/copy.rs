//! Fuzz target of the property `ftpd_properties::copy`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ftpd_properties::copy(input));
