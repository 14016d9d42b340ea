//! Times since the Unix epoch, their text form, and the clock that measures the age of leases.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The time since the Unix epoch; zero if the clock is before 1970.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since the Unix epoch; 0 if the clock is before 1970.
pub fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// `time` in seconds since the Unix epoch; 0 if it is before 1970.
pub fn unix_seconds_at(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Unix seconds as RFC 3339 in UTC: `2026-11-27T03:02:11Z`.
pub fn rfc3339(seconds: u64) -> String {
    // The form ends with the year 9999, but records from Redis may contain any number.
    const LAST: i64 = 253_402_300_799;
    let seconds = i64::try_from(seconds).map_or(LAST, |seconds| seconds.min(LAST));
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// The time of a text in the form of RFC 3339, with any offset from UTC.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

/// A time since the Unix epoch as RFC 3339 in UTC, with milliseconds: `2026-11-27T03:02:11.250Z`.
pub fn rfc3339_millis(time: Duration) -> String {
    let seconds = rfc3339(time.as_secs());
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), time.subsec_millis())
}

/// A time since the Unix epoch as RFC 3339 in UTC, with microseconds: `2026-11-27T03:02:11.250000Z`.
pub fn rfc3339_micros(time: Duration) -> String {
    let seconds = rfc3339(time.as_secs());
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), time.subsec_micros())
}

/// The time since the boot of the host (CLOCK_BOOTTIME). It includes suspended time, in which leases age too.
pub fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to the address of `time`. The call cannot fail: Linux has this
    // clock since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    // Neither field is negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{rfc3339, rfc3339_micros, rfc3339_millis, since_boot};

    #[test]
    fn the_time_since_boot_increases() {
        let before = since_boot();
        assert!(!before.is_zero());
        std::thread::sleep(Duration::from_millis(2));
        assert!(since_boot() > before);
    }

    #[test]
    fn seconds_are_formatted_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_748_531), "2026-11-27T03:02:11Z");
        let time = Duration::from_millis(1_795_748_531_025);
        assert_eq!(rfc3339_millis(time), "2026-11-27T03:02:11.025Z");
        assert_eq!(rfc3339_micros(time), "2026-11-27T03:02:11.025000Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
