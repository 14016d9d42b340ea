//! Login conditions: the networks from which and the hours at which a user may log in.

use std::{fmt, net::IpAddr, str::FromStr, time::SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::clock::unix_seconds_at;

/// Conditions of a user's logins in addition to the password. The default accepts every address at every
/// time. authd's API and users file call the conditions `access`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoginConditions {
    /// Networks from which the user may log in. An empty list allows all networks.
    pub allow_from: Vec<IpNet>,
    /// Networks from which the user may not log in, even if `allow_from` contains them.
    pub deny_from: Vec<IpNet>,
    /// Hours at which the user may log in. An empty list allows all hours.
    pub hours: Vec<Hours>,
}

/// The condition that a login with the right password does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmetCondition {
    Address,
    Time,
}

impl LoginConditions {
    /// # Errors
    /// The condition that a login from `address` at `now` does not meet.
    pub fn check(&self, address: IpAddr, now: SystemTime) -> Result<(), UnmetCondition> {
        let address = address.to_canonical();
        let holds = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        if holds(&self.deny_from) || (!self.allow_from.is_empty() && !holds(&self.allow_from)) {
            return Err(UnmetCondition::Address);
        }
        if !self.hours.is_empty() && !self.hours.iter().any(|hours| hours.contain(now)) {
            return Err(UnmetCondition::Time);
        }
        Ok(())
    }
}

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY_MINUTES: u16 = 24 * 60;

/// Hours of certain days, in UTC: `Mon-Fri 06:00-20:00`, `Sat 08:00-12:00`, `22:00-06:00`. The end is
/// exclusive. If it is before the start, the hours extend into the next day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hours {
    /// First and last day, counted from Monday (0). The last may be before the first: `Sat-Mon`.
    days: (u8, u8),
    /// Start in minutes since midnight, below 24:00.
    from: u16,
    /// End in minutes since midnight, at most 24:00.
    to: u16,
}

/// The text does not have the form of [`Hours`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("hours are like 'Mon-Fri 06:00-20:00', 'Sat 08:00-12:00' or '22:00-06:00', in UTC")]
pub struct InvalidHours;

impl Hours {
    fn contain(self, now: SystemTime) -> bool {
        let minutes = unix_seconds_at(now) / 60;
        let day_minutes = u64::from(DAY_MINUTES);
        // 1 January 1970 was a Thursday. Both remainders fit their types.
        let (day, minute) = (((minutes / day_minutes + 3) % 7) as u8, (minutes % day_minutes) as u16);
        if self.from < self.to {
            return self.has_day(day) && (self.from..self.to).contains(&minute);
        }
        // Across midnight: the evening of this day, or the morning after the previous day.
        (self.has_day(day) && minute >= self.from) || (self.has_day((day + 6) % 7) && minute < self.to)
    }

    fn has_day(self, day: u8) -> bool {
        let (first, last) = self.days;
        if first <= last { (first..=last).contains(&day) } else { day >= first || day <= last }
    }
}

impl FromStr for Hours {
    type Err = InvalidHours;

    fn from_str(text: &str) -> Result<Self, InvalidHours> {
        let day = |name: &str| {
            let day = DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
            // The index is below 7.
            day.map(|day| day as u8).ok_or(InvalidHours)
        };
        let (days, times) = match text.trim().split_once(' ') {
            None => ((0, 6), text.trim()),
            Some((days, times)) => match days.split_once('-') {
                None => ((day(days)?, day(days)?), times.trim()),
                Some((first, last)) => ((day(first)?, day(last)?), times.trim()),
            },
        };
        let (from, to) = times.split_once('-').ok_or(InvalidHours)?;
        let (from, to) = (minute(from)?, minute(to)?);
        if from == to || from == DAY_MINUTES {
            return Err(InvalidHours);
        }
        Ok(Self { days, from, to })
    }
}

