//! Tests of the command parser with lines of real and of hostile clients.

use proptest::prelude::*;

use super::{
    AnyTimeCommand::{Acct, Clnt, Help, Host, Pass, Stat, User},
    Command::{AnyTime, LoggedIn},
    LoggedInCommand::{
        Allo, Cwd, Dele, Epsv, List, Mdtm, MdtmSet, Mfmt, Mkd, Mode, Nlst, Pwd, Rang, Rest, Retr, StatPath,
        Stor, Stru, Type,
    },
    *,
};
use crate::protocol::{line::MAX_LINE, mode::ModeChange};

fn command(line: &str) -> Command {
    command_of(line.as_bytes())
}

fn command_of(line: &[u8]) -> Command {
    match parse(line) {
        Ok(request) => request.command,
        Err(error) => panic!("{}: {error:?}", line.escape_ascii()),
    }
}

/// The command of a line that needs a login.
fn logged_in(line: &str) -> LoggedInCommand {
    match command(line) {
        LoggedIn(command) => command,
        AnyTime(command) => panic!("{line}: {command:?}"),
    }
}

fn refused(line: &str) -> Option<u16> {
    parse(line.as_bytes()).expect_err(line).reply().map(|reply| reply.code().value())
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn list_of(letters: &str) -> ListOptions {
    ListOptions {
        all: letters.contains('a'),
        almost_all: letters.contains('A'),
        long: letters.contains('l'),
        recursive: letters.contains('R'),
        directory: letters.contains('d'),
        classify: letters.contains('F'),
        by_time: letters.contains('t'),
        by_size: letters.contains('S'),
        reverse: letters.contains('r'),
    }
}

#[test]
fn verbs_ignore_case_and_paths_are_kept_byte_for_byte_rfc_959_5_3() {
    assert_eq!(logged_in("rEtR A b"), Retr(bytes("A b")));
    assert_eq!(logged_in("STOR  a "), Stor(bytes(" a ")));
    assert_eq!(logged_in("CWD \t"), Cwd(Some(bytes("\t"))));
    assert_eq!(command_of(b"DELE \xff\xfe"), LoggedIn(Dele(b"\xff\xfe".to_vec())));
    assert_eq!(logged_in("XMKD a"), Mkd(bytes("a")));
    assert_eq!(logged_in("xpwd"), Pwd);
    assert_eq!(logged_in("PWD "), Pwd);
}

#[test]
fn bad_lines_get_the_reply_codes_of_rfc_959_5_4() {
    for (code, lines) in [
        (500, &["", "   ", "XYZZY", " PWD", "RETR\tx", "RETRx y"][..]),
        (501, &["RETR", "RETR ", "USER", "TYPE", "TYPE X", "TYPE L", "TYPE A N N", "STRU X", "MODE", "REST"]),
        (
            501,
            &[
                "REST -1",
                "REST +1",
                "REST 1 2",
                "REST 0x1",
                "REST 9223372036854775808",
                "REST 99999999999999999999",
            ],
        ),
        (
            501,
            &[
                "ALLO",
                "ALLO x",
                "ALLO 1 R",
                "ALLO 1 R 2 3",
                "ALLO 1 X 2",
                "OPTS",
                "OPTS FOO",
                "OPTS HASH FOO",
                "SITE",
            ],
        ),
        (
            501,
            &[
                "RANG 5",
                "RANG 5 4",
                "RANG 2 0",
                "RANG 1 2 3",
                "RANG 0 9223372036854775808",
                "EPSV x",
                "HOST a b",
            ],
        ),
        (
            501,
            &[
                "HOST",
                "HOST a/b",
                "HOST [1]",
                "HOST ::1",
                "HOST a..b",
                "MFMT x",
                "MFMT 20260101000000",
                "MFMT 20260101000000 ",
            ],
        ),
        (
            501,
            &[
                "SITE CHMOD 8 a",
                "SITE CHMOD 644",
                "SITE CHMOD 10000 a",
                "SITE CHMOD u+q a",
                "SITE UTIME 2026 a",
            ],
        ),
        (
            501,
            &[
                "COMB a",
                "COMB \"a b",
                "COMB \"a\"b c",
                "COMB a  b",
                "XCRC",
                "XCRC \"\"",
                "XCRC \"a\" 5 4",
                "XCRC \"a\" x",
                "XCRC a 1 2 3",
            ],
        ),
        (502, &["SMNT /", "LANG", "LPRT 1", "LPSV", "ESTP", "ADAT x", "CONF", "ENC", "MIC"]),
        (
            504,
            &[
                "TYPE E",
                "TYPE A T",
                "TYPE a c",
                "TYPE L 7",
                "STRU R",
                "STRU p",
                "MODE B",
                "MODE C",
                "MODE Z",
                "SITE EXEC ls",
            ],
        ),
        (522, &["EPSV 3", "EPRT |3|x|1|"]),
    ] {
        for line in lines {
            assert_eq!(refused(line), Some(code), "{line:?}");
        }
    }
}

#[test]
fn commands_without_arguments_ignore_text_after_the_verb() {
    for line in [
        "NOOP x",
        "QUIT bye",
        "CDUP ..",
        "PASV 1",
        "PWD x",
        "REIN now",
        "SYST x",
        "FEAT x",
        "ABOR x",
        "CCC x",
        "SITE WHO x",
        "SITE QUOTA x",
        "SITE HELP x",
    ] {
        let without = line.rsplit_once(' ').unwrap().0;
        assert_eq!(command(line), command(without), "{line}");
        assert_eq!(command(&format!("{without}  ")), command(without), "{line}");
    }
    // A CR is refused even in ignored text: it could split a line of a log or a reply.
    assert_eq!(refused("NOOP x\ry"), Some(501));
}

#[test]
fn spaces_around_arguments_are_ignored_except_around_paths() {
    for line in [
        "REST 0",
        "EPSV 1",
        "EPSV ALL",
        "STRU F",
        "MODE S",
        "TYPE I",
        "TYPE A N",
        "OPTS UTF8 ON",
        "OPTS MLST size;",
        "OPTS HASH MD5",
        "AUTH TLS",
        "PBSZ 0",
        "PROT P",
        "ALLO 5",
        "ALLO 5 R 80",
        "RANG 0 5",
        "HOST example.com",
        "PORT 127,0,0,1,4,1",
        "EPRT |1|127.0.0.1|1025|",
        "HELP RETR",
        "CLNT x",
    ] {
        let (verb, argument) = line.split_once(' ').unwrap();
        assert_eq!(command(&format!("{line} ")), command(line), "{line}");
        assert_eq!(command(&format!("{verb}  {argument}   ")), command(line), "{line}");
    }
    for line in ["RETR a ", "CWD a ", "MLST a ", "USER a ", "SITE CHMOD 644 a ", "LIST -l a "] {
        assert_ne!(command(line), command(line.trim_end()), "{line}");
    }
}

#[test]
fn a_bad_argument_gets_501_with_the_usage() {
    let mut reply = Vec::new();
    parse(b"MFMT x").unwrap_err().reply().unwrap().encode(&mut reply);
    assert_eq!(reply, b"501 Usage: MFMT <YYYYMMDDhhmmss> <path>\r\n");
}

#[test]
fn commands_of_other_protocols_get_no_reply_cve_2021_3618() {
    for line in [
        "GET / HTTP/1.1",
        "POST /x HTTP/1.1",
        "get /",
        "HEAD",
        "PUT / HTTP/1.1",
        "OPTIONS *",
        "CONNECT a:21",
        "PATCH /",
        "TRACE /",
        "DELETE /",
        "HELO a",
        "EHLO a",
        "LHLO a",
        "MAIL FROM:<a>",
        "RCPT TO:<a>",
        "DATA",
        "SSH-2.0-OpenSSH_9",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2",
        "\x16\x03\x01\x02",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(ParseError::Foreign), "{line}");
        assert_eq!(refused(line), None);
    }
    assert!(is_foreign(b"\r\n\r\n\0\r\nQUIT\n\x21\x11"));
    for line in ["PUTS", "HEL", "HELP", "DATABASE", "SSH", "", "\x16"] {
        assert!(!is_foreign(line.as_bytes()), "{line}");
    }
}

