//! Tests of the verb table, FEAT and HELP.

use super::*;

fn text(reply: &Reply) -> String {
    let mut out = Vec::new();
    reply.encode(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn names_are_unique_and_in_capitals() {
    let names: Vec<_> = VERBS.iter().flat_map(|verb| [Some(verb.name), verb.alias]).flatten().collect();
    for (i, name) in names.iter().enumerate() {
        assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), "{name}");
        assert!(!names[..i].contains(name), "{name}");
        assert!(!crate::protocol::command::is_foreign(name.as_bytes()), "{name}");
    }
}

#[test]
fn only_quit_abor_stat_and_noop_run_during_a_transfer_rfc_959_4_1_3() {
    let names: Vec<_> = VERBS.iter().filter(|verb| verb.during_transfer).map(|verb| verb.name).collect();
    assert_eq!(names, ["QUIT", "ABOR", "STAT", "NOOP"]);
}

#[test]
fn commands_that_touch_files_need_a_login() {
    let names: Vec<_> = VERBS
        .iter()
        .filter(|verb| matches!(verb.parser, Some(Parser::AnyTime(_) | Parser::Either(_))))
        .map(|verb| verb.name)
        .collect();
    // STAT with a path needs a login.
    let expected = [
        "USER", "PASS", "ACCT", "REIN", "QUIT", "HOST", "CLNT", "AUTH", "PBSZ", "PROT", "CCC", "STAT",
        "SYST", "FEAT", "HELP", "NOOP", "OPTS",
    ];
    assert_eq!(names, expected);
}

#[test]
fn feat_has_one_line_per_extension_rfc_2389_3_2() {
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
fn help_lists_and_explains_every_supported_command() {
    let all = text(&help(None));
    for verb in VERBS {
        let listed = all.split_ascii_whitespace().any(|word| word == verb.name);
        assert_eq!(listed, verb.is_offered(), "{verb:?}");
        let one = text(&help(Some(verb.name.as_bytes())));
        assert_eq!(one.starts_with("214"), verb.is_offered(), "{one}");
    }
    assert_eq!(text(&help(Some(b"retr"))), "214 RETR <path>: sends a file to the client\r\n");
    assert!(text(&help(Some(b"SITE"))).contains("\r\n CHMOD <mode> <path>\r\n"));
    assert_eq!(text(&help(Some(b"\r\n"))), "502 Unknown command\r\n");
}
