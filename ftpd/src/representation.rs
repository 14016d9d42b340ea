//! The representation type: TYPE (RFC 959 section 3.1.1) and the setting `ascii_conversion`.

use std::str::FromStr;

use crate::{data::Coding, protocol::command::TransferType};

/// The setting `ascii_conversion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AsciiConversion {
    /// Line ends are converted after the client has sent TYPE A. A client that never sends TYPE expects
    /// unchanged bytes: .NET's `GetFileSize` sends SIZE without TYPE, and cameras send STOR without it.
    #[default]
    Explicit,
    /// TYPE A from the login on, the default of RFC 959.
    On,
    Off,
}

impl FromStr for AsciiConversion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "explicit" => Ok(Self::Explicit),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err("neither explicit, on nor off"),
        }
    }
}

/// The representation type of one session.
#[derive(Clone, Copy, Debug)]
pub struct Representation {
    conversion: AsciiConversion,
    /// The last TYPE that the client sent.
    sent: Option<TransferType>,
}

impl Representation {
    /// The representation after the login.
    pub fn new(conversion: AsciiConversion) -> Self {
        Self { conversion, sent: None }
    }

    /// TYPE.
    pub fn select(&mut self, sent: TransferType) {
        self.sent = Some(sent);
    }

    /// Returns true if transfers convert line ends. If not, offsets and sizes count the bytes of the file.
    pub fn converts(self) -> bool {
        match (self.conversion, self.sent) {
            (AsciiConversion::Off, _) | (_, Some(TransferType::Image)) => false,
            (_, Some(TransferType::Ascii)) => true,
            (AsciiConversion::On, None) => true,
            (AsciiConversion::Explicit, None) => false,
        }
    }

    /// The coding of transfers.
    pub fn coding(self) -> Coding {
        if self.converts() { Coding::Ascii } else { Coding::Image }
    }

    /// The text that STAT shows.
    pub fn description(self) -> &'static str {
        match self.sent {
            Some(TransferType::Image) => "image",
            Some(TransferType::Ascii) if self.converts() => "ASCII",
            Some(TransferType::Ascii) => "ASCII (line ends are not converted)",
            None if self.converts() => "ASCII (default)",
            None => "image (default)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_and_the_last_type_decide_about_the_conversion() {
        use TransferType::{Ascii, Image};
        for (setting, before_type, after_a) in
            [("explicit", false, true), ("on", true, true), ("off", false, false)]
        {
            let mut representation = Representation::new(setting.parse().unwrap());
            assert_eq!(representation.converts(), before_type, "{setting}");
            for (sent, converts) in [(Ascii, after_a), (Image, false), (Ascii, after_a)] {
                representation.select(sent);
                assert_eq!(representation.converts(), converts, "{setting} {sent:?}");
            }
        }
        assert!("yes".parse::<AsciiConversion>().is_err());
    }
}
