//! What a client can ask for: one variant a command, with its arguments parsed.

use std::{fmt, net::SocketAddr};

use zeroize::Zeroizing;

use super::facts::Facts;
use super::{
    address::AddressFamily,
    arguments::{self as argument, Fault},
    mode::ModeChange,
    reply::{Code, Reply},
    verbs::{self, Phase, Verb},
};

/// A command line as understood: the command, and its row in the verb table, which says when it
/// may run.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub verb: &'static Verb,
    pub command: Command,
}

impl Request {
    /// When in a session this may run. STAT with an argument reads directories, as LIST does.
    pub fn phase(&self) -> Phase {
        match self.command {
            Command::Stat(Some(_)) => Phase::AfterLogin,
            _ => self.verb.phase,
        }
    }

    /// Whether this may run while a transfer is under way. STAT may without an argument: it then
    /// reports on the transfer (RFC 959 section 4.1.3), else it reads directories.
    pub fn during_transfer(&self) -> bool {
        self.verb.during_transfer && !matches!(self.command, Command::Stat(Some(_)))
    }
}

/// A command with its arguments. Paths are as the client wrote them, without NUL, CR and LF.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    User(Vec<u8>),
    Pass(Password),
    Acct(Vec<u8>),
    Rein,
    Quit,
    /// RFC 7151: the name of the virtual host, or an address in brackets.
    Host(String),
    /// What the client calls itself.
    Clnt(Vec<u8>),

    /// RFC 4217: a TLS handshake follows the reply. With `private_data` as if PROT P had been given
    /// after it.
    Auth {
        private_data: bool,
    },
    /// The size of protected buffers, which TLS does not need to know.
    Pbsz(u32),
    Prot(ProtectionLevel),
    /// Back to clear text, which is never done.
    Ccc,

    Pwd,
    /// `None` is the home.
    Cwd(Option<Vec<u8>>),
    Cdup,
    Mkd(Vec<u8>),
    Rmd(Vec<u8>),
    /// Removes a directory and all in it.
    Rmda(Vec<u8>),
    Dele(Vec<u8>),
    Rnfr(Vec<u8>),
    Rnto(Vec<u8>),
    Size(Vec<u8>),
    Mdtm(Vec<u8>),
    /// MDTM with a time: what clients older than MFMT set it with.
    MdtmSet(Modified),
    Mfmt(Modified),
    /// Free space where the path, or the current directory, is.
    Avbl(Option<Vec<u8>>),

    Pasv,
    Epsv(EpsvArgument),
    Port(SocketAddr),
    Eprt(SocketAddr),

    Type(TransferType),
    /// STRU F, the only one there is.
    Stru,
    /// MODE S, the only one there is.
    Mode,
    /// Bytes.
    Allo(u64),
    /// Offset in bytes, at most `i64::MAX`.
    Rest(u64),
    /// `None` after the `1 0` that takes a range back.
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
    /// `None` asks for the state of the session.
    Stat(Option<ListArguments>),

    Hash(Vec<u8>),
    Checksum(Checksum),
    Comb(Comb),

    Syst,
    Feat,
    Help(Option<Vec<u8>>),
    Noop,
    Opts(Opts),
    Site(Site),
}

impl Command {
    /// The argument that names the file or directory that this is about, if there is one. Of COMB the
    /// target.
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
            // Without an argument it goes to the home.
            Self::Cwd(path) => Some(path.as_deref().unwrap_or(b"/")),
            Self::Cdup => Some(b".."),
            Self::MdtmSet(modified) | Self::Mfmt(modified) => Some(&modified.path),
            Self::Site(Site::Utime { path, .. } | Site::Chmod { path, .. }) => Some(path),
            Self::Avbl(path) | Self::Stou(path) | Self::Mlsd(path) | Self::Mlst(path) => {
                Some(path.as_deref().unwrap_or_default())
            }
            Self::List(arguments) | Self::Nlst(arguments) | Self::Stat(Some(arguments)) => {
                Some(arguments.path.as_deref().unwrap_or_default())
            }
            Self::Checksum(checksum) => Some(&checksum.path),
            Self::Comb(comb) => Some(&comb.target),
            _ => None,
        }
    }
}

/// What PASS carries. Never printed, and overwritten when dropped.
#[derive(PartialEq, Eq)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The password itself. It may be empty, and need not be UTF-8.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[password]")
    }
}

/// How data connections are protected (RFC 2228 section 3): TLS has only the outer two, see
/// RFC 4217 section 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectionLevel {
    Clear,
    Safe,
    Confidential,
    Private,
}

/// RFC 2428 section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpsvArgument {
    /// No argument: the protocol of the control connection.
    Any,
    Family(AddressFamily),
    /// From now on the client uses EPSV alone.
    All,
}

/// RFC 959 section 3.1.1. Bytes of eight bits are an image: `L 8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferType {
    Ascii,
    Image,
}

/// Bytes `start` to `end` of a file, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

/// A path, and the time of last change to give it, in Unix seconds.
#[derive(Debug, PartialEq, Eq)]
pub struct Modified {
    pub time: i64,
    pub path: Vec<u8>,
}

/// What LIST, NLST and STAT are to show, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ListArguments {
    pub options: ListOptions,
    /// `None` is the current directory.
    pub path: Option<Vec<u8>>,
}

