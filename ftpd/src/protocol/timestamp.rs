//! Time values `YYYYMMDDHHMMSS[.sss]`, always in UTC (RFC 3659 section 2.3).

use time::{Date, Month, OffsetDateTime, Time, UtcDateTime};

/// 9999-12-31 23:59:59 UTC in Unix seconds, the last second of a four-digit year.
const LAST: i64 = 253_402_300_799;

/// Parses a time value into Unix seconds and ignores a fraction. A leap second (60) becomes 59, because
/// Unix time cannot express it.
///
/// `None` if the text has another form, is not a real date, or lies before 1970.
pub fn parse(text: &[u8]) -> Option<i64> {
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], Some(&text[dot + 1..])),
        None => (text, None),
    };
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if whole.len() != 14 || !digits(whole) || !fraction.is_none_or(digits) {
        return None;
    }
    let field =
        |from: usize, to: usize| whole[from..to].iter().fold(0u16, |n, b| n * 10 + u16::from(b - b'0'));
    // Two digits are below 100, so they fit into a byte.
    let pair = |from: usize| field(from, from + 2) as u8;
    let month = Month::try_from(pair(4)).ok()?;
    let date = Date::from_calendar_date(field(0, 4).into(), month, pair(6)).ok()?;
    let second = if pair(12) == 60 { 59 } else { pair(12) };
    let time = Time::from_hms(pair(8), pair(10), second).ok()?;
    let seconds = UtcDateTime::new(date, time).unix_timestamp();
    (seconds >= 0).then_some(seconds)
}

/// Appends Unix `seconds` as 14 digits, clamped to the years 1970 to 9999.
pub fn format(seconds: i64, out: &mut Vec<u8>) {
    let at = calendar(seconds);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    decimal::<4>(year.unsigned_abs(), out);
    for field in [u8::from(month), day, hour, minute, second] {
        decimal::<2>(field.into(), out);
    }
}

/// The UTC date and time of Unix `seconds`, clamped to the years 1970 to 9999.
pub(crate) fn calendar(seconds: i64) -> OffsetDateTime {
    // Never fails after the clamp: the crate's limits are the years -9999 and 9999.
    OffsetDateTime::from_unix_timestamp(seconds.clamp(0, LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Appends the last `N` decimal digits of `number`, with leading zeros.
pub(crate) fn decimal<const N: usize>(mut number: u32, out: &mut Vec<u8>) {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn formatted(seconds: i64) -> String {
        let mut out = Vec::new();
        format(seconds, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn time_values_are_parsed_as_in_rfc_3659_2_3() {
        for (text, seconds) in [
            ("19700101000000", Some(0)),
            ("20261122164005", Some(1_795_365_605)),
            ("19980615100045.014", Some(897_904_845)),
            ("20000229000000", Some(951_782_400)),
            ("99991231235959", Some(LAST)),
            ("20161231235960", Some(1_483_228_799)),
            ("20161231235961", None),
            ("19691231235959", None),
            ("20010229000000", None),
            ("20011301000000", None),
            ("20010101240000", None),
            ("2001010100000", None),
            ("200101010000000", None),
            ("20010101000000.", None),
            ("20010101000000.x", None),
            ("+2001010100000", None),
            ("", None),
        ] {
            assert_eq!(parse(text.as_bytes()), seconds, "{text}");
        }
    }

    #[test]
    fn times_beyond_four_digit_years_are_clamped() {
        assert_eq!(formatted(i64::MIN), "19700101000000");
        assert_eq!(formatted(i64::MAX), "99991231235959");
    }

    proptest! {
        #[test]
        fn a_formatted_time_is_parsed_back(seconds in 0..=LAST) {
            prop_assert_eq!(parse(formatted(seconds).as_bytes()), Some(seconds));
        }

        #[test]
        fn no_input_causes_a_panic(
            text in prop_oneof![
                any::<Vec<u8>>(),
                "[0-9]{14}(\\.[0-9]*)?".prop_map(String::into_bytes),
            ],
        ) {
            if let Some(seconds) = parse(&text) {
                prop_assert!((0..=LAST).contains(&seconds));
            }
        }
    }
}