#[test]
fn a_password_may_be_empty_and_is_never_printed() {
    for (line, password) in [("PASS", ""), ("PASS ", ""), ("PASS  a b ", " a b ")] {
        let request = parse(line.as_bytes()).unwrap();
        assert_eq!(format!("{request:?}"), "Request { verb: PASS, command: AnyTime(Pass([password])) }");
        let AnyTime(Pass(given)) = request.command else { panic!("{line}") };
        assert_eq!(given.expose(), password.as_bytes());
    }
}

#[test]
fn stat_without_argument_runs_during_a_transfer_rfc_959_4_1_3() {
    let during = |line: &str| parse(line.as_bytes()).unwrap().during_transfer();
    assert!(during("STAT") && during("STAT ") && during("ABOR") && during("NOOP") && during("QUIT"));
    assert!(!during("STAT /") && !during("STAT -l") && !during("RETR a"));
}

#[test]
fn stat_of_a_path_needs_a_login() {
    assert_eq!(command("STAT"), AnyTime(Stat));
    assert_eq!(logged_in("STAT /"), StatPath(ListArguments { path: Some(bytes("/")), ..Default::default() }));
}

#[test]
fn list_options_come_before_the_path() {
    for (argument, letters, path) in [
        ("", "", None),
        ("/", "", Some("/")),
        ("-la", "la", None),
        ("-aL", "a", None),
        ("-al /pub dir ", "al", Some("/pub dir ")),
        ("-a -l1 x", "al", Some("x")),
        ("-RdFtSrA", "RdFtSrA", None),
        ("-l -- -a", "l", Some("-a")),
        ("--", "", None),
        ("./-x", "", Some("./-x")),
        ("-x.txt", "", Some("-x.txt")),
        ("-", "", Some("-")),
        (" -l", "", Some(" -l")),
        ("a -l", "", Some("a -l")),
    ] {
        let expected = || ListArguments { options: list_of(letters), path: path.map(bytes) };
        assert_eq!(logged_in(&format!("LIST {argument}")), List(expected()), "{argument}");
        assert_eq!(logged_in(&format!("NLST {argument}")), Nlst(expected()), "{argument}");
        let stat = if argument.is_empty() { AnyTime(Stat) } else { LoggedIn(StatPath(expected())) };
        assert_eq!(command(&format!("STAT {argument}")), stat, "{argument}");
    }
}

