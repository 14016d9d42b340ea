//! The verb table: name, arguments, phase, FEAT line and HELP text of each command.

use std::fmt;

use super::facts::Facts;
use super::{
    arguments::{self as argument, ArgumentError},
    command::{Algorithm, AnyTimeCommand, Command, LoggedInCommand},
    reply::{Code, Reply, ReplyText},
    site::{self, SITE_COMMANDS},
};

/// A row of the verb table.
pub struct Verb {
    /// In capitals, as in the RFCs.
    pub name: &'static str,
    /// A second name, usually the older form with an X (RFC 775).
    pub alias: Option<&'static str>,
    /// Syntax of the arguments, shown by HELP.
    pub arguments: &'static str,
    /// Description, shown by HELP.
    pub help: &'static str,
    /// May run during an activity. Read through [`super::Request::during_transfer`], which excludes STAT with
    /// a path.
    pub(super) during_transfer: bool,
    /// Refused, and missing in FEAT, on a node without TLS.
    pub needs_tls: bool,
    feature: FeatLine,
    /// Spaces around the arguments are ignored, because no argument is a path or part of a login.
    pub(super) takes_words: bool,
    /// `None` if the server knows the verb but does not support it.
    pub(super) parser: Option<Parser>,
}

/// Parser of the bytes after a verb. Its kind says whether the verb needs a login.
pub(super) enum Parser {
    AnyTime(fn(&[u8]) -> Result<AnyTimeCommand, ArgumentError>),
    LoggedIn(fn(&[u8]) -> Result<LoggedInCommand, ArgumentError>),
    /// The argument decides whether the command needs a login.
    Either(fn(&[u8]) -> Command),
}

impl Parser {
    pub(super) fn parse(&self, argument: &[u8]) -> Result<Command, ArgumentError> {
        match self {
            Self::AnyTime(parse) => parse(argument).map(Command::AnyTime),
            Self::LoggedIn(parse) => parse(argument).map(Command::LoggedIn),
            Self::Either(parse) => Ok(parse(argument)),
        }
    }
}

/// The line of a verb in the reply to FEAT (RFC 2389 section 3.2).
#[derive(Clone, Copy)]
enum FeatLine {
    None,
    Line(&'static str),
    /// The MLST facts; the selected ones have a star.
    Mlst,
    /// The HASH algorithms; the selected one has a star.
    Hash,
    /// The subcommands of SITE that are extensions.
    Site,
}

impl Verb {
    const fn new(
        name: &'static str,
        arguments: &'static str,
        help: &'static str,
        parser: Option<Parser>,
    ) -> Self {
        Self {
            name,
            alias: None,
            arguments,
            help,
            during_transfer: false,
            needs_tls: false,
            feature: FeatLine::None,
            takes_words: false,
            parser,
        }
    }

    const fn any_time(
        name: &'static str,
        arguments: &'static str,
        help: &'static str,
        parse: fn(&[u8]) -> Result<AnyTimeCommand, ArgumentError>,
    ) -> Self {
        Self::new(name, arguments, help, Some(Parser::AnyTime(parse)))
    }

    const fn logged_in(
        name: &'static str,
        arguments: &'static str,
        help: &'static str,
        parse: fn(&[u8]) -> Result<LoggedInCommand, ArgumentError>,
    ) -> Self {
        Self::new(name, arguments, help, Some(Parser::LoggedIn(parse)))
    }

    const fn any_time_or_logged_in(
        name: &'static str,
        arguments: &'static str,
        help: &'static str,
        parse: fn(&[u8]) -> Command,
    ) -> Self {
        Self::new(name, arguments, help, Some(Parser::Either(parse)))
    }

    const fn not_offered(name: &'static str) -> Self {
        Self::new(name, "", "", None)
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }

    const fn during_transfer(mut self) -> Self {
        self.during_transfer = true;
        self
    }

