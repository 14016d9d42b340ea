//! Parsers of what follows a verb, RFC 959 section 5.3. The verb table names them.

use super::facts::Facts;
use super::{
    address::AddressFamily,
    command::{
        Algorithm, ByteRange, Checksum, Comb, Command, EpsvArgument, ListArguments, Modified, Opts, Password,
        ProtectionLevel, Site, TransferType,
    },
    mode::ModeChange,
    timestamp,
};

/// What is wrong with a command's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 501
    Syntax,
    /// 504: well formed, but not offered.
    Parameter,
    /// 522, RFC 2428
    Family,
}

/// The arguments of a command that takes no path and no part of a login: some clients put spaces around
/// them.
pub(super) fn without_spaces_around(mut argument: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = argument {
        argument = rest;
    }
    argument
}

/// A path or name: all of the line, leading and trailing spaces too. Not empty.
pub(super) fn path(argument: &[u8]) -> Result<Vec<u8>, Fault> {
    optional_path(argument).ok_or(Fault::Syntax)
}

/// `None` if nothing was written.
pub(super) fn optional_path(argument: &[u8]) -> Option<Vec<u8>> {
    (!argument.is_empty()).then(|| argument.to_vec())
}

pub(super) fn password(argument: &[u8]) -> Command {
    Command::Pass(Password::new(argument))
}

/// A decimal number: digits alone, without sign. `None` also if it does not fit.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// A position in a file or a size. The kernel's are signed: what lies above is refused here, and
/// can overflow nowhere.
pub(super) fn offset(text: &[u8]) -> Result<u64, Fault> {
    number(text).filter(|n| i64::try_from(*n).is_ok()).ok_or(Fault::Syntax)
}

/// The words of an argument that has no path in it.
fn words(argument: &[u8]) -> impl Iterator<Item = &[u8]> {
    argument.split(|b| *b == b' ').filter(|word| !word.is_empty())
}

/// The first word, and what stands after the one space behind it.
fn first_word(argument: &[u8]) -> (&[u8], &[u8]) {
    match argument.iter().position(|b| *b == b' ') {
        Some(space) => (&argument[..space], &argument[space + 1..]),
        None => (argument, b""),
    }
}

/// The argument of AUTH: a mechanism. `TLS-C`, `SSL` and `TLS-P` are older names of TLS; with the last
/// one data connections are private from the start (draft-murray-auth-ftp-ssl).
pub(super) fn auth(argument: &[u8]) -> Result<Command, Fault> {
    match argument.to_ascii_uppercase().as_slice() {
        b"TLS" | b"TLS-C" | b"SSL" => Ok(Command::Auth { private_data: false }),
        b"TLS-P" => Ok(Command::Auth { private_data: true }),
        b"" => Err(Fault::Syntax),
        _ => Err(Fault::Parameter),
    }
}

/// The argument of PBSZ: a number of 32 bits.
pub(super) fn pbsz(argument: &[u8]) -> Result<Command, Fault> {
    let size = number(argument).and_then(|size| u32::try_from(size).ok());
    size.map(Command::Pbsz).ok_or(Fault::Syntax)
}

/// The argument of PROT: a letter.
pub(super) fn prot(argument: &[u8]) -> Result<Command, Fault> {
    match argument.to_ascii_uppercase().as_slice() {
        b"C" => Ok(Command::Prot(ProtectionLevel::Clear)),
        b"S" => Ok(Command::Prot(ProtectionLevel::Safe)),
        b"E" => Ok(Command::Prot(ProtectionLevel::Confidential)),
        b"P" => Ok(Command::Prot(ProtectionLevel::Private)),
        b"" => Err(Fault::Syntax),
        _ => Err(Fault::Parameter),
    }
}

/// RFC 7151 section 3.1: a domain name, an IPv4 address, or an IPv6 address in brackets.
pub(super) fn host(argument: &[u8]) -> Result<String, Fault> {
    const LONGEST_NAME: usize = 253;
    let name = str::from_utf8(argument).map_err(|_| Fault::Syntax)?;
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
    if is_name(name) || is_address(name) { Ok(name.to_owned()) } else { Err(Fault::Syntax) }
}

pub(super) fn epsv(argument: &[u8]) -> Result<EpsvArgument, Fault> {
    if argument.is_empty() {
        Ok(EpsvArgument::Any)
    } else if argument.eq_ignore_ascii_case(b"ALL") {
        Ok(EpsvArgument::All)
    } else {
        AddressFamily::parse(argument).map(EpsvArgument::Family)
    }
}