/// The `ls` options that clients put before the path. Letters not here are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// `-a`: also hidden names, `.` and `..`.
    pub all: bool,
    /// `-A`: also hidden names.
    pub almost_all: bool,
    /// `-l`
    pub long: bool,
    /// `-1`
    pub one_per_line: bool,
    /// `-R`
    pub recursive: bool,
    /// `-d`: a directory itself, not what is in it.
    pub directory: bool,
    /// `-F`: a character after the name shows what it is.
    pub classify: bool,
    /// `-t`: newest first.
    pub by_time: bool,
    /// `-S`: largest first.
    pub by_size: bool,
    /// `-r`
    pub reverse: bool,
}

/// Checksums that HASH and the X commands compute.
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

    /// The name in FEAT, OPTS HASH and the reply to HASH.
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

/// XCRC, XMD5, XSHA1, XSHA256 or XSHA512.
#[derive(Debug, PartialEq, Eq)]
pub struct Checksum {
    pub algorithm: Algorithm,
    pub path: Vec<u8>,
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte, not below `start`; `None` is the end of the file.
    pub end: Option<u64>,
}

/// Files to be joined, in this order, to the end of `target`.
#[derive(Debug, PartialEq, Eq)]
pub struct Comb {
    pub target: Vec<u8>,
    /// At least one.
    pub sources: Vec<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Opts {
    Utf8(bool),
    /// The facts that MLSD and MLST are to show from now on, RFC 3659 section 7.9.
    Mlst(Facts),
    /// `None` asks which algorithm is selected.
    Hash(Option<Algorithm>),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Site {
    Chmod {
        mode: ModeChange,
        path: Vec<u8>,
    },
    /// Unix seconds.
    Utime {
        modified: i64,
        /// `None` where the client gave one time only.
        accessed: Option<i64>,
        path: Vec<u8>,
    },
    Help,
    Who,
    Quota,
}

impl Site {
    /// What SITE HELP says.
    pub(super) const USAGES: [&str; 6] = [
        "CHMOD <mode> <path>",
        "UTIME <YYYYMMDDhhmm[ss]> <path>",
        "UTIME <path> <access time> <time of last change> <any time> UTC",
        "WHO",
        "QUOTA",
        "HELP",
    ];
}

/// Why a line is no command to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    Empty,
    /// Longer than [`super::line::MAX_LINE`], and discarded whole.
    TooLong,
    Unknown,
    /// A command of some FTP RFC that this server does not offer.
    NotOffered,
    Arguments(&'static Verb, Fault),
    /// The peer speaks another protocol: the connection is closed without a reply, so that no
    /// browser or mail client can be made to take one for its own (ALPACA, CVE-2021-3618).
    Foreign,
}

impl ParseError {
    /// The verb, where it was known.
    pub fn verb(self) -> Option<&'static str> {
        match self {
            Self::Arguments(verb, _) => Some(verb.name),
            Self::Empty | Self::TooLong | Self::Unknown | Self::NotOffered | Self::Foreign => None,
        }
    }

    /// What to answer. `None`: close the connection.
    pub fn reply(self) -> Option<Reply> {
        Some(match self {
            Self::Empty => Reply::new(Code::UNKNOWN_COMMAND, "Empty command line."),
            Self::TooLong => Reply::new(Code::UNKNOWN_COMMAND, "Command line too long."),
            Self::Unknown => Reply::new(Code::UNKNOWN_COMMAND, "Unknown command."),
            Self::NotOffered => Reply::new(Code::NOT_IMPLEMENTED, "Command not implemented."),
            Self::Arguments(verb, Fault::Syntax) => {
                Reply::new(Code::BAD_ARGUMENTS, format!("Usage: {}", verb.usage()))
            }
            Self::Arguments(_, Fault::Parameter) => {
                Reply::new(Code::UNSUPPORTED_PARAMETER, "Parameter not supported.")
            }
            Self::Arguments(_, Fault::Family) => {
                Reply::new(Code::UNSUPPORTED_FAMILY, "Network protocol not supported, use (1,2)")
            }
            Self::Foreign => return None,
        })
    }
}

/// Makes a request of a line without its line end. The verb's case does not matter. Paths, user names and
/// passwords are taken byte for byte after the one space; around arguments that hold none of them
/// spaces mean nothing. What follows a command without arguments is ignored, as other servers do.
///
/// # Errors
/// See [`ParseError`], which knows its reply.
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
    let parse = verb.parse.ok_or(ParseError::NotOffered)?;
    if argument.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err(ParseError::Arguments(verb, Fault::Syntax));
    }
    let argument = if verb.takes_words { argument::without_spaces_around(argument) } else { argument };
    match parse(argument) {
        Ok(command) => Ok(Request { verb, command }),
        Err(fault) => Err(ParseError::Arguments(verb, fault)),
    }
}

/// First words of other protocols: HTTP methods and SMTP commands, that pages and mails can make
/// a victim's client send here, and the PROXY header of a balancer that is not trusted.
const FOREIGN: [&[u8]; 16] = [
    b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"PATCH", b"TRACE", b"DELETE", b"HELO",
    b"EHLO", b"LHLO", b"MAIL", b"RCPT", b"DATA", b"PROXY",
];

/// Whether a peer speaks another protocol, by the first bytes it sent or by a line of it.
pub fn is_foreign(bytes: &[u8]) -> bool {
    // A TLS record of the handshake; PROXY protocol v2; SSH's greeting.
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