    const fn takes_words(mut self) -> Self {
        self.takes_words = true;
        self
    }

    const fn needs_tls(mut self) -> Self {
        self.needs_tls = true;
        self
    }

    const fn feature(mut self, feature: FeatLine) -> Self {
        self.feature = feature;
        self
    }

    const fn feat(self, line: &'static str) -> Self {
        self.feature(FeatLine::Line(line))
    }

    fn is_offered(&self) -> bool {
        self.parser.is_some()
    }

    /// Name and arguments: `RETR <path>`.
    pub fn usage(&self) -> String {
        match (self.name, self.arguments) {
            ("SITE", _) => format!("SITE {} [<arguments>]", site::names()),
            (name, "") => name.to_owned(),
            (name, arguments) => format!("{name} {arguments}"),
        }
    }
}

impl PartialEq for Verb {
    /// Compares names, which are unique in the table.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Verb {}

impl fmt::Debug for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

pub(super) static VERBS: &[Verb] = &[
    // Login
    Verb::any_time("USER", "<name>", "starts a login", |a| argument::path(a).map(AnyTimeCommand::User)),
    Verb::any_time("PASS", "<password>", "completes a login", |a| Ok(argument::password(a))),
    Verb::any_time("ACCT", "<account>", "names an account; not needed here", |a| {
        argument::path(a).map(AnyTimeCommand::Acct)
    }),
    Verb::any_time("REIN", "", "logs out", |_| Ok(AnyTimeCommand::Rein)),
    Verb::any_time("QUIT", "", "ends the session", |_| Ok(AnyTimeCommand::Quit)).during_transfer(),
    Verb::any_time("HOST", "<name>", "selects a virtual host", |a| {
        argument::host(a).map(AnyTimeCommand::Host)
    })
    .takes_words()
    .feat("HOST"),
    Verb::any_time("CLNT", "<name>", "names the client program", |a| {
        argument::path(a).map(AnyTimeCommand::Clnt)
    })
    .takes_words()
    .feat("CLNT"),
    // Security, RFC 2228 and RFC 4217
    Verb::any_time("AUTH", "TLS", "encrypts the control connection", argument::auth)
        .takes_words()
        .needs_tls()
        .feat("AUTH TLS"),
    Verb::any_time("PBSZ", "0", "must precede PROT", argument::pbsz).takes_words().needs_tls().feat("PBSZ"),
    Verb::any_time("PROT", "C|P", "sends data in the clear (C) or encrypted (P)", argument::prot)
        .takes_words()
        .needs_tls()
        .feat("PROT"),
    Verb::any_time("CCC", "", "ends the encryption; always refused", |_| Ok(AnyTimeCommand::Ccc)).needs_tls(),
    // Directories and files
    Verb::logged_in("PWD", "", "shows the current directory", |_| Ok(LoggedInCommand::Pwd)).alias("XPWD"),
    Verb::logged_in("CWD", "[<path>]", "changes the current directory", |a| {
        Ok(LoggedInCommand::Cwd(argument::optional_path(a)))
    })
    .alias("XCWD"),
    Verb::logged_in("CDUP", "", "changes to the parent directory", |_| Ok(LoggedInCommand::Cdup))
        .alias("XCUP"),
    Verb::logged_in("MKD", "<path>", "creates a directory", |a| argument::path(a).map(LoggedInCommand::Mkd))
        .alias("XMKD"),
    Verb::logged_in("RMD", "<path>", "removes an empty directory", |a| {
        argument::path(a).map(LoggedInCommand::Rmd)
    })
    .alias("XRMD"),
    Verb::logged_in("RMDA", "<path>", "removes a directory and its contents", |a| {
        argument::path(a).map(LoggedInCommand::Rmda)
    })
    .feat("RMDA"),
    Verb::logged_in("DELE", "<path>", "deletes a file", |a| argument::path(a).map(LoggedInCommand::Dele)),
    Verb::logged_in("RNFR", "<path>", "names the file or directory to rename", |a| {
        argument::path(a).map(LoggedInCommand::Rnfr)
    }),
    Verb::logged_in("RNTO", "<path>", "renames the RNFR path to this path", |a| {
        argument::path(a).map(LoggedInCommand::Rnto)
    }),
    Verb::logged_in("SIZE", "<path>", "shows the size of a file in bytes", |a| {
        argument::path(a).map(LoggedInCommand::Size)
    })
    .feat("SIZE"),
    Verb::logged_in(
        "MDTM",
        "[<YYYYMMDDhhmmss>] <path>",
        "shows or sets the modification time",
        argument::mdtm,
    )
    .feat("MDTM"),
    Verb::logged_in("MFMT", "<YYYYMMDDhhmmss> <path>", "sets the modification time", |a| {
        argument::modified(a).map(LoggedInCommand::Mfmt)
    })
    .feat("MFMT"),
    Verb::logged_in("AVBL", "[<path>]", "shows the free space in bytes", |a| {
        Ok(LoggedInCommand::Avbl(argument::optional_path(a)))
    })
    .feat("AVBL"),
    // Data connections
    Verb::logged_in("PASV", "", "makes the server listen for the data connection", |_| {
        Ok(LoggedInCommand::Pasv)
    })
    .feat("PASV"),
    Verb::logged_in("EPSV", "[1|2|ALL]", "makes the server listen for the data connection", |a| {
        argument::epsv(a).map(LoggedInCommand::Epsv)
    })
    .takes_words()
    .feat("EPSV"),
    Verb::logged_in("PORT", "<h1,h2,h3,h4,p1,p2>", "makes the server open the data connection", |a| {
        super::address::parse_port(a).map(LoggedInCommand::Port)
    })
    .takes_words(),
    Verb::logged_in("EPRT", "|<1|2>|<address>|<port>|", "makes the server open the data connection", |a| {
        super::address::parse_eprt(a).map(LoggedInCommand::Eprt)
    })
    .takes_words()
    .feat("EPRT"),
    // Transfers
    Verb::logged_in("TYPE", "A|I|L 8", "A converts line ends, I and L 8 transfer bytes unchanged", |a| {
        argument::transfer_type(a).map(LoggedInCommand::Type)
    })
    .takes_words(),
    Verb::logged_in("STRU", "F", "selects file structure; only F is supported", argument::structure)
        .takes_words(),
    Verb::logged_in("MODE", "S", "selects the transfer mode; only S is supported", argument::mode)
        .takes_words(),
    Verb::logged_in("ALLO", "<bytes> [R <bytes>]", "announces the size of the next upload", |a| {
        argument::allo(a).map(LoggedInCommand::Allo)
    })
    .takes_words(),
    Verb::logged_in("REST", "<offset>", "sets the offset of the next transfer", |a| {
        argument::offset(a).map(LoggedInCommand::Rest)
    })
    .takes_words()
    .feat("REST STREAM"),
    Verb::logged_in(
        "RANG",
        "<first> <last>",
        "sets the byte range of the next download; 1 0 clears it",
        |a| argument::rang(a).map(LoggedInCommand::Rang),
    )
    .takes_words()
    .feat("RANG STREAM"),
    Verb::logged_in("RETR", "<path>", "sends a file to the client", |a| {
        argument::path(a).map(LoggedInCommand::Retr)
    }),
    Verb::logged_in("STOR", "<path>", "stores a file", |a| argument::path(a).map(LoggedInCommand::Stor)),
    Verb::logged_in("STOU", "[<path>]", "stores a file under a new name", |a| {
        Ok(LoggedInCommand::Stou(argument::optional_path(a)))
    }),
    Verb::logged_in("APPE", "<path>", "appends to a file", |a| argument::path(a).map(LoggedInCommand::Appe)),
    Verb::logged_in("ABOR", "", "aborts the transfer", |_| Ok(LoggedInCommand::Abor)).during_transfer(),
    // Listings
    Verb::logged_in("LIST", "[-aAdFlRrSt] [<path>]", "lists a directory for people", |a| {
        Ok(LoggedInCommand::List(argument::list(a)))
    }),
    Verb::logged_in("NLST", "[-aAdFlRrSt] [<path>]", "lists the names in a directory", |a| {
        Ok(LoggedInCommand::Nlst(argument::list(a)))
    }),
    Verb::logged_in("MLSD", "[<path>]", "lists a directory for programs", |a| {
        Ok(LoggedInCommand::Mlsd(argument::optional_path(a)))
    }),
    Verb::logged_in("MLST", "[<path>]", "shows the facts about a path", |a| {
        Ok(LoggedInCommand::Mlst(argument::optional_path(a)))
    })
    .feature(FeatLine::Mlst),
    Verb::any_time_or_logged_in(
        "STAT",
        "[[-aAdFlRrSt] <path>]",
        "shows the status of the session, or lists a path",
        argument::stat,
    )
    .during_transfer(),
    // Checksums
    Verb::logged_in("HASH", "<path>", "shows the checksum of a file; OPTS HASH selects the algorithm", |a| {
        argument::path(a).map(LoggedInCommand::Hash)
    })
    .feature(FeatLine::Hash),
    Verb::logged_in("XCRC", "<path> [<start> [<end>]]", "shows the CRC-32 of a file", |a| {
        argument::checksum(Algorithm::Crc32, a)
    })
    .feat("XCRC"),
    Verb::logged_in("XMD5", "<path> [<start> [<end>]]", "shows the MD5 of a file", |a| {
        argument::checksum(Algorithm::Md5, a)
    })
    .feat("XMD5"),
    Verb::logged_in("XSHA1", "<path> [<start> [<end>]]", "shows the SHA-1 of a file", |a| {
        argument::checksum(Algorithm::Sha1, a)
    })
    .alias("XSHA")
    .feat("XSHA1"),
    Verb::logged_in("XSHA256", "<path> [<start> [<end>]]", "shows the SHA-256 of a file", |a| {
        argument::checksum(Algorithm::Sha256, a)
    })
    .feat("XSHA256"),
    Verb::logged_in("XSHA512", "<path> [<start> [<end>]]", "shows the SHA-512 of a file", |a| {
        argument::checksum(Algorithm::Sha512, a)
    })
    .feat("XSHA512"),
    Verb::logged_in("COMB", "<target> <source>...", "appends the sources to the target", |a| {
        argument::comb(a).map(LoggedInCommand::Comb)
    })
    .feat("COMB"),
    // Information and parameters
    Verb::any_time("SYST", "", "shows the type of the system", |_| Ok(AnyTimeCommand::Syst)),
    Verb::any_time("FEAT", "", "lists the extensions", |_| Ok(AnyTimeCommand::Feat)),
    Verb::any_time("HELP", "[<command>]", "shows this help", |a| {
        Ok(AnyTimeCommand::Help(argument::optional_path(a)))
    })
    .takes_words(),
    Verb::any_time("NOOP", "", "does nothing", |_| Ok(AnyTimeCommand::Noop)).during_transfer(),
    Verb::any_time("OPTS", "UTF8|MLST|HASH [<options>]", "sets options of a command", |a| {
        argument::opts(a).map(AnyTimeCommand::Opts)
    })
    .takes_words(),
    Verb::logged_in(
        "SITE",
        "<command> [<arguments>]",
        "runs a server-specific command; see SITE HELP",
        |a| site::parse(a).map(LoggedInCommand::Site),
    )
    .feature(FeatLine::Site),
    // Not supported: RFC 959 and the security extensions of RFC 2228
    Verb::not_offered("SMNT"),
    Verb::not_offered("ADAT"),
    Verb::not_offered("CONF"),
    Verb::not_offered("ENC"),
    Verb::not_offered("MIC"),
    // Not supported: RFC 2640, RFC 1639 and extensions of other servers
    Verb::not_offered("LANG"),
    Verb::not_offered("LPRT"),
    Verb::not_offered("LPSV"),
    Verb::not_offered("ESTP"),
    Verb::not_offered("ESTA"),
    Verb::not_offered("PRET"),
    Verb::not_offered("SSCN"),
    Verb::not_offered("MFF"),
    Verb::not_offered("MFCT"),
    Verb::not_offered("THMB"),
    Verb::not_offered("DSIZ"),
    Verb::not_offered("CSID"),
];

/// FEAT lines that belong to no verb: encoding (RFC 2640) and form (RFC 3659 section 6) of paths.
const OTHER_FEATURES: [&str; 2] = ["UTF8", "TVFS"];

/// The row with this name or alias, in upper or lower case.
pub fn find(name: &[u8]) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| {
        let matches = |known: &str| known.as_bytes().eq_ignore_ascii_case(name);
        matches(verb.name) || verb.alias.is_some_and(matches)
    })
}