/// RFC 959 section 3.1.1: `A [N|T|C]`, `E [N|T|C]`, `I`, `L <bits>`. Some clients leave out the space
/// between the letter and what follows it.
pub(super) fn transfer_type(argument: &[u8]) -> Result<TransferType, Fault> {
    let (code, second) = argument.split_first().ok_or(Fault::Syntax)?;
    match (code.to_ascii_uppercase(), without_spaces_around(second)) {
        (b'A', b"" | b"N" | b"n") => Ok(TransferType::Ascii),
        (b'A', b"T" | b"t" | b"C" | b"c") => Err(Fault::Parameter),
        (b'E', b"" | b"N" | b"n" | b"T" | b"t" | b"C" | b"c") => Err(Fault::Parameter),
        (b'I', b"") => Ok(TransferType::Image),
        (b'L', bits) => match number(bits) {
            Some(8) => Ok(TransferType::Image),
            Some(1..=255) => Err(Fault::Parameter),
            _ => Err(Fault::Syntax),
        },
        _ => Err(Fault::Syntax),
    }
}

/// STRU: file, record, page.
pub(super) fn structure(argument: &[u8]) -> Result<Command, Fault> {
    match argument {
        b"F" | b"f" => Ok(Command::Stru),
        b"R" | b"r" | b"P" | b"p" => Err(Fault::Parameter),
        _ => Err(Fault::Syntax),
    }
}

/// MODE: stream, block, compressed; Z is deflate, which has no RFC.
pub(super) fn mode(argument: &[u8]) -> Result<Command, Fault> {
    match argument {
        b"S" | b"s" => Ok(Command::Mode),
        b"B" | b"b" | b"C" | b"c" | b"Z" | b"z" => Err(Fault::Parameter),
        _ => Err(Fault::Syntax),
    }
}

/// `<bytes> [R <record size>]`; files have no records here, so that the second is only checked.
pub(super) fn allo(argument: &[u8]) -> Result<u64, Fault> {
    let mut words = words(argument);
    let bytes = offset(words.next().ok_or(Fault::Syntax)?)?;
    match (words.next(), words.next(), words.next()) {
        (None, ..) => Ok(bytes),
        (Some(b"R" | b"r"), Some(record), None) if number(record).is_some() => Ok(bytes),
        _ => Err(Fault::Syntax),
    }
}

/// `<first> <last>`, both included; `1 0` takes the range back (draft-bryan-ftp-range).
pub(super) fn rang(argument: &[u8]) -> Result<Option<ByteRange>, Fault> {
    let mut words = words(argument);
    let mut bound = || offset(words.next().ok_or(Fault::Syntax)?);
    let (start, end) = (bound()?, bound()?);
    match (start, end, words.next()) {
        (1, 0, None) => Ok(None),
        (start, end, None) if start <= end => Ok(Some(ByteRange { start, end })),
        _ => Err(Fault::Syntax),
    }
}

/// A path, or a time and a path. A file whose own name begins with a time and a space is taken
/// for the latter; as `./<name>` it can be asked for.
pub(super) fn mdtm(argument: &[u8]) -> Result<Command, Fault> {
    match modified(argument) {
        Ok(modified) => Ok(Command::MdtmSet(modified)),
        Err(_) => path(argument).map(Command::Mdtm),
    }
}

/// A time and a path, draft-somers-ftp-mfxx section 3.
pub(super) fn modified(argument: &[u8]) -> Result<Modified, Fault> {
    let (time, rest) = first_word(argument);
    let time = timestamp::parse(time).ok_or(Fault::Syntax)?;
    Ok(Modified { time, path: path(rest)? })
}

/// `ls` options and a path. A word of `-` and letters or digits is options; `--` ends them; any
/// other word begins the path.
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
                        b'1' => options.one_per_line = true,
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

pub(super) fn stat(argument: &[u8]) -> Command {
    Command::Stat((!argument.is_empty()).then(|| list(argument)))
}

/// A path that may be quoted: `"a ""b"" c"`, or all up to the next space. Gives what stands after
/// it too, without the space between.
fn quotable(argument: &[u8]) -> Result<(Vec<u8>, &[u8]), Fault> {
    let Some((b'"', quoted)) = argument.split_first() else {
        let (word, rest) = first_word(argument);
        return Ok((path(word)?, rest));
    };
    let mut name = Vec::new();
    let mut rest = quoted;
    loop {
        let quote = rest.iter().position(|b| *b == b'"').ok_or(Fault::Syntax)?;
        name.extend_from_slice(&rest[..quote]);
        match rest.get(quote + 1) {
            Some(b'"') => {
                name.push(b'"');
                rest = &rest[quote + 2..];
            }
            Some(b' ') => return Ok((path(&name)?, &rest[quote + 2..])),
            None => return Ok((path(&name)?, b"")),
            Some(_) => return Err(Fault::Syntax),
        }
    }
}

