//! Fuzz target of the property `ftpd_properties::tls_records`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ftpd_properties::tls_records(input));