/// State that the reply to FEAT depends on.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// The selected MLST facts.
    pub facts: Facts,
    /// The selected HASH algorithm.
    pub hash: Algorithm,
    /// True if TLS is configured.
    pub tls: bool,
}

/// The reply to FEAT (RFC 2389 section 3.2).
pub fn feat(features: Features) -> Reply {
    let Features { facts, hash, tls } = features;
    let offered = VERBS.iter().filter(|verb| verb.is_offered() && (tls || !verb.needs_tls));
    let lines = offered.flat_map(|verb| match verb.feature {
        FeatLine::None => vec![],
        FeatLine::Line(line) => vec![ReplyText::from(line)],
        FeatLine::Mlst => vec![ReplyText::from(facts.feature())],
        FeatLine::Hash => vec![ReplyText::from(hash_feature(hash))],
        FeatLine::Site => {
            SITE_COMMANDS.iter().filter_map(|command| command.feature.map(ReplyText::from)).collect()
        }
    });
    let lines = lines.chain(OTHER_FEATURES.map(ReplyText::from)).collect();
    Reply::lines(Code::SYSTEM_STATUS, "Extensions supported:", lines, "End")
}

/// `HASH SHA-256*;SHA-1;…`: the selected algorithm has a star.
fn hash_feature(selected: Algorithm) -> String {
    let mut line = String::from("HASH ");
    for (i, algorithm) in Algorithm::ALL.into_iter().enumerate() {
        if i > 0 {
            line.push(';');
        }
        line.push_str(algorithm.name());
        if algorithm == selected {
            line.push('*');
        }
    }
    line
}

/// The reply to HELP (RFC 959 section 4.1.3): all verbs, or the verb in `topic`.
pub fn help(topic: Option<&[u8]>) -> Reply {
    match topic.map(|name| find(name).filter(|verb| verb.is_offered())) {
        None => {
            let names: Vec<_> = VERBS.iter().filter(|verb| verb.is_offered()).map(|verb| verb.name).collect();
            let rows = names.chunks(8).map(|row| ReplyText::from(row.join(" "))).collect();
            Reply::lines(Code::HELP, "Commands:", rows, "Use HELP <command> for details")
        }
        Some(Some(verb)) if verb.name == "SITE" => site_help(),
        Some(Some(verb)) => Reply::new(Code::HELP, format!("{}: {}", verb.usage(), verb.help)),
        Some(None) => Reply::new(Code::NOT_IMPLEMENTED, "Unknown command"),
    }
}

/// The reply to SITE HELP.
pub fn site_help() -> Reply {
    let lines = site::usages().map(ReplyText::from).collect();
    Reply::lines(Code::HELP, "SITE commands:", lines, "End")
}

#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    VERBS.iter().map(|verb| verb.name)
}

#[cfg(test)]
mod tests;