/// A path, quoted or not, then none, one or two offsets. Without quotes a name with spaces is
/// understood too, where no number follows its first word.
pub(super) fn checksum(algorithm: Algorithm, argument: &[u8]) -> Result<Command, Fault> {
    let bounds = |rest: &[u8]| {
        let mut words = words(rest);
        let start = words.next().map_or(Ok(0), offset)?;
        let end = words.next().map(offset).transpose()?;
        let ordered = end.is_none_or(|end| start <= end);
        if ordered && words.next().is_none() { Ok((start, end)) } else { Err(Fault::Syntax) }
    };
    let quoted = argument.starts_with(b"\"");
    let (name, rest) = quotable(argument)?;
    let (path, (start, end)) = match bounds(rest) {
        Ok(bounds) => (name, bounds),
        Err(_) if !quoted && words(rest).next().is_some_and(|word| number(word).is_none()) => {
            (argument.to_vec(), (0, None))
        }
        Err(fault) => return Err(fault),
    };
    Ok(Command::Checksum(Checksum { algorithm, path, start, end }))
}

/// The target and at least one source, each quoted or a word.
pub(super) fn comb(argument: &[u8]) -> Result<Comb, Fault> {
    let (target, mut rest) = quotable(argument)?;
    let mut sources = Vec::new();
    while !rest.is_empty() {
        let (source, after) = quotable(rest)?;
        sources.push(source);
        rest = after;
    }
    if sources.is_empty() { Err(Fault::Syntax) } else { Ok(Comb { target, sources }) }
}

/// OPTS, RFC 2389 section 4.
pub(super) fn opts(argument: &[u8]) -> Result<Opts, Fault> {
    let (name, value) = first_word(argument);
    let value = without_spaces_around(value);
    match &*name.to_ascii_uppercase() {
        // `OPTS UTF8 NLST` and the name with a dash come from drafts of RFC 2640.
        b"UTF8" | b"UTF-8" => match &*value.to_ascii_uppercase() {
            b"ON" | b"NLST" | b"" => Ok(Opts::Utf8(true)),
            b"OFF" => Ok(Opts::Utf8(false)),
            _ => Err(Fault::Syntax),
        },
        b"MLST" => Ok(Opts::Mlst(Facts::parse(value))),
        b"HASH" if value.is_empty() => Ok(Opts::Hash(None)),
        b"HASH" => Algorithm::parse(value).map(|a| Opts::Hash(Some(a))).ok_or(Fault::Syntax),
        _ => Err(Fault::Syntax),
    }
}

pub(super) fn site(argument: &[u8]) -> Result<Site, Fault> {
    let (name, argument) = first_word(argument);
    match &*name.to_ascii_uppercase() {
        b"CHMOD" => chmod(argument),
        b"UTIME" => utime(argument),
        b"HELP" => Ok(Site::Help),
        b"WHO" => Ok(Site::Who),
        b"QUOTA" => Ok(Site::Quota),
        b"" => Err(Fault::Syntax),
        _ => Err(Fault::Parameter),
    }
}

/// `<mode> <path>`
fn chmod(argument: &[u8]) -> Result<Site, Fault> {
    let (mode, rest) = first_word(argument);
    Ok(Site::Chmod { mode: ModeChange::parse(mode)?, path: path(rest)? })
}

/// `<YYYYMMDDhhmm[ss]> <path>` as ProFTPD has it, or `<path> <atime> <mtime> <ctime> UTC` as
/// pure-ftpd has it.
fn utime(argument: &[u8]) -> Result<Site, Fault> {
    if let Some(site) = utime_of_three(argument) {
        return Ok(site);
    }
    let (time, rest) = first_word(argument);
    let modified = match time.len() {
        12 => timestamp::parse(&[time, b"00"].concat()),
        _ => timestamp::parse(time),
    };
    let modified = modified.ok_or(Fault::Syntax)?;
    Ok(Site::Utime { modified, accessed: None, path: path(rest)? })
}

fn utime_of_three(argument: &[u8]) -> Option<Site> {
    let (end, utc) = argument.split_last_chunk::<4>()?;
    if !utc.eq_ignore_ascii_case(b" UTC") {
        return None;
    }
    let mut parts = end.rsplitn(4, |b| *b == b' ');
    let mut time = || timestamp::parse(parts.next()?);
    let (_changed, modified, accessed) = (time()?, time()?, time()?);
    let path = path(parts.next()?).ok()?;
    Some(Site::Utime { modified, accessed: Some(accessed), path })
}
