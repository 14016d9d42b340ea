//! Parsers for the arguments of commands (RFC 959 section 5.3). The verb table refers to them.

use super::facts::Facts;
use super::{
    address::AddressFamily,
    command::{
        Algorithm, AnyTimeCommand, ByteRange, Checksum, Comb, Command, EpsvArgument, ListArguments,
        LoggedInCommand, Modified, Opts, Password, ProtectionLevel, TransferType,
    },
    site::SiteCommand,
    timestamp,
};

/// Reason why the arguments of a command are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    /// Reply 501.
    Syntax,
    /// Reply 504: well formed, but not supported.
    Parameter,
    /// Reply 522 (RFC 2428): unsupported network protocol.
    Family,
    /// Reply 501 with the usage of a SITE subcommand.
    SiteSyntax(&'static SiteCommand),
}

/// `argument` without leading and trailing spaces, which some clients send. Not for paths and parts of
/// a login, where spaces count.
pub(super) fn without_spaces_around(mut argument: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = argument {
        argument = rest;
    }
    argument
}

/// A path or name: the whole argument, including leading and trailing spaces. Not empty.
pub(super) fn path(argument: &[u8]) -> Result<Vec<u8>, ArgumentError> {
    optional_path(argument).ok_or(ArgumentError::Syntax)
}

/// The whole argument as a path; `None` if it is empty.
pub(super) fn optional_path(argument: &[u8]) -> Option<Vec<u8>> {
    (!argument.is_empty()).then(|| argument.to_vec())
}

/// PASS: the whole argument, which may be empty.
pub(super) fn password(argument: &[u8]) -> AnyTimeCommand {
    AnyTimeCommand::Pass(Password::new(argument))
}

/// A decimal number without sign. `None` if it is not one or does not fit into 64 bits.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// A position in a file or a size, in bytes. Values above `i64::MAX` are refused: the kernel's offsets
/// are signed.
pub(super) fn offset(text: &[u8]) -> Result<u64, ArgumentError> {
    number(text).filter(|n| i64::try_from(*n).is_ok()).ok_or(ArgumentError::Syntax)
}

/// The words of an argument that contains no path.
fn words(argument: &[u8]) -> impl Iterator<Item = &[u8]> {
    argument.split(|b| *b == b' ').filter(|word| !word.is_empty())
}

/// The first word, and the text after the single space that follows it.
pub(super) fn first_word(argument: &[u8]) -> (&[u8], &[u8]) {
    match argument.iter().position(|b| *b == b' ') {
        Some(space) => (&argument[..space], &argument[space + 1..]),
        None => (argument, b""),
    }
}

/// AUTH: a mechanism. `TLS-C`, `SSL` and `TLS-P` are older names of TLS; `TLS-P` implies PROT P
/// (draft-murray-auth-ftp-ssl).
pub(super) fn auth(argument: &[u8]) -> Result<AnyTimeCommand, ArgumentError> {
    match argument.to_ascii_uppercase().as_slice() {
        b"TLS" | b"TLS-C" | b"SSL" => Ok(AnyTimeCommand::Auth { private_data: false }),
        b"TLS-P" => Ok(AnyTimeCommand::Auth { private_data: true }),
        b"" => Err(ArgumentError::Syntax),
        _ => Err(ArgumentError::Parameter),
    }
}

/// PBSZ: a 32-bit number.
pub(super) fn pbsz(argument: &[u8]) -> Result<AnyTimeCommand, ArgumentError> {
    let size = number(argument).and_then(|size| u32::try_from(size).ok());
    size.map(AnyTimeCommand::Pbsz).ok_or(ArgumentError::Syntax)
}

/// PROT: one letter.
pub(super) fn prot(argument: &[u8]) -> Result<AnyTimeCommand, ArgumentError> {
    match argument.to_ascii_uppercase().as_slice() {
        b"C" => Ok(AnyTimeCommand::Prot(ProtectionLevel::Clear)),
        b"S" => Ok(AnyTimeCommand::Prot(ProtectionLevel::Safe)),
        b"E" => Ok(AnyTimeCommand::Prot(ProtectionLevel::Confidential)),
        b"P" => Ok(AnyTimeCommand::Prot(ProtectionLevel::Private)),
        b"" => Err(ArgumentError::Syntax),
        _ => Err(ArgumentError::Parameter),
    }
}