#[test]
fn type_i_and_type_l_8_are_image_rfc_959_3_1_1() {
    for line in ["TYPE I", "type i", "TYPE L 8", "TYPE l 8", "TYPE L8", "TYPE  I ", "TYPE L  8"] {
        assert_eq!(logged_in(line), Type(TransferType::Image));
    }
    for line in ["TYPE A", "TYPE A N", "TYPE a n", "TYPE AN", "TYPE A "] {
        assert_eq!(logged_in(line), Type(TransferType::Ascii));
    }
    assert_eq!((logged_in("STRU f"), logged_in("MODE S")), (Stru, Mode));
}

#[test]
fn sizes_and_offsets_may_be_as_large_as_i64_max() {
    assert_eq!(logged_in("REST 9223372036854775807"), Rest(i64::MAX as u64));
    assert_eq!((logged_in("ALLO 5"), logged_in("ALLO 5 R 80")), (Allo(5), Allo(5)));
    assert_eq!(logged_in("RANG 1 0"), Rang(None));
    assert_eq!(logged_in("RANG 0 0"), Rang(Some(ByteRange { start: 0, end: 0 })));
}

#[test]
fn epsv_accepts_a_family_or_all_rfc_2428_3() {
    for (line, argument) in [
        ("EPSV", EpsvArgument::Any),
        ("EPSV 1", EpsvArgument::Family(AddressFamily::V4)),
        ("EPSV 2", EpsvArgument::Family(AddressFamily::V6)),
        ("EPSV all", EpsvArgument::All),
    ] {
        assert_eq!(logged_in(line), Epsv(argument));
    }
}

#[test]
fn mdtm_with_time_and_path_sets_the_modification_time() {
    let modified = |path| Modified { time: 0, path: bytes(path) };
    assert_eq!(logged_in("MDTM 19700101000000 a b"), MdtmSet(modified("a b")));
    assert_eq!(logged_in("MDTM 19700101000000.5  a"), MdtmSet(modified(" a")));
    assert_eq!(logged_in("MFMT 19700101000000 a"), Mfmt(modified("a")));
    for name in ["19700101000000", "19700101000000 ", "19701301000000 a", "./19700101000000 a"] {
        assert_eq!(logged_in(&format!("MDTM {name}")), Mdtm(bytes(name)));
    }
}

#[test]
fn site_utime_accepts_the_forms_of_proftpd_and_pure_ftpd() {
    let utime = |time, path| LoggedInCommand::Site(Site::Utime(Modified { time, path: bytes(path) }));
    assert_eq!(logged_in("SITE UTIME 197001010001 a b"), utime(60, "a b"));
    assert_eq!(logged_in("site utime 19700101000102 a"), utime(62, "a"));
    let three = "19700101000001 19700101000002 19700101000003";
    assert_eq!(logged_in(&format!("SITE UTIME a b {three} UTC")), utime(2, "a b"));
    assert_eq!(refused("SITE UTIME a 19700101000001 UTC"), Some(501));
    assert_eq!(
        logged_in("SITE CHMOD 4755 a b"),
        LoggedInCommand::Site(Site::Chmod { mode: ModeChange::To(0o4755), path: bytes("a b") })
    );
    assert_eq!(
        (logged_in("SITE HELP"), logged_in("SITE who")),
        (LoggedInCommand::Site(Site::Help), LoggedInCommand::Site(Site::Who))
    );
    assert_eq!(logged_in("SITE Quota"), LoggedInCommand::Site(Site::Quota));
}

