//! Times for people and other programs.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Unix seconds as RFC 3339 in UTC: `2026-11-27T03:02:11Z`.
pub fn rfc3339(seconds: u64) -> String {
    // Beyond the year 9999 the form has no digits; records from Redis can hold any number.
    const LAST: i64 = 253_402_300_799;
    let seconds = i64::try_from(seconds).map_or(LAST, |seconds| seconds.min(LAST));
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn seconds_are_told_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_748_531), "2026-11-27T03:02:11Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