/// HOST (RFC 7151 section 3.1): a domain name, an IPv4 address, or an IPv6 address in brackets.
pub(super) fn host(argument: &[u8]) -> Result<String, ArgumentError> {
    const LONGEST_NAME: usize = 253;
    let name = str::from_utf8(argument).map_err(|_| ArgumentError::Syntax)?;
    let is_address = |name: &str| {
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
    };
    let is_name = |name: &str| {
        let labels = name.strip_suffix('.').unwrap_or(name).split('.');
        name.len() <= LONGEST_NAME
            && labels.into_iter().all(|label| {
                !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
    };
    if is_name(name) || is_address(name) { Ok(name.to_owned()) } else { Err(ArgumentError::Syntax) }
}

/// EPSV (RFC 2428 section 3): nothing, a network protocol, or `ALL`.
pub(super) fn epsv(argument: &[u8]) -> Result<EpsvArgument, ArgumentError> {
    if argument.is_empty() {
        Ok(EpsvArgument::Any)
    } else if argument.eq_ignore_ascii_case(b"ALL") {
        Ok(EpsvArgument::All)
    } else {
        AddressFamily::parse(argument).map(EpsvArgument::Family)
    }
}

/// TYPE (RFC 959 section 3.1.1): `A [N|T|C]`, `E [N|T|C]`, `I`, `L <bits>`. Some clients omit the space
/// after the first letter.
pub(super) fn transfer_type(argument: &[u8]) -> Result<TransferType, ArgumentError> {
    let (code, second) = argument.split_first().ok_or(ArgumentError::Syntax)?;
    match (code.to_ascii_uppercase(), without_spaces_around(second)) {
        (b'A', b"" | b"N" | b"n") => Ok(TransferType::Ascii),
        (b'A', b"T" | b"t" | b"C" | b"c") => Err(ArgumentError::Parameter),
        (b'E', b"" | b"N" | b"n" | b"T" | b"t" | b"C" | b"c") => Err(ArgumentError::Parameter),
        (b'I', b"") => Ok(TransferType::Image),
        (b'L', bits) => match number(bits) {
            Some(8) => Ok(TransferType::Image),
            Some(1..=255) => Err(ArgumentError::Parameter),
            _ => Err(ArgumentError::Syntax),
        },
        _ => Err(ArgumentError::Syntax),
    }
}

/// STRU: file (F), record (R) or page (P).
pub(super) fn structure(argument: &[u8]) -> Result<LoggedInCommand, ArgumentError> {
    match argument {
        b"F" | b"f" => Ok(LoggedInCommand::Stru),
        b"R" | b"r" | b"P" | b"p" => Err(ArgumentError::Parameter),
        _ => Err(ArgumentError::Syntax),
    }
}

/// MODE: stream (S), block (B), compressed (C) or deflate (Z, in no RFC).
pub(super) fn mode(argument: &[u8]) -> Result<LoggedInCommand, ArgumentError> {
    match argument {
        b"S" | b"s" => Ok(LoggedInCommand::Mode),
        b"B" | b"b" | b"C" | b"c" | b"Z" | b"z" => Err(ArgumentError::Parameter),
        _ => Err(ArgumentError::Syntax),
    }
}

/// ALLO: `<bytes> [R <record size>]`. The record size is validated and ignored.
pub(super) fn allo(argument: &[u8]) -> Result<u64, ArgumentError> {
    let mut words = words(argument);
    let bytes = offset(words.next().ok_or(ArgumentError::Syntax)?)?;
    match (words.next(), words.next(), words.next()) {
        (None, ..) => Ok(bytes),
        (Some(b"R" | b"r"), Some(record), None) if number(record).is_some() => Ok(bytes),
        _ => Err(ArgumentError::Syntax),
    }
}

/// RANG: `<first> <last>`, both inclusive; `1 0` clears the range (draft-bryan-ftp-range).
pub(super) fn rang(argument: &[u8]) -> Result<Option<ByteRange>, ArgumentError> {
    let mut words = words(argument);
    let mut bound = || offset(words.next().ok_or(ArgumentError::Syntax)?);
    let (start, end) = (bound()?, bound()?);
    match (start, end, words.next()) {
        (1, 0, None) => Ok(None),
        (start, end, None) if start <= end => Ok(Some(ByteRange { start, end })),
        _ => Err(ArgumentError::Syntax),
    }
}

/// MDTM: a path, or a time and a path. To ask for a file whose name begins with a time and a space,
/// clients write `./<name>`.
pub(super) fn mdtm(argument: &[u8]) -> Result<LoggedInCommand, ArgumentError> {
    match modified(argument) {
        Ok(modified) => Ok(LoggedInCommand::MdtmSet(modified)),
        Err(_) => path(argument).map(LoggedInCommand::Mdtm),
    }
}

/// MFMT: a time and a path (draft-somers-ftp-mfxx section 3).
pub(super) fn modified(argument: &[u8]) -> Result<Modified, ArgumentError> {
    let (time, rest) = first_word(argument);
    let time = timestamp::parse(time).ok_or(ArgumentError::Syntax)?;
    Ok(Modified { time, path: path(rest)? })
}

/// LIST, NLST, STAT: `ls` options and a path. A word of `-` and letters or digits is a set of options.
/// `--` ends the options. Any other word is the beginning of the path.
pub(super) fn list(mut argument: &[u8]) -> ListArguments {
    let mut arguments = ListArguments::default();
    loop {
        let (word, rest) = first_word(argument);
        match word.split_first() {
            Some((b'-', b"-")) => {
                argument = rest;
                break;
            }
            Some((b'-', letters)) if !letters.is_empty() && letters.iter().all(u8::is_ascii_alphanumeric) => {
                let options = &mut arguments.options;
                for letter in letters {
                    match letter {
                        b'a' => options.all = true,
                        b'A' => options.almost_all = true,
                        b'l' => options.long = true,
                        b'R' => options.recursive = true,
                        b'd' => options.directory = true,
                        b'F' => options.classify = true,
                        b't' => options.by_time = true,
                        b'S' => options.by_size = true,
                        b'r' => options.reverse = true,
                        _ => {}
                    }
                }
                argument = rest;
            }
            _ => break,
        }
    }
    arguments.path = optional_path(argument);
    arguments
}

/// STAT: the session's status without an argument, a listing with one.
pub(super) fn stat(argument: &[u8]) -> Command {
    match argument {
        b"" => Command::AnyTime(AnyTimeCommand::Stat),
        _ => Command::LoggedIn(LoggedInCommand::StatPath(list(argument))),
    }
}

/// A path in quotes (`"a ""b"" c"`), or up to the next space. Also returns the text after it, without
/// the separating space.
fn quotable(argument: &[u8]) -> Result<(Vec<u8>, &[u8]), ArgumentError> {
    let Some((b'"', quoted)) = argument.split_first() else {
        let (word, rest) = first_word(argument);
        return Ok((path(word)?, rest));
    };
    let mut name = Vec::new();
    let mut rest = quoted;
    loop {
        let quote = rest.iter().position(|b| *b == b'"').ok_or(ArgumentError::Syntax)?;
        name.extend_from_slice(&rest[..quote]);
        match rest.get(quote + 1) {
            Some(b'"') => {
                name.push(b'"');
                rest = &rest[quote + 2..];
            }
            Some(b' ') => return Ok((path(&name)?, &rest[quote + 2..])),
            None => return Ok((path(&name)?, b"")),
            Some(_) => return Err(ArgumentError::Syntax),
        }
    }
}

/// XCRC, XMD5, XSHA1, XSHA256, XSHA512: a path, then zero, one or two offsets. A path with spaces needs
/// quotes only if a number follows its first word.
pub(super) fn checksum(algorithm: Algorithm, argument: &[u8]) -> Result<LoggedInCommand, ArgumentError> {
    let bounds = |rest: &[u8]| {
        let mut words = words(rest);
        let start = words.next().map_or(Ok(0), offset)?;
        let end = words.next().map(offset).transpose()?;
        let ordered = end.is_none_or(|end| start <= end);
        if ordered && words.next().is_none() { Ok((start, end)) } else { Err(ArgumentError::Syntax) }
    };
    let quoted = argument.starts_with(b"\"");
    let (name, rest) = quotable(argument)?;
    let (path, (start, end)) = match bounds(rest) {
        Ok(bounds) => (name, bounds),
        Err(_) if !quoted && words(rest).next().is_some_and(|word| number(word).is_none()) => {
            (argument.to_vec(), (0, None))
        }
        Err(error) => return Err(error),
    };
    Ok(LoggedInCommand::Checksum(Checksum { algorithm, path, start, end }))
}

/// COMB: the target and at least one source, each a word or in quotes.
pub(super) fn comb(argument: &[u8]) -> Result<Comb, ArgumentError> {
    let (target, mut rest) = quotable(argument)?;
    let mut sources = Vec::new();
    while !rest.is_empty() {
        let (source, after) = quotable(rest)?;
        sources.push(source);
        rest = after;
    }
    if sources.is_empty() { Err(ArgumentError::Syntax) } else { Ok(Comb { target, sources }) }
}

/// OPTS (RFC 2389 section 4).
pub(super) fn opts(argument: &[u8]) -> Result<Opts, ArgumentError> {
    let (name, value) = first_word(argument);
    let value = without_spaces_around(value);
    match &*name.to_ascii_uppercase() {
        // `OPTS UTF8 NLST` and the name `UTF-8` come from drafts of RFC 2640.
        b"UTF8" | b"UTF-8" => match &*value.to_ascii_uppercase() {
            b"ON" | b"NLST" | b"" => Ok(Opts::Utf8(true)),
            b"OFF" => Ok(Opts::Utf8(false)),
            _ => Err(ArgumentError::Syntax),
        },
        b"MLST" => Ok(Opts::Mlst(Facts::parse(value))),
        b"HASH" if value.is_empty() => Ok(Opts::Hash(None)),
        b"HASH" => Algorithm::parse(value).map(|a| Opts::Hash(Some(a))).ok_or(ArgumentError::Syntax),
        _ => Err(ArgumentError::Syntax),
    }
}