#[test]
fn checksum_commands_accept_a_quoted_path_and_a_byte_range() {
    for (argument, path, start, end) in [
        ("a", "a", 0, None),
        ("a b.txt", "a b.txt", 0, None),
        ("a 5", "a", 5, None),
        ("a 5 7", "a", 5, Some(7)),
        ("\"a \"\"b\"\" 1\" 2 2", "a \"b\" 1", 2, Some(2)),
        ("\"a b\"", "a b", 0, None),
    ] {
        for (verb, algorithm) in [
            ("XCRC", Algorithm::Crc32),
            ("XMD5", Algorithm::Md5),
            ("XSHA", Algorithm::Sha1),
            ("XSHA1", Algorithm::Sha1),
            ("XSHA256", Algorithm::Sha256),
            ("XSHA512", Algorithm::Sha512),
        ] {
            let expected = Checksum { algorithm, path: bytes(path), start, end };
            assert_eq!(
                logged_in(&format!("{verb} {argument}")),
                LoggedInCommand::Checksum(expected),
                "{argument}"
            );
        }
    }
}

#[test]
fn comb_accepts_quoted_and_unquoted_names() {
    let expected = Comb { target: bytes("a b"), sources: vec![bytes("c"), bytes("d \"e")] };
    assert_eq!(logged_in("COMB \"a b\" c \"d \"\"e\""), LoggedInCommand::Comb(expected));
}

#[test]
fn opts_sets_utf8_facts_and_the_hash_algorithm_rfc_2389_4() {
    for line in ["OPTS UTF8 ON", "opts utf8 on", "OPTS UTF8", "OPTS UTF-8 NLST"] {
        assert_eq!(command(line), AnyTime(AnyTimeCommand::Opts(Opts::Utf8(true))));
    }
    assert_eq!(command("OPTS UTF8 OFF"), AnyTime(AnyTimeCommand::Opts(Opts::Utf8(false))));
    assert_eq!(
        command("OPTS MLST size;x;"),
        AnyTime(AnyTimeCommand::Opts(Opts::Mlst(Facts::parse(b"size;"))))
    );
    assert_eq!(command("OPTS HASH"), AnyTime(AnyTimeCommand::Opts(Opts::Hash(None))));
    assert_eq!(
        command("OPTS HASH sha-512"),
        AnyTime(AnyTimeCommand::Opts(Opts::Hash(Some(Algorithm::Sha512))))
    );
}

#[test]
fn host_accepts_names_and_addresses_rfc_7151_3_1() {
    for name in ["ftp.example.com", "FTP.example.com.", "192.0.2.1", "[2001:db8::1]"] {
        assert_eq!(command(&format!("HOST {name}")), AnyTime(Host(name.to_owned())));
    }
}

/// All paths and names of a command.
fn texts(command: Command) -> Vec<Vec<u8>> {
    match command {
        AnyTime(User(a) | Acct(a) | Clnt(a)) => vec![a],
        AnyTime(Help(a)) => a.into_iter().collect(),
        AnyTime(Pass(a)) => {
            assert!(!a.expose().iter().any(|b| matches!(b, 0 | b'\r' | b'\n')));
            vec![]
        }
        AnyTime(_) => vec![],
        LoggedIn(LoggedInCommand::Comb(a)) => a.sources.into_iter().chain([a.target]).collect(),
        // The working directory is an empty path.
        LoggedIn(command) => {
            command.path().filter(|path| !path.is_empty()).map(<[u8]>::to_vec).into_iter().collect()
        }
    }
}

/// Almost valid lines: a verb, and an argument made of pieces that have a meaning in some command.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let verb = prop::sample::select(verbs::names().collect::<Vec<_>>());
    let piece = prop::sample::select(vec![
        &b" "[..],
        b"\"",
        b"a",
        b"-la",
        b"--",
        b"/",
        b"\0",
        b"\r",
        b"\n",
        b"\xff",
        b"1",
        b"0",
        b"644",
        b"CHMOD ",
        b"UTIME ",
        b"20260101000000",
        b"UTC",
        b"|",
        b",",
        b";",
        b"MLST ",
        b"18446744073709551616",
    ]);
    let argument = prop_oneof![
        3 => prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat()),
        1 => any::<Vec<u8>>(),
        1 => (0..MAX_LINE).prop_map(|n| vec![b' '; n]),
    ];
    let known = (verb, argument).prop_map(|(verb, argument)| [verb.as_bytes(), b" ", &argument].concat());
    prop_oneof![9 => known, 1 => any::<Vec<u8>>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_line_causes_a_panic_or_yields_an_impossible_file_name(line in line()) {
        match parse(&line) {
            Ok(request) => {
                for text in texts(request.command) {
                    prop_assert!(!text.is_empty());
                    prop_assert!(!text.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')));
                }
            }
            Err(error) => {
                let code = error.reply().map(|reply| reply.code().value());
                prop_assert!(matches!(code, None | Some(500 | 501 | 502 | 504 | 522)));
            }
        }
    }
}
