//! Addresses of data connections in commands and replies: PORT and PASV (RFC 959), EPRT and EPSV
//! (RFC 2428).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use super::{
    arguments::{ArgumentError, number},
    reply::{Code, Reply},
};

/// A network protocol of RFC 2428 section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    V4,
    V6,
}

impl AddressFamily {
    /// Parses the protocol number: 1 for IPv4, 2 for IPv6.
    ///
    /// # Errors
    /// [`ArgumentError::Family`] for another number, [`ArgumentError::Syntax`] for any other text.
    pub fn parse(argument: &[u8]) -> Result<Self, ArgumentError> {
        match argument {
            b"1" => Ok(Self::V4),
            b"2" => Ok(Self::V6),
            _ if number(argument).is_some() => Err(ArgumentError::Family),
            _ => Err(ArgumentError::Syntax),
        }
    }
}

/// Parses the argument of PORT: `h1,h2,h3,h4,p1,p2`, each a decimal number below 256.
///
/// # Errors
/// [`ArgumentError::Syntax`], also for port 0.
pub fn parse_port(argument: &[u8]) -> Result<SocketAddr, ArgumentError> {
    let mut octets = [0; 6];
    let mut fields = argument.split(|b| *b == b',');
    for octet in &mut octets {
        let field = fields.next().filter(|field| field.len() <= 3).ok_or(ArgumentError::Syntax)?;
        *octet = number(field).and_then(|n| u8::try_from(n).ok()).ok_or(ArgumentError::Syntax)?;
    }
    if fields.next().is_some() {
        return Err(ArgumentError::Syntax);
    }
    let [a, b, c, d, high, low] = octets;
    match u16::from_be_bytes([high, low]) {
        0 => Err(ArgumentError::Syntax),
        port => Ok(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port)),
    }
}

/// Parses the argument of EPRT: `|1|192.0.2.1|6275|` or `|2|2001:db8::1|6275|`, with any printable
/// delimiter (RFC 2428 section 2). An IPv4-mapped IPv6 address is converted to IPv4, so that a different
/// spelling cannot evade a comparison of addresses.
///
/// # Errors
/// [`ArgumentError::Family`] for another network protocol, else [`ArgumentError::Syntax`], also for port 0.
pub fn parse_eprt(argument: &[u8]) -> Result<SocketAddr, ArgumentError> {
    let (delimiter, fields) = argument.split_first().ok_or(ArgumentError::Syntax)?;
    if !delimiter.is_ascii_graphic() {
        return Err(ArgumentError::Syntax);
    }
    let mut fields = fields.split(|b| b == delimiter);
    let mut field = || fields.next().ok_or(ArgumentError::Syntax);
    let (family, address, port, end) = (field()?, field()?, field()?, field()?);
    if !end.is_empty() || fields.next().is_some() {
        return Err(ArgumentError::Syntax);
    }
    let family = AddressFamily::parse(family)?;
    let address = str::from_utf8(address).map_err(|_| ArgumentError::Syntax)?;
    let address: IpAddr = match family {
        AddressFamily::V4 => address.parse::<Ipv4Addr>().map_err(|_| ArgumentError::Syntax)?.into(),
        AddressFamily::V6 => address.parse::<Ipv6Addr>().map_err(|_| ArgumentError::Syntax)?.into(),
    };
    let port = number(port).filter(|_| port.len() <= 5).and_then(|n| u16::try_from(n).ok());
    match port {
        None | Some(0) => Err(ArgumentError::Syntax),
        Some(port) => Ok(SocketAddr::new(address.to_canonical(), port)),
    }
}

/// The reply to PASV: the address and port to connect to.
pub fn passive(address: SocketAddrV4) -> Reply {
    let [a, b, c, d] = address.ip().octets();
    let [high, low] = address.port().to_be_bytes();
    Reply::new(Code::PASSIVE, format!("Entering Passive Mode ({a},{b},{c},{d},{high},{low})."))
}

