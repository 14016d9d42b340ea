//! FTP commands with parsed arguments, one variant per command.

use std::{fmt, net::SocketAddr};

use zeroize::Zeroizing;

use super::facts::Facts;
use super::{
    address::AddressFamily,
    arguments::{self as argument, ArgumentError},
    reply::{Code, Reply},
    site::Site,
    verbs::{self, Verb},
};

/// A parsed command line: the command, and its row in the verb table.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub verb: &'static Verb,
    pub command: Command,
}

impl Request {
    /// Returns true if the command may run during an activity. STAT without an argument may, because it
    /// reports on the transfer (RFC 959 section 4.1.3). STAT with a path may not, because it reads the
    /// storage.
    pub fn during_transfer(&self) -> bool {
        self.verb.during_transfer && !matches!(self.command, Command::LoggedIn(LoggedInCommand::StatPath(_)))
    }
}

/// A command with its arguments. The variant tells whether it needs a login. Paths are as the client sent
/// them; they contain no NUL, CR or LF.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    AnyTime(AnyTimeCommand),
    LoggedIn(LoggedInCommand),
}

/// Commands that need no login.
#[derive(Debug, PartialEq, Eq)]
pub enum AnyTimeCommand {
    User(Vec<u8>),
    Pass(Password),
    Acct(Vec<u8>),
    Rein,
    Quit,
    /// RFC 7151: the name of the virtual host, or an IPv6 address in brackets.
    Host(String),
    /// The name and version of the client program.
    Clnt(Vec<u8>),

    /// RFC 4217: a TLS handshake follows the reply. `private_data` has the effect of a later PROT P.
    Auth {
        private_data: bool,
    },
    /// Size of protected buffers in bytes. TLS does not use it (RFC 4217 section 9).
    Pbsz(u32),
    Prot(ProtectionLevel),
    /// Asks to end the encryption; always refused.
    Ccc,

    /// STAT without a path: the status of the session.
    Stat,
    Syst,
    Feat,
    Help(Option<Vec<u8>>),
    Noop,
    Opts(Opts),
}

/// Commands that need a login.
#[derive(Debug, PartialEq, Eq)]
pub enum LoggedInCommand {
    Pwd,
    /// `None` means the home.
    Cwd(Option<Vec<u8>>),
    Cdup,
    Mkd(Vec<u8>),
    Rmd(Vec<u8>),
    /// Removes a directory and everything below it.
    Rmda(Vec<u8>),
    Dele(Vec<u8>),
    Rnfr(Vec<u8>),
    Rnto(Vec<u8>),
    Size(Vec<u8>),
    Mdtm(Vec<u8>),
    /// MDTM with a time: sets the modification time, for clients that do not know MFMT.
    MdtmSet(Modified),
    Mfmt(Modified),
    /// Free space at the path; `None` means the current directory.
    Avbl(Option<Vec<u8>>),

    Pasv,
    Epsv(EpsvArgument),
    Port(SocketAddr),
    Eprt(SocketAddr),

    Type(TransferType),
    /// STRU F, the only supported structure.
    Stru,
    /// MODE S, the only supported mode.
    Mode,
    /// Size of the next upload in bytes.
    Allo(u64),
    /// Offset in bytes, at most `i64::MAX`.
    Rest(u64),
    /// `None` after `RANG 1 0`, which clears the range.
    Rang(Option<ByteRange>),
    Retr(Vec<u8>),
    Stor(Vec<u8>),
    Stou(Option<Vec<u8>>),
    Appe(Vec<u8>),
    Abor,

    List(ListArguments),
    Nlst(ListArguments),
    Mlsd(Option<Vec<u8>>),
    Mlst(Option<Vec<u8>>),
    /// STAT with a path or options: a listing over the control connection.
    StatPath(ListArguments),

    Hash(Vec<u8>),
    Checksum(Checksum),
    Comb(Comb),
    Site(Site),
}

