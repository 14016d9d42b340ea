//! Numbers for people.

use common::clock::unix_seconds;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Width of a bar, in characters.
const BAR: usize = 10;

/// The text without control characters: clients choose names and paths, and a terminal obeys escape
/// sequences.
pub(crate) fn printable(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            // Marks that change the direction of text.
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

/// `14.1 GB`, with units of 1000; `18221 B` with `exact`.
#[allow(clippy::cast_precision_loss)] // Shown with one digit after the point.
pub(crate) fn size(bytes: u64, exact: bool) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if exact || bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `41.0 MB/s`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Casts from floats saturate.
pub(crate) fn rate(bytes_per_second: f64, exact: bool) -> String {
    format!("{}/s", size(bytes_per_second.max(0.0).round() as u64, exact))
}

/// `41,233`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 session`, `41,233 sessions`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `25s`, `1m15`, `2h03`, `12d`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Casts from floats saturate.
pub(crate) fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `4.1 ms`, `2.3 s`.
pub(crate) fn latency(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

/// A full bar is 100 %.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Limited to the bar's width.
pub(crate) fn bar(percent: f64) -> String {
    let full = (percent.clamp(0.0, 100.0) / 100.0 * BAR as f64).round() as usize;
    "█".repeat(full) + &"░".repeat(BAR - full)
}

/// Seconds since this time. `None`: the text is not a time in the form of RFC 3339.
#[allow(clippy::cast_precision_loss)] // Whole seconds of a process's life.
pub(crate) fn seconds_since(time: &str) -> Option<f64> {
    let then = OffsetDateTime::parse(time, &Rfc3339).ok()?.unix_timestamp();
    let now = i64::try_from(unix_seconds()).ok()?;
    Some((now - then) as f64)
}

/// The hour and minute of an RFC 3339 time in UTC, as `03:06Z`. Other text is returned as it is.
pub(crate) fn clock_time(time: &str) -> String {
    match OffsetDateTime::parse(time, &Rfc3339) {
        Ok(time) => format!("{:02}:{:02}Z", time.hour(), time.minute()),
        Err(_) => printable(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_or_four_digits_or_are_exact() {
        let shown = |bytes| size(bytes, false);
        assert_eq!(
            [0, 999, 1000, 999_949, 999_999].map(shown),
            ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB"]
        );
        assert_eq!(shown(u64::MAX), "18.4 EB");
        assert_eq!(size(18_221, true), "18221 B");
        assert_eq!(rate(-1.0, false), "0 B/s");
    }

    #[test]
    fn counts_and_spans_are_short() {
        assert_eq!([7, 1000, 41_233, 1_234_567].map(count), ["7", "1,000", "41,233", "1,234,567"]);
        assert_eq!([0.0, 75.0, 7380.0, 1e6].map(span), ["0s", "1m15", "2h03", "11d"]);
        assert_eq!([0.0041, 2.3].map(latency), ["4.1 ms", "2.3 s"]);
    }

    #[test]
    fn bars_never_leave_their_width() {
        assert_eq!(bar(0.0), "░░░░░░░░░░");
        assert_eq!(bar(28.0), "███░░░░░░░");
        assert_eq!(bar(250.0), "██████████");
        assert_eq!(bar(f64::NAN).chars().count(), BAR);
    }

    #[test]
    fn names_of_clients_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{202e}c\u{9b}"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(printable("Grüße 文"), "Grüße 文");
    }
}