/// The reply to EPSV: the port to connect to, at the address of the control connection.
pub fn extended_passive(port: u16) -> Reply {
    Reply::new(Code::EXTENDED_PASSIVE, format!("Entering Extended Passive Mode (|||{port}|)."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn port_accepts_six_numbers_below_256_rfc_959_5_3_2() {
        assert_eq!(parse_port(b"192,0,2,1,195,80"), Ok("192.0.2.1:50000".parse().unwrap()));
        for argument in [
            "",
            "1,2,3,4,5",
            "1,2,3,4,5,6,7",
            "1,2,3,4,5,256",
            "256,2,3,4,5,6",
            "1,2,3,4,5,6,",
            ",1,2,3,4,5",
            "1,2,3,4,5,-6",
            "1,2,3,4,5,+6",
            "1,2,3,4, 5,6",
            "1,2,3,4,5,6 ",
            "1,2,3,4,0005,6",
            "1,2,3,4,0,0",
            "1.2.3.4,5,6",
            "1,2,3,4,5,0x6",
        ] {
            assert_eq!(parse_port(argument.as_bytes()), Err(ArgumentError::Syntax), "{argument}");
        }
    }

    #[test]
    fn eprt_accepts_both_families_and_any_delimiter_rfc_2428_2() {
        for (argument, address) in [
            ("|1|132.235.1.2|6275|", Ok("132.235.1.2:6275")),
            ("|2|1080::8:800:200C:417A|5282|", Ok("[1080::8:800:200c:417a]:5282")),
            ("!1!192.0.2.1!1!", Ok("192.0.2.1:1")),
            ("|2|::ffff:192.0.2.1|21|", Ok("192.0.2.1:21")),
            ("|3|x|1|", Err(ArgumentError::Family)),
            ("|0|x|1|", Err(ArgumentError::Family)),
            ("|x|::1|1|", Err(ArgumentError::Syntax)),
            ("|1|::1|1|", Err(ArgumentError::Syntax)),
            ("|2|192.0.2.1|1|", Err(ArgumentError::Syntax)),
            ("|2|fe80::1%eth0|1|", Err(ArgumentError::Syntax)),
            ("|1|192.0.2.1|0|", Err(ArgumentError::Syntax)),
            ("|1|192.0.2.1|65536|", Err(ArgumentError::Syntax)),
            ("|1|192.0.2.1|000001|", Err(ArgumentError::Syntax)),
            ("|1|192.0.2.1|1", Err(ArgumentError::Syntax)),
            ("|1|192.0.2.1|1||", Err(ArgumentError::Syntax)),
            ("|1|192.0.2.1|1|x", Err(ArgumentError::Syntax)),
            (" 1 192.0.2.1 1 ", Err(ArgumentError::Syntax)),
            ("||||", Err(ArgumentError::Syntax)),
            ("", Err(ArgumentError::Syntax)),
        ] {
            let address = address.map(|address| address.parse().unwrap());
            assert_eq!(parse_eprt(argument.as_bytes()), address, "{argument}");
        }
    }

    proptest! {
        #[test]
        fn port_accepts_the_address_of_a_227_reply(address: Ipv4Addr, port in 1u16..) {
            let reply = text(&passive(SocketAddrV4::new(address, port)));
            let inside = reply.strip_prefix("227 Entering Passive Mode (").unwrap();
            let inside = inside.strip_suffix(").\r\n").unwrap();
            prop_assert_eq!(parse_port(inside.as_bytes()), Ok(SocketAddr::new(address.into(), port)));
        }

        #[test]
        fn the_229_reply_has_the_form_of_rfc_2428(port: u16) {
            let expected = format!("229 Entering Extended Passive Mode (|||{port}|).\r\n");
            prop_assert_eq!(text(&extended_passive(port)), expected);
        }

        #[test]
        fn no_input_causes_a_panic_or_yields_a_mapped_address(argument: Vec<u8>, ip: Ipv6Addr, port: u16) {
            _ = parse_port(&argument);
            _ = parse_eprt(&argument);
            if let Ok(address) = parse_eprt(format!("|2|{ip}|{port}|").as_bytes()) {
                prop_assert_eq!(address.ip(), ip.to_canonical());
            }
        }
    }
}