impl LoggedInCommand {
    /// The argument that names the command's file or directory, if there is one. For COMB the target.
    pub fn path(&self) -> Option<&[u8]> {
        match self {
            Self::Mkd(path)
            | Self::Rmd(path)
            | Self::Rmda(path)
            | Self::Dele(path)
            | Self::Rnfr(path)
            | Self::Rnto(path)
            | Self::Size(path)
            | Self::Mdtm(path)
            | Self::Retr(path)
            | Self::Stor(path)
            | Self::Appe(path)
            | Self::Hash(path) => Some(path),
            // CWD without an argument changes to the home.
            Self::Cwd(path) => Some(path.as_deref().unwrap_or(b"/")),
            Self::Cdup => Some(b".."),
            Self::MdtmSet(modified) | Self::Mfmt(modified) | Self::Site(Site::Utime(modified)) => {
                Some(&modified.path)
            }
            Self::Site(Site::Chmod { path, .. }) => Some(path),
            Self::Avbl(path) | Self::Stou(path) | Self::Mlsd(path) | Self::Mlst(path) => {
                Some(path.as_deref().unwrap_or_default())
            }
            Self::List(arguments) | Self::Nlst(arguments) | Self::StatPath(arguments) => {
                Some(arguments.path.as_deref().unwrap_or_default())
            }
            Self::Checksum(checksum) => Some(&checksum.path),
            Self::Comb(comb) => Some(&comb.target),
            Self::Pwd
            | Self::Pasv
            | Self::Epsv(_)
            | Self::Port(_)
            | Self::Eprt(_)
            | Self::Type(_)
            | Self::Stru
            | Self::Mode
            | Self::Allo(_)
            | Self::Rest(_)
            | Self::Rang(_)
            | Self::Abor
            | Self::Site(Site::Help | Site::Who | Site::Quota) => None,
        }
    }
}

/// The argument of PASS. Never printed; overwritten with zeros when dropped.
#[derive(PartialEq, Eq)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The password. It may be empty and need not be UTF-8.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[password]")
    }
}

/// Protection of data connections (RFC 2228 section 3). TLS supports only Clear and Private (RFC 4217
/// section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectionLevel {
    Clear,
    Safe,
    Confidential,
    Private,
}

/// The argument of EPSV (RFC 2428 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpsvArgument {
    /// No argument: use the network protocol of the control connection.
    Any,
    Family(AddressFamily),
    /// The client promises to use only EPSV for the rest of the session.
    All,
}

/// Representation type (RFC 959 section 3.1.1). `L 8` is the same as Image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferType {
    Ascii,
    Image,
}

/// Bytes `start` to `end` of a file, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

/// A path and its new modification time.
#[derive(Debug, PartialEq, Eq)]
pub struct Modified {
    /// Unix seconds.
    pub time: i64,
    pub path: Vec<u8>,
}

/// Arguments of LIST, NLST and STAT.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ListArguments {
    pub options: ListOptions,
    /// `None` means the current directory.
    pub path: Option<Vec<u8>>,
}

/// The `ls` options that clients put before the path. Other letters are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// `-a`: includes hidden names, `.` and `..`.
    pub all: bool,
    /// `-A`: wildcards also match hidden names.
    pub almost_all: bool,
    /// `-l`: long format.
    pub long: bool,
    /// `-R`: includes subdirectories.
    pub recursive: bool,
    /// `-d`: shows the directory itself, not its entries.
    pub directory: bool,
    /// `-F`: appends a character that shows the kind of entry.
    pub classify: bool,
    /// `-t`: newest first.
    pub by_time: bool,
    /// `-S`: largest first.
    pub by_size: bool,
    /// `-r`: reverses the order.
    pub reverse: bool,
}

/// Checksum algorithms of HASH and the X commands (XCRC, XMD5, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Crc32,
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512];

    /// Name in FEAT, OPTS HASH and the reply to HASH.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Md5 => "MD5",
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha512 => "SHA-512",
        }
    }

    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name().as_bytes().eq_ignore_ascii_case(name))
    }
}

/// Arguments of XCRC, XMD5, XSHA1, XSHA256 and XSHA512.
#[derive(Debug, PartialEq, Eq)]
pub struct Checksum {
    pub algorithm: Algorithm,
    pub path: Vec<u8>,
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte, at least `start`. `None` means the end of the file.
    pub end: Option<u64>,
}

/// Arguments of COMB: appends `sources` in this order to `target`.
#[derive(Debug, PartialEq, Eq)]
pub struct Comb {
    pub target: Vec<u8>,
    /// At least one.
    pub sources: Vec<Vec<u8>>,
}

/// Arguments of OPTS.
#[derive(Debug, PartialEq, Eq)]
pub enum Opts {
    Utf8(bool),
    /// The facts that MLSD and MLST show from now on (RFC 3659 section 7.9).
    Mlst(Facts),
    /// `None` asks for the selected algorithm.
    Hash(Option<Algorithm>),
}

