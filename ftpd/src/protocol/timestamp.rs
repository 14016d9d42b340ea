//! Points in time as `YYYYMMDDHHMMSS[.sss]`, always UTC (RFC 3659 section 2.3).

use time::{Date, Month, OffsetDateTime, Time, UtcDateTime};

/// The last second that four digits of year can name.
const LAST: i64 = 253_402_300_799;

/// Unix seconds of a time value; a fraction is read and dropped. Second 60, which a leap second
/// has, is taken as 59: Unix time has no name for it.
///
/// `None` if it is no time value, names no real date, or lies before 1970.
pub fn parse(text: &[u8]) -> Option<i64> {
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], Some(&text[dot + 1..])),
        None => (text, None),
    };
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if whole.len() != 14 || !digits(whole) || !fraction.is_none_or(digits) {
        return None;
    }
    let field = |from: usize, to: usize| {
        whole[from..to].iter().fold(0u16, |n, b| n * 10 + u16::from(b - b'0'))
    };
    // Two digits are below 100 and fit a byte.
    let pair = |from: usize| field(from, from + 2) as u8;
    let month = Month::try_from(pair(4)).ok()?;
    let date = Date::from_calendar_date(field(0, 4).into(), month, pair(6)).ok()?;
    let second = if pair(12) == 60 { 59 } else { pair(12) };
    let time = Time::from_hms(pair(8), pair(10), second).ok()?;
    let seconds = UtcDateTime::new(date, time).unix_timestamp();
    (seconds >= 0).then_some(seconds)
}

/// Appends `seconds` (Unix) as 14 digits. What lies before 1970 or after 9999 becomes the first
/// or last second between.
pub fn format(seconds: i64, out: &mut Vec<u8>) {
    let at = calendar(seconds);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    decimal::<4>(year.unsigned_abs(), out);
    for field in [u8::from(month), day, hour, minute, second] {
        decimal::<2>(field.into(), out);
    }
}

/// The UTC date and time of Unix `seconds`, brought within the years 1970 to 9999.
pub(crate) fn calendar(seconds: i64) -> OffsetDateTime {
    // In range after the clamp: the crate's own limits are the years -9999 and 9999.
    OffsetDateTime::from_unix_timestamp(seconds.clamp(0, LAST))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
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
