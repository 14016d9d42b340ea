//! Fuzz target of the property `ftpd_properties::proxy_header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ftpd_properties::proxy_header(input));