/// Reason why a command line cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    Empty,
    /// Longer than [`super::line::MAX_LINE`]; the whole line was discarded.
    TooLong,
    Unknown,
    /// A known FTP verb that this server does not support.
    NotOffered,
    Arguments(&'static Verb, ArgumentError),
    /// The peer speaks another protocol. The connection is closed without a reply, because an attacker
    /// could make a browser or mail client interpret an FTP reply (ALPACA, CVE-2021-3618).
    Foreign,
}

impl ParseError {
    /// The verb, if it is known.
    pub fn verb(self) -> Option<&'static str> {
        match self {
            Self::Arguments(verb, _) => Some(verb.name),
            Self::Empty | Self::TooLong | Self::Unknown | Self::NotOffered | Self::Foreign => None,
        }
    }

    /// The reply to send. `None` means: close the connection.
    pub fn reply(self) -> Option<Reply> {
        Some(match self {
            Self::Empty => Reply::new(Code::UNKNOWN_COMMAND, "Empty command line"),
            Self::TooLong => Reply::new(Code::UNKNOWN_COMMAND, "Command line too long"),
            Self::Unknown => Reply::new(Code::UNKNOWN_COMMAND, "Unknown command"),
            Self::NotOffered => Reply::new(Code::NOT_IMPLEMENTED, "Command not implemented"),
            Self::Arguments(verb, ArgumentError::Syntax) => {
                Reply::new(Code::BAD_ARGUMENTS, format!("Usage: {}", verb.usage()))
            }
            Self::Arguments(_, ArgumentError::SiteSyntax(command)) => {
                Reply::new(Code::BAD_ARGUMENTS, format!("Usage: SITE {}", command.usage()))
            }
            Self::Arguments(_, ArgumentError::Parameter) => {
                Reply::new(Code::UNSUPPORTED_PARAMETER, "Parameter not supported")
            }
            Self::Arguments(_, ArgumentError::Family) => {
                Reply::new(Code::UNSUPPORTED_FAMILY, "Network protocol not supported, use (1,2)")
            }
            Self::Foreign => return None,
        })
    }
}

/// Parses a line without its line end. The verb may be in upper or lower case. Paths, user names and
/// passwords start after exactly one space and are kept byte for byte. Spaces around other arguments
/// are ignored, and so is text after a command without arguments, as on other servers.
///
/// # Errors
/// See [`ParseError`]; [`ParseError::reply`] gives the reply.
pub fn parse(line: &[u8]) -> Result<Request, ParseError> {
    if is_foreign(line) {
        return Err(ParseError::Foreign);
    }
    let (name, argument) = match line.iter().position(|b| *b == b' ') {
        Some(space) => (&line[..space], &line[space + 1..]),
        None => (line, &b""[..]),
    };
    if name.is_empty() {
        return Err(if argument.is_empty() { ParseError::Empty } else { ParseError::Unknown });
    }
    let verb = verbs::find(name).ok_or(ParseError::Unknown)?;
    let parser = verb.parser.as_ref().ok_or(ParseError::NotOffered)?;
    if argument.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err(ParseError::Arguments(verb, ArgumentError::Syntax));
    }
    let argument = if verb.takes_words { argument::without_spaces_around(argument) } else { argument };
    match parser.parse(argument) {
        Ok(command) => Ok(Request { verb, command }),
        Err(error) => Err(ParseError::Arguments(verb, error)),
    }
}

/// First words of other protocols: HTTP methods and SMTP commands, which a web page or a mail can make
/// a victim's program send here, and the PROXY header of a balancer that is not trusted.
const FOREIGN: [&[u8]; 16] = [
    b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"PATCH", b"TRACE", b"DELETE", b"HELO",
    b"EHLO", b"LHLO", b"MAIL", b"RCPT", b"DATA", b"PROXY",
];

/// Returns true if the peer speaks another protocol. `bytes` are the first bytes it sent, or one line.
pub fn is_foreign(bytes: &[u8]) -> bool {
    // A TLS handshake record, the PROXY protocol version 2, the SSH greeting.
    if bytes.starts_with(b"\x16\x03")
        || bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n")
        || bytes.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"SSH-"))
    {
        return true;
    }
    let end = bytes.iter().position(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
    let word = &bytes[..end.unwrap_or(bytes.len())];
    FOREIGN.iter().any(|foreign| foreign.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests;
