//! The verb table: every command's name, arguments, place in a session, FEAT line and HELP text.

use std::fmt;

use super::facts::Facts;
use super::{
    arguments::{self as argument, Fault},
    command::{Algorithm, Command, Site},
    reply::{Code, Reply, Text},
};

/// A row of the verb table.
pub struct Verb {
    /// As RFCs spell it: in capitals.
    pub name: &'static str,
    /// The older form with an X, RFC 775.
    pub alias: Option<&'static str>,
    /// What follows the name, for people.
    pub arguments: &'static str,
    /// What it does, for people.
    pub help: &'static str,
    /// Asked for through [`super::Request::phase`], which knows STAT's two meanings.
    pub(super) phase: Phase,
    /// May run while a transfer is under way; asked for through
    /// [`super::Request::during_transfer`].
    pub(super) during_transfer: bool,
    feature: Feature,
    /// Spaces around the arguments mean nothing: none of them is a path or part of a login.
    pub(super) takes_words: bool,
    /// `None` where the verb is known but not offered.
    pub(super) parse: Option<Parser>,
}

pub(super) type Parser = fn(&[u8]) -> Result<Command, Fault>;

/// When in a session a verb may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Always,
    BeforeLogin,
    AfterLogin,
}

/// What FEAT says of a verb, RFC 2389 section 3.2.
#[derive(Clone, Copy)]
enum Feature {
    None,
    Line(&'static str),
    /// Where there is TLS.
    Tls(&'static str),
    /// The facts, with those selected marked.
    Mlst,
    /// The algorithms, with the selected one marked.
    Hash,
}

impl Verb {
    const fn new(
        name: &'static str,
        arguments: &'static str,
        help: &'static str,
        phase: Phase,
        parse: Parser,
    ) -> Self {
        Self {
            name,
            alias: None,
            arguments,
            help,
            phase,
            during_transfer: false,
            feature: Feature::None,
            takes_words: false,
            parse: Some(parse),
        }
    }

    const fn not_offered(name: &'static str) -> Self {
        Self {
            name,
            alias: None,
            arguments: "",
            help: "",
            phase: Always,
            during_transfer: false,
            feature: Feature::None,
            takes_words: false,
            parse: None,
        }
    }

    const fn or(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }

    const fn in_transfer(mut self) -> Self {
        self.during_transfer = true;
        self
    }

    const fn words(mut self) -> Self {
        self.takes_words = true;
        self
    }

    const fn feature(mut self, feature: Feature) -> Self {
        self.feature = feature;
        self
    }

    const fn feat(self, line: &'static str) -> Self {
        self.feature(Feature::Line(line))
    }

    /// Name and arguments: `RETR <path>`.
    pub fn usage(&self) -> String {
        let space = if self.arguments.is_empty() { "" } else { " " };
        format!("{}{space}{}", self.name, self.arguments)
    }
}

impl PartialEq for Verb {
    /// Names are unique in the table.
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

use Phase::{AfterLogin, Always, BeforeLogin};

#[rustfmt::skip]
static VERBS: &[Verb] = &[
    // Login
    Verb::new("USER", "<name>", "begins a login", Always, |a| argument::path(a).map(Command::User)),
    Verb::new("PASS", "<password>", "ends a login", Always, |a| Ok(argument::password(a))),
    Verb::new("ACCT", "<account>", "names an account; none is needed", Always, |a| argument::path(a).map(Command::Acct)),
    Verb::new("REIN", "", "logs out", Always, |_| Ok(Command::Rein)),
    Verb::new("QUIT", "", "ends the session", Always, |_| Ok(Command::Quit)).in_transfer(),
    Verb::new("HOST", "<name>", "selects a virtual host", BeforeLogin, |a| argument::host(a).map(Command::Host)).words().feat("HOST"),
    Verb::new("CLNT", "<name>", "says which program the client is", Always, |a| argument::path(a).map(Command::Clnt)).words().feat("CLNT"),
    // Security, RFC 2228 and RFC 4217
    Verb::new("AUTH", "TLS", "begins to encrypt the control connection", Always, argument::auth).words().feature(Feature::Tls("AUTH TLS")),
    Verb::new("PBSZ", "0", "comes before PROT", Always, argument::pbsz).words().feature(Feature::Tls("PBSZ")),
    Verb::new("PROT", "C|P", "data connections are in the clear, or private", Always, argument::prot).words().feature(Feature::Tls("PROT")),
    Verb::new("CCC", "", "would end the encryption; refused", Always, |_| Ok(Command::Ccc)),
    // Directories and files
    Verb::new("PWD", "", "shows the current directory", AfterLogin, |_| Ok(Command::Pwd)).or("XPWD"),
    Verb::new("CWD", "[<path>]", "changes the current directory", AfterLogin, |a| Ok(Command::Cwd(argument::optional_path(a)))).or("XCWD"),
    Verb::new("CDUP", "", "goes to the directory above", AfterLogin, |_| Ok(Command::Cdup)).or("XCUP"),
    Verb::new("MKD", "<path>", "makes a directory", AfterLogin, |a| argument::path(a).map(Command::Mkd)).or("XMKD"),
    Verb::new("RMD", "<path>", "removes an empty directory", AfterLogin, |a| argument::path(a).map(Command::Rmd)).or("XRMD"),
    Verb::new("RMDA", "<path>", "removes a directory and all in it", AfterLogin, |a| argument::path(a).map(Command::Rmda)).feat("RMDA"),
    Verb::new("DELE", "<path>", "deletes a file", AfterLogin, |a| argument::path(a).map(Command::Dele)),
    Verb::new("RNFR", "<path>", "names what to rename", AfterLogin, |a| argument::path(a).map(Command::Rnfr)),
    Verb::new("RNTO", "<path>", "renames it", AfterLogin, |a| argument::path(a).map(Command::Rnto)),
    Verb::new("SIZE", "<path>", "shows the size of a file in bytes", AfterLogin, |a| argument::path(a).map(Command::Size)).feat("SIZE"),
    Verb::new("MDTM", "[<YYYYMMDDhhmmss>] <path>", "shows or sets the time of last change", AfterLogin, argument::mdtm).feat("MDTM"),
    Verb::new("MFMT", "<YYYYMMDDhhmmss> <path>", "sets the time of last change", AfterLogin, |a| argument::modified(a).map(Command::Mfmt)).feat("MFMT"),
    Verb::new("AVBL", "[<path>]", "shows the free space in bytes", AfterLogin, |a| Ok(Command::Avbl(argument::optional_path(a)))).feat("AVBL"),
    // Data connections
    Verb::new("PASV", "", "the server listens for the data connection", AfterLogin, |_| Ok(Command::Pasv)).feat("PASV"),
    Verb::new("EPSV", "[1|2|ALL]", "the server listens for the data connection", AfterLogin, |a| argument::epsv(a).map(Command::Epsv)).words().feat("EPSV"),
    Verb::new("PORT", "<h1,h2,h3,h4,p1,p2>", "the server opens the data connection", AfterLogin, |a| super::address::parse_port(a).map(Command::Port)).words(),
    Verb::new("EPRT", "|<1|2>|<address>|<port>|", "the server opens the data connection", AfterLogin, |a| super::address::parse_eprt(a).map(Command::Eprt)).words().feat("EPRT"),
    // Transfers
    Verb::new("TYPE", "A|I|L 8", "text with line ends converted, or bytes", AfterLogin, |a| argument::transfer_type(a).map(Command::Type)).words(),
    Verb::new("STRU", "F", "files have no structure", AfterLogin, argument::structure).words(),
    Verb::new("MODE", "S", "data is sent as a stream", AfterLogin, argument::mode).words(),
    Verb::new("ALLO", "<bytes> [R <bytes>]", "announces the size of the next upload", AfterLogin, |a| argument::allo(a).map(Command::Allo)).words(),
    Verb::new("REST", "<offset>", "where the next transfer begins", AfterLogin, |a| argument::offset(a).map(Command::Rest)).words().feat("REST STREAM"),
    Verb::new("RANG", "<first> <last>", "which bytes the next transfer is of; 1 0 for all", AfterLogin, |a| argument::rang(a).map(Command::Rang)).words().feat("RANG STREAM"),
    Verb::new("RETR", "<path>", "sends a file to the client", AfterLogin, |a| argument::path(a).map(Command::Retr)),
    Verb::new("STOR", "<path>", "stores a file", AfterLogin, |a| argument::path(a).map(Command::Stor)),
    Verb::new("STOU", "[<path>]", "stores a file under a new name", AfterLogin, |a| Ok(Command::Stou(argument::optional_path(a)))),
    Verb::new("APPE", "<path>", "appends to a file", AfterLogin, |a| argument::path(a).map(Command::Appe)),
    Verb::new("ABOR", "", "ends the transfer under way", AfterLogin, |_| Ok(Command::Abor)).in_transfer(),
    // Listings
    Verb::new("LIST", "[-aAdFlRrSt1] [<path>]", "lists a directory for people", AfterLogin, |a| Ok(Command::List(argument::list(a)))),
    Verb::new("NLST", "[-aAdFlRrSt1] [<path>]", "lists the names in a directory", AfterLogin, |a| Ok(Command::Nlst(argument::list(a)))),
    Verb::new("MLSD", "[<path>]", "lists a directory for programs", AfterLogin, |a| Ok(Command::Mlsd(argument::optional_path(a)))),
    Verb::new("MLST", "[<path>]", "shows the facts about a path", AfterLogin, |a| Ok(Command::Mlst(argument::optional_path(a)))).feature(Feature::Mlst),
    Verb::new("STAT", "[[-aAdFlRrSt1] <path>]", "shows the state of the session, or lists a path", Always, |a| Ok(argument::stat(a))).in_transfer(),
    // Checksums
    Verb::new("HASH", "<path>", "the checksum of a file, by the algorithm of OPTS HASH", AfterLogin, |a| argument::path(a).map(Command::Hash)).feature(Feature::Hash),
    Verb::new("XCRC", "<path> [<start> [<end>]]", "the CRC-32 of a file", AfterLogin, |a| argument::checksum(Algorithm::Crc32, a)).feat("XCRC"),
    Verb::new("XMD5", "<path> [<start> [<end>]]", "the MD5 of a file", AfterLogin, |a| argument::checksum(Algorithm::Md5, a)).feat("XMD5"),
    Verb::new("XSHA1", "<path> [<start> [<end>]]", "the SHA-1 of a file", AfterLogin, |a| argument::checksum(Algorithm::Sha1, a)).or("XSHA").feat("XSHA1"),
    Verb::new("XSHA256", "<path> [<start> [<end>]]", "the SHA-256 of a file", AfterLogin, |a| argument::checksum(Algorithm::Sha256, a)).feat("XSHA256"),
    Verb::new("XSHA512", "<path> [<start> [<end>]]", "the SHA-512 of a file", AfterLogin, |a| argument::checksum(Algorithm::Sha512, a)).feat("XSHA512"),
    Verb::new("COMB", "<target> <source>...", "joins files to the end of one", AfterLogin, |a| argument::comb(a).map(Command::Comb)).feat("COMB"),
    // Information and parameters
    Verb::new("SYST", "", "shows the kind of system", Always, |_| Ok(Command::Syst)),
    Verb::new("FEAT", "", "lists the extensions", Always, |_| Ok(Command::Feat)),
    Verb::new("HELP", "[<command>]", "shows this", Always, |a| Ok(Command::Help(argument::optional_path(a)))).words(),
    Verb::new("NOOP", "", "does nothing", Always, |_| Ok(Command::Noop)).in_transfer(),
    Verb::new("OPTS", "UTF8|MLST|HASH [<options>]", "sets options of a command", Always, |a| argument::opts(a).map(Command::Opts)).words(),
    Verb::new("SITE", "CHMOD|UTIME|WHO|QUOTA|HELP [<arguments>]", "what no RFC has", AfterLogin, |a| argument::site(a).map(Command::Site)).feat("SITE UTIME"),
    // RFC 959 and the security extensions, RFC 2228
    Verb::not_offered("SMNT"),
    Verb::not_offered("ADAT"),
    Verb::not_offered("CONF"),
    Verb::not_offered("ENC"),
    Verb::not_offered("MIC"),
    // RFC 2640, RFC 1639 and what others have
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

/// FEAT lines of what is no verb: how paths are encoded (RFC 2640) and written (RFC 3659 section 6).
const OTHER_FEATURES: [&str; 2] = ["UTF8", "TVFS"];

/// The row of a name in any case, also of its form with an X.
pub fn find(name: &[u8]) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| {
        let is = |known: &str| known.as_bytes().eq_ignore_ascii_case(name);
        is(verb.name) || verb.alias.is_some_and(is)
    })
}

/// What FEAT depends on.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// The facts that are selected.
    pub facts: Facts,
    /// The algorithm that is selected.
    pub hash: Algorithm,
    /// Whether there is TLS.
    pub tls: bool,
}

/// The answer to FEAT, RFC 2389 section 3.2.
pub fn feat(features: Features) -> Reply {
    let Features { facts, hash, tls } = features;
    let offered = VERBS.iter().filter(|verb| verb.parse.is_some());
    let lines = offered.filter_map(|verb| match verb.feature {
        Feature::None => None,
        Feature::Line(line) => Some(Text::from(line)),
        Feature::Tls(line) => tls.then(|| Text::from(line)),
        Feature::Mlst => Some(Text::from(facts.feature())),
        Feature::Hash => Some(Text::from(hash_feature(hash))),
    });
    let lines = lines.chain(OTHER_FEATURES.map(Text::from)).collect();
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

/// The answer to HELP, RFC 959 section 4.1.3: of all verbs, or of the one in `topic`.
pub fn help(topic: Option<&[u8]>) -> Reply {
    match topic.map(|name| find(name).filter(|verb| verb.parse.is_some())) {
        None => {
            let names: Vec<_> =
                VERBS.iter().filter(|verb| verb.parse.is_some()).map(|verb| verb.name).collect();
            let rows = names.chunks(8).map(|row| Text::from(row.join(" "))).collect();
            Reply::lines(Code::HELP, "Commands:", rows, "HELP <command> tells more.")
        }
        Some(Some(verb)) if verb.name == "SITE" => site_help(),
        Some(Some(verb)) => Reply::new(Code::HELP, format!("{}: {}", verb.usage(), verb.help)),
        Some(None) => Reply::new(Code::NOT_IMPLEMENTED, "No such command."),
    }
}

/// The answer to SITE HELP.
pub fn site_help() -> Reply {
    let lines = Site::USAGES.map(Text::from).to_vec();
    Reply::lines(Code::HELP, "SITE commands:", lines, "End")
}

#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    VERBS.iter().map(|verb| verb.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_name_is_in_the_table_once_and_in_capitals() {
        let names: Vec<_> = VERBS.iter().flat_map(|verb| [Some(verb.name), verb.alias]).flatten().collect();
        for (i, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), "{name}");
            assert!(!names[..i].contains(name), "{name}");
            assert!(!crate::protocol::command::is_foreign(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn only_what_any_moment_allows_runs_during_a_transfer_rfc_959_4_1_3() {
        let names: Vec<_> = VERBS.iter().filter(|verb| verb.during_transfer).map(|verb| verb.name).collect();
        assert_eq!(names, ["QUIT", "ABOR", "STAT", "NOOP"]);
    }

    #[test]
    fn before_login_nothing_touches_files() {
        let names: Vec<_> = VERBS
            .iter()
            .filter(|verb| verb.parse.is_some() && verb.phase != AfterLogin)
            .map(|verb| verb.name)
            .collect();
        // STAT is for everybody only without a path, see `Request::phase`.
        let expected = [
            "USER", "PASS", "ACCT", "REIN", "QUIT", "HOST", "CLNT", "AUTH", "PBSZ", "PROT", "CCC", "STAT",
            "SYST", "FEAT", "HELP", "NOOP", "OPTS",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn feat_has_one_line_an_extension_rfc_2389_3_2() {
        let features = Features { facts: Facts::parse(b"type;"), hash: Algorithm::Sha256, tls: true };
        let reply = text(&feat(features));
        assert!(reply.starts_with("211-Extensions supported:\r\n ") && reply.ends_with("\r\n211 End\r\n"));
        for line in [
            " EPRT",
            " EPSV",
            " MDTM",
            " MFMT",
            " SIZE",
            " REST STREAM",
            " TVFS",
            " UTF8",
            " HOST",
            " AUTH TLS",
            " PBSZ",
            " PROT",
            " MLST type*;size;modify;perm;unique;UNIX.mode;",
            " HASH CRC32;MD5;SHA-1;SHA-256*;SHA-512",
        ] {
            assert!(reply.lines().any(|l| l == line), "{line}");
        }
        assert!(!text(&feat(Features { tls: false, ..features })).contains("AUTH"), "not offered");
    }

    #[test]
    fn help_lists_what_is_offered_and_explains_each() {
        let all = text(&help(None));
        for verb in VERBS {
            let listed = all.split_ascii_whitespace().any(|word| word == verb.name);
            assert_eq!(listed, verb.parse.is_some(), "{verb:?}");
            let one = text(&help(Some(verb.name.as_bytes())));
            assert_eq!(one.starts_with("214"), verb.parse.is_some(), "{one}");
        }
        assert_eq!(text(&help(Some(b"retr"))), "214 RETR <path>: sends a file to the client\r\n");
        assert!(text(&help(Some(b"SITE"))).contains("\r\n CHMOD <mode> <path>\r\n"));
        assert_eq!(text(&help(Some(b"\r\n"))), "502 No such command.\r\n");
    }
}