/// Parses a time from `00:00` to `24:00`, in minutes since midnight.
fn minute(text: &str) -> Result<u16, InvalidHours> {
    let (hour, minute) = text.split_once(':').ok_or(InvalidHours)?;
    let number = |text: &str| match text.as_bytes() {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Ok(u16::from(a - b'0') * 10 + u16::from(b - b'0')),
        _ => Err(InvalidHours),
    };
    match (number(hour)?, number(minute)?) {
        (hour @ 0..=23, minute @ 0..=59) => Ok(hour * 60 + minute),
        (24, 0) => Ok(DAY_MINUTES),
        _ => Err(InvalidHours),
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.days;
        match (first, last) {
            (0, 6) => {}
            _ if first == last => write!(f, "{} ", DAYS[usize::from(first)])?,
            _ => write!(f, "{}-{} ", DAYS[usize::from(first)], DAYS[usize::from(last)])?,
        }
        let (from, to) = (self.from, self.to);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl TryFrom<String> for Hours {
    type Error = InvalidHours;

    fn try_from(text: String) -> Result<Self, InvalidHours> {
        text.parse()
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        hours.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    /// A time in the week that began on Monday, 5 January 1970.
    fn at(day: u64, hour: u64, minute: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs((4 + day) * 86400 + hour * 3600 + minute * 60)
    }

    #[test]
    fn hours_contain_exactly_their_times() {
        for (text, inside, outside) in [
            ("Mon-Fri 06:00-20:00", vec![(0, 6, 0), (4, 19, 59)], vec![(0, 5, 59), (4, 20, 0), (5, 12, 0)]),
            ("Sat 08:00-24:00", vec![(5, 23, 59)], vec![(5, 7, 59), (6, 8, 0)]),
            ("22:00-06:00", vec![(2, 23, 0), (3, 5, 59)], vec![(3, 6, 0), (3, 21, 59)]),
            ("Sun 22:00-06:00", vec![(6, 22, 0), (7, 5, 59)], vec![(6, 5, 0), (7, 22, 0)]),
            ("Sat-Mon 00:00-24:00", vec![(5, 0, 0), (6, 12, 0), (7, 23, 59)], vec![(1, 0, 0), (4, 12, 0)]),
        ] {
            let hours: Hours = text.parse().unwrap();
            assert_eq!(hours.to_string(), text);
            for (day, hour, minute) in inside {
                assert!(hours.contain(at(day, hour, minute)), "{text}: {day} {hour}:{minute}");
            }
            for (day, hour, minute) in outside {
                assert!(!hours.contain(at(day, hour, minute)), "{text}: {day} {hour}:{minute}");
            }
        }
    }

    #[test]
    fn other_texts_are_not_hours() {
        for text in [
            "",
            "Mon",
            "Mon-Fri",
            "06:00",
            "6:00-7:00",
            "06:00-06:00",
            "25:00-26:00",
            "24:00-06:00",
            "Xyz 06:00-07:00",
            "Mon- 06:00-07:00",
            "06:60-07:00",
            "+6:00-07:00",
        ] {
            assert_eq!(text.parse::<Hours>(), Err(InvalidHours), "{text:?}");
        }
    }

    #[test]
    fn denied_networks_have_precedence_over_allowed_ones() {
        let conditions = LoginConditions {
            allow_from: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            deny_from: vec!["192.0.2.128/25".parse().unwrap()],
            hours: vec![],
        };
        let check = |address: &str| conditions.check(address.parse().unwrap(), at(0, 0, 0));
        assert_eq!(check("192.0.2.1"), Ok(()));
        assert_eq!(check("::ffff:192.0.2.1"), Ok(()));
        assert_eq!(check("2001:db8::1"), Ok(()));
        assert_eq!(check("192.0.2.200"), Err(UnmetCondition::Address));
        assert_eq!(check("198.51.100.1"), Err(UnmetCondition::Address));
        assert_eq!(LoginConditions::default().check("198.51.100.1".parse().unwrap(), at(0, 0, 0)), Ok(()));
    }

    proptest! {
        #[test]
        fn hours_survive_their_text_form(
            first in 0u8..7, last in 0u8..7, from in 0u16..1440, to in 0u16..=1440,
        ) {
            prop_assume!(from != to);
            let hours = Hours { days: (first, last), from, to };
            prop_assert_eq!(hours.to_string().parse::<Hours>().unwrap(), hours);
        }
    }
}
