//! Commands for directories and files: replies on the wire and effects in the storage.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use cluster_tests::{content::bytes, failing_calls::FailingCall, node::Node};

fn start() -> Node {
    Node::standalone().start()
}

/// Path of a name in the user's home.
fn at(node: &Node, name: impl AsRef<[u8]>) -> PathBuf {
    node.root().join(OsStr::from_bytes(name.as_ref()))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn directory_commands_and_their_x_variants_work() {
    let node = start();
    let mut session = node.login("demo", "x");
    for [pwd, mkd, cwd, cdup, rmd] in
        [["PWD", "MKD", "CWD", "CDUP", "RMD"], ["XPWD", "XMKD", "XCWD", "XCUP", "XRMD"]]
    {
        let mut path = |command: &str| session.command(command, 257).quoted_path().unwrap();
        assert_eq!(path(pwd), "/");
        assert_eq!(path(&format!("{mkd} a")), "/a");
        assert_eq!(path(&format!("{mkd} /a/b")), "/a/b");
        session.command(&format!("{cwd} a/b"), 250);
        assert_eq!(session.command(pwd, 257).quoted_path().unwrap(), "/a/b");
        session.command(cdup, 250);
        assert_eq!(session.command(pwd, 257).quoted_path().unwrap(), "/a");
        for _ in 0..2 {
            session.command(cdup, 250);
            assert_eq!(session.command(pwd, 257).quoted_path().unwrap(), "/");
        }
        session.command(&format!("{rmd} a"), 550);
        session.command(&format!("{rmd} a/b"), 250);
        session.command(&format!("{rmd} a"), 250);
        assert!(!at(&node, "a").exists());
    }
    assert_eq!(session.command("MKD a", 257).text(), "257 \"/a\" created");
    assert_eq!(mode(&at(&node, "a")) & 0o027, 0, "the directory_mode is 0750");
}

#[test]
fn impossible_operations_get_550_and_change_nothing() {
    let node = start();
    let mut session = node.login("demo", "x");
    fs::create_dir_all(at(&node, "full/below")).unwrap();
    fs::write(at(&node, "file"), "content").unwrap();
    for command in [
        "CWD missing",
        "CWD file",
        "CWD full/missing",
        "MKD full",
        "MKD file",
        "MKD missing/a",
        "MKD file/a",
        "RMD missing",
        "RMD full",
        "RMD file",
        "DELE missing",
        "DELE full",
        "RMDA missing",
        "RMDA file",
        "RNFR missing",
        "SIZE missing",
        "SIZE full",
        "MDTM missing",
        "MDTM full",
        "MFMT 20200101000000 missing",
        "SITE CHMOD 600 missing",
        "AVBL missing",
        "MLST missing",
        "STAT missing",
        "HASH missing",
        "HASH full",
        "XMD5 missing",
        "COMB target missing",
    ] {
        session.command("TYPE I", 200);
        session.command(command, 550);
    }
    for command in ["RMD /", "RMDA /", "DELE /"] {
        session.command(command, 553);
    }
    let left: Vec<_> = fs::read_dir(node.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(fs::read(at(&node, "file")).unwrap(), b"content");
}

#[test]
fn quotes_in_a_path_are_doubled_in_replies() {
    let node = start();
    let mut session = node.login("demo", "x");
    let made = session.command(r#"MKD say "hi""#, 257);
    assert_eq!(made.text(), r#"257 "/say ""hi""" created"#);
    session.command(r#"CWD say "hi""#, 250);
    assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), r#"/say "hi""#);
    assert!(at(&node, r#"say "hi""#).is_dir());
}

#[test]
fn names_are_preserved_byte_for_byte_even_if_not_utf_8() {
    let node = start();
    let mut session = node.login("demo", "x");
    for name in [
        "grüße 日本 🦀".as_bytes(),
        b"caf\xe9",
        b"\x80\xff\xfe",
        b"a\xffb",
        b" leads",
        b"trails ",
        b"  ",
        b" ",
        b"-la",
        b"a\\b",
        b"tab\there",
        b"*?[x]",
        &[b'n'; 255],
    ] {
        // A client doubles Telnet's IAC (RFC 854), because otherwise the byte after it may be a
        // command.
        let sent = |verb: &str| {
            let name = name.iter().flat_map(|b| std::iter::repeat_n(*b, 1 + usize::from(*b == 0xff)));
            [verb.as_bytes(), b" ", &name.collect::<Vec<u8>>()].concat()
        };
        session.command_bytes(&sent("MKD"), 257);
        assert!(at(&node, name).is_dir(), "{}", name.escape_ascii());
        session.command_bytes(&sent("CWD"), 250);
        assert_eq!(
            session.command("PWD", 257).raw,
            [b"257 \"/", name, b"\" is current directory\r\n"].concat()
        );
        session.command("CDUP", 250);
        session.command_bytes(&sent("RMD"), 250);
        session.command_bytes(b"TYPE I", 200);
        let address = session.epsv();
        let data = session.data_connection(address);
        session.command_bytes(&sent("STOR"), 150);
        drop(data);
        session.expect(226);
        assert!(at(&node, name).is_file(), "{}", name.escape_ascii());
        session.command_bytes(&sent("SIZE"), 213);
        session.command_bytes(&sent("RNFR"), 350);
        session.command("RNTO plain", 250);
        session.command("RNFR plain", 350);
        session.command_bytes(&sent("RNTO"), 250);
        session.command_bytes(&sent("DELE"), 250);
        assert_eq!(fs::read_dir(node.root()).unwrap().count(), 0, "{}", name.escape_ascii());
    }
    session.command(&format!("MKD {}", "n".repeat(256)), 553);
    session.command(&format!("MKD {}", "n/".repeat(3000)), 501);
}

#[test]
fn rename_moves_and_replaces_only_files() {
    let node = start();
    let mut session = node.login("demo", "x");
    fs::create_dir_all(at(&node, "full/below")).unwrap();
    fs::create_dir(at(&node, "other")).unwrap();
    fs::write(at(&node, "old"), "old").unwrap();
    fs::write(at(&node, "new"), "new").unwrap();
    let mut rename = |from: &str, to: &str, code: u16| {
        session.command(&format!("RNFR {from}"), 350);
        session.command(&format!("RNTO {to}"), code);
    };
    rename("new", "old", 250);
    assert_eq!(fs::read(at(&node, "old")).unwrap(), b"new");
    assert!(!at(&node, "new").exists());
    rename("old", "other/moved", 250);
    rename("full", "other/full", 250);
    assert!(at(&node, "other/full/below").is_dir());
    rename("other/moved", "other/full", 550);
    rename("other/full", "other/moved", 550);
    rename("other", "other/full", 553);
    rename("other", "other/inside", 553);
    rename("other", "missing/name", 550);
    rename("/", "name", 553);
    rename("other", "/", 553);
    assert_eq!(fs::read(at(&node, "other/moved")).unwrap(), b"new");
}

#[test]
fn rnto_must_directly_follow_rnfr() {
    let node = start();
    let mut session = node.login("demo", "x");
    fs::write(at(&node, "a"), "").unwrap();
    session.command("RNTO b", 503);
    for between in ["PWD", "NOOP", "SIZE missing", "RNFR missing", "BOGUS", "STAT", "RNTO"] {
        session.command("RNFR a", 350);
        session.send(between);
        session.reply();
        session.command("RNTO b", 503);
    }
    session.command("RNFR missing", 550);
    session.command("RNFR a", 350);
    session.command("RNTO b", 250);
    session.command("RNTO c", 503);
    assert!(at(&node, "b").exists());
}

#[test]
fn size_is_reported_except_in_type_a() {
    let node = start();
    let mut session = node.login("demo", "x");
    fs::write(at(&node, "file"), bytes(1, 12345)).unwrap();
    assert_eq!(session.command("SIZE file", 213).message(), "12345");
    session.command("TYPE A", 200);
    session.command("SIZE file", 550);
    assert_eq!(session.size("file"), 12345);
    session.command("TYPE L 8", 200);
    assert_eq!(session.command("SIZE file", 213).message(), "12345");
}

#[test]
fn modification_times_are_read_and_set_by_every_known_command() {
    let node = start();
    let mut session = node.login("demo", "x");
    let path = at(&node, "my file");
    fs::write(&path, "content").unwrap();
    for (command, code, time, seconds) in [
        ("MFMT 20200229123456 my file", 213, "20200229123456", 1_582_979_696),
        ("MFMT 19980615100045.014 my file", 213, "19980615100045", 897_904_845),
        ("MDTM 20261122164005 my file", 213, "20261122164005", 1_795_365_605),
        ("SITE UTIME 20200229123456 my file", 213, "20200229123456", 1_582_979_696),
        ("SITE UTIME 202002291234 my file", 213, "20200229123400", 1_582_979_640),
        (
            "SITE UTIME my file 20200101000000 20261122164005 20200101000000 UTC",
            213,
            "20261122164005",
            1_795_365_605,
        ),
        ("MFMT 19700101000000 my file", 213, "19700101000000", 0),
    ] {
        let answer = session.command(command, code);
        assert_eq!(answer.message(), format!("Modify={time}; my file"), "{command}");
        assert_eq!(session.command("MDTM my file", 213).message(), time, "{command}");
        assert_eq!(fs::metadata(&path).unwrap().mtime(), seconds, "{command}");
    }
    for command in [
        "MFMT 20210229000000 my file",
        "MFMT 20201301000000 my file",
        "MFMT my file",
        "MFMT 20200101000000",
        "MFMT",
        "SITE UTIME x my file",
        "SITE UTIME 20200101000000",
    ] {
        session.command(command, 501);
    }
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 0);
}

#[test]
fn site_chmod_sets_only_nine_bits() {
    let node = start();
    let mut session = node.login("demo", "x");
    let path = at(&node, "a file");
    fs::write(&path, "").unwrap();
    for (digits, bits) in [("640", 0o640), ("0600", 0o600), ("4755", 0o755), ("7", 0o7), ("0", 0)] {
        session.command(&format!("SITE CHMOD {digits} a file"), 200);
        assert_eq!(mode(&path), bits, "{digits}");
    }
    for wrong in ["888", "u+q", "-1", "10755", "", "600"] {
        let path = if wrong == "600" { "" } else { " a file" };
        session.command(&format!("SITE CHMOD {wrong}{path}"), 501);
    }
    session.command("SITE", 501);
    session.command("SITE EXEC /bin/sh", 504);
}

#[test]
fn avbl_reports_the_free_space_of_the_storage() {
    let node = start();
    let mut session = node.login("demo", "x");
    fs::create_dir(at(&node, "a")).unwrap();
    let free: u64 = session.command("AVBL", 213).message().parse().unwrap();
    assert!(free > 0);
    for path in ["/", "a"] {
        // Other processes write to the same file system.
        let here: u64 = session.command(&format!("AVBL {path}"), 213).message().parse().unwrap();
        assert!(here > 0 && here.abs_diff(free) < (free / 2).max(1 << 30), "{here} {free}");
    }
}

#[test]
fn rmda_removes_everything_below_and_nothing_else() {
    let node = start();
    let mut session = node.login("demo", "x");
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "precious").unwrap();
    fs::write(at(&node, "kept"), "kept").unwrap();
    fs::create_dir_all(at(&node, "tree/a/b/c")).unwrap();
    for name in ["tree/.hidden", "tree/a/.nfs0001", "tree/a/b/file", "tree/.ftpd-partial-x"] {
        fs::write(at(&node, name), "x").unwrap();
    }
    symlink(outside.path(), at(&node, "tree/a/outside")).unwrap();
    symlink("../../kept", at(&node, "tree/a/sibling")).unwrap();
    symlink("tree", at(&node, "link")).unwrap();
    session.command("RMDA link", 550);
    assert!(at(&node, "tree/a/b/file").exists());
    session.command("RMDA tree", 250);
    assert!(!at(&node, "tree").exists());
    assert_eq!(fs::read(at(&node, "kept")).unwrap(), b"kept");
    assert_eq!(fs::read(outside.path().join("precious")).unwrap(), b"precious");
}

#[test]
fn stat_of_a_path_lists_it_on_the_control_connection() {
    let node = Node::standalone().setting("max_stat_entries", 10).start();
    let mut session = node.login("demo", "x");
    fs::create_dir(at(&node, "few")).unwrap();
    fs::create_dir(at(&node, "many")).unwrap();
    fs::write(at(&node, "few/213 no end"), "12345").unwrap();
    for i in 0..20 {
        fs::write(at(&node, format!("many/{i}")), "").unwrap();
    }
    let few = session.command("STAT few", 213).details();
    assert!(
        matches!(&few[..], [line] if line.starts_with("-rw") && line.ends_with(" 213 no end")),
        "{few:?}"
    );
    let file = session.command("STAT few/213 no end", 213).details();
    assert_eq!(file, few);
    let many = session.command("STAT many", 213).details();
    assert_eq!(many.len(), 11);
    assert!(many[10].contains("truncated"), "{many:?}");
    assert_eq!(session.command("STAT -l many/1*", 213).details().len(), 11);
    assert_eq!(session.command("STAT many/*9", 213).details().len(), 2);
}

#[test]
fn comb_joins_files_in_order_and_removes_the_sources() {
    let node = start();
    let mut session = node.login("demo", "x");
    let parts = [bytes(1, 300_000), bytes(2, 0), bytes(3, 1_000_001)];
    for (i, part) in parts.iter().enumerate() {
        fs::write(at(&node, format!("part {i}")), part).unwrap();
    }
    session.command(r#"COMB "the whole" "part 0" "part 1" "part 2""#, 250);
    assert!(fs::read(at(&node, "the whole")).unwrap() == parts.concat());
    assert_eq!(fs::read_dir(node.root()).unwrap().count(), 1);

    fs::write(at(&node, "a"), "a").unwrap();
    fs::write(at(&node, "b"), "b").unwrap();
    session.command("COMB a b", 250);
    assert_eq!(fs::read(at(&node, "a")).unwrap(), b"ab");
    for (command, code) in [
        ("COMB a missing", 550),
        ("COMB a a", 553),
        ("COMB new a a", 553),
        ("COMB a", 501),
        ("COMB", 501),
        (r#"COMB "a"#, 501),
    ] {
        session.command(command, code);
    }
    assert_eq!(fs::read(at(&node, "a")).unwrap(), b"ab");
    assert!(!at(&node, "new").exists());
}

#[test]
fn checksums_match_those_of_standard_tools() {
    let node = start();
    let mut session = node.login("demo", "x");
    fs::write(at(&node, "digits"), "123456789").unwrap();
    fs::write(at(&node, "my file"), "123456789").unwrap();
    fs::write(at(&node, "empty"), "").unwrap();
    const SHA512: &str = "d9e6762dd1c8eaf6d61b3c6192fc408d4d6d5f1176d0c29169bc24e71c3f274a\
                          d27fcd5811b313d681f7e55ec02d73d499c95455b6b5bb503acf574fba8ffe85";
    const SHA256: &str = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
    const SHA1: &str = "f7c3bc1d808e04732adf679965ccc34ca7ae3441";
    const MD5: &str = "25f9e794323b453885f5181f1b624d0b";
    const MD5_OF_123: &str = "202cb962ac59075b964b07152d234b70";
    const MD5_OF_456: &str = "250cf8b51c773f3f8dc8b4be867a9a02";
    const MD5_OF_NOTHING: &str = "d41d8cd98f00b204e9800998ecf8427e";
    for (command, sum) in [
        ("XCRC digits", "cbf43926"),
        ("XMD5 digits", MD5),
        ("XSHA digits", SHA1),
        ("XSHA1 digits", SHA1),
        ("XSHA256 digits", SHA256),
        ("XSHA512 digits", SHA512),
        ("XMD5 my file", MD5),
        ("XMD5 \"my file\"", MD5),
        ("XMD5 digits 0 3", MD5_OF_123),
        ("XMD5 \"my file\" 0 3", MD5_OF_123),
        ("XMD5 digits 3 6", MD5_OF_456),
        ("XMD5 digits 0", MD5),
        ("XMD5 digits 9", MD5_OF_NOTHING),
        ("XMD5 digits 0 9223372036854775807", MD5),
        ("XMD5 empty", MD5_OF_NOTHING),
    ] {
        assert_eq!(session.command(command, 250).message(), sum, "{command}");
    }
    for command in ["XMD5 digits 10", "XMD5 digits 6 3", "XMD5 digits 9223372036854775808", "XMD5"] {
        session.command(command, 501);
    }

    assert_eq!(session.command("HASH digits", 213).message(), format!("SHA-256 0-8 {SHA256} digits"));
    for (name, sum) in
        [("CRC32", "cbf43926"), ("MD5", MD5), ("SHA-1", SHA1), ("SHA-256", SHA256), ("SHA-512", SHA512)]
    {
        assert_eq!(session.command(&format!("OPTS HASH {name}"), 200).message(), name);
        assert_eq!(session.command("OPTS HASH", 200).message(), name);
        assert_eq!(session.command("HASH digits", 213).message(), format!("{name} 0-8 {sum} digits"));
        let features = session.command("FEAT", 211).details();
        assert!(
            features.iter().any(|f| f.starts_with("HASH ") && f.contains(&format!("{name}*"))),
            "{features:?}"
        );
    }
    session.command("OPTS HASH ROT13", 501);
    session.command("OPTS HASH MD5", 200);
    session.command("RANG 3 5", 350);
    assert_eq!(session.command("HASH digits", 213).message(), format!("MD5 3-5 {MD5_OF_456} digits"));
    assert_eq!(session.command("HASH digits", 213).message(), format!("MD5 0-8 {MD5} digits"));
    session.command("RANG 0 9223372036854775807", 350);
    assert_eq!(session.command("HASH digits", 213).message(), format!("MD5 0-8 {MD5} digits"));
    session.command("RANG 3 5", 350);
    session.command("RANG 1 0", 350);
    assert_eq!(session.command("HASH digits", 213).message(), format!("MD5 0-8 {MD5} digits"));
    session.command("RANG 10 20", 350);
    session.command("HASH digits", 501);
    for wrong in ["RANG", "RANG 1", "RANG 5 3", "RANG -1 3", "RANG 1 2 3", "RANG 0 9223372036854775808"] {
        session.command(wrong, 501);
    }
}

#[test]
fn symbolic_links_are_followed_inside_the_home() {
    let node = start();
    let mut session = node.login("demo", "x");
    fs::create_dir(at(&node, "real")).unwrap();
    fs::write(at(&node, "real/file"), "content").unwrap();
    symlink("real", at(&node, "relative")).unwrap();
    // An absolute link is resolved with the home as its root.
    symlink("/real", at(&node, "absolute")).unwrap();
    for link in ["relative", "absolute"] {
        session.command(&format!("CWD /{link}"), 250);
        assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), format!("/{link}"));
        assert_eq!(session.retrieve("file"), b"content");
        session.command("CDUP", 250);
        assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), "/");
    }
    session.command("DELE relative", 250);
    session.command("RNFR absolute", 350);
    session.command("RNTO renamed", 250);
    assert_eq!(fs::read_link(at(&node, "renamed")).unwrap(), Path::new("/real"));
    assert!(at(&node, "real/file").exists());
}

#[test]
fn site_chmod_of_the_home_is_refused() {
    let node = Node::standalone().start();
    fs::create_dir(node.root().join("below")).unwrap();
    symlink("/", node.root().join("below/top")).unwrap();
    let before = fs::metadata(node.root()).unwrap().permissions();
    let mut session = node.login("demo", "x");
    for path in ["/", ".", "below/..", "below/top"] {
        session.command(&format!("SITE CHMOD 0 {path}"), 550);
    }
    assert_eq!(fs::metadata(node.root()).unwrap().permissions(), before);
    session.command("SITE CHMOD 700 below", 200);
}

/// Number of directories that the node has written to stable storage.
fn synced_directories(node: &Node) -> f64 {
    node.metric("ftp_storage_seconds_count{operation=\"fsync_directory\"}").unwrap_or(0.0)
}

#[test]
fn changed_names_are_on_stable_storage_before_the_reply_unless_sync_uploads_is_off() {
    for syncs in [true, false] {
        let node = Node::standalone().setting("sync_uploads", syncs).start();
        let mut session = node.login("demo", "x");
        for name in ["part-1", "part-2"] {
            session.store(name, b"content");
        }
        for (command, code, directories) in [
            ("MKD a", 257, 1.0),
            ("MKD a/b", 257, 1.0),
            ("MKD empty", 257, 1.0),
            ("RMD empty", 250, 1.0),
            ("COMB joined part-1 part-2", 250, 2.0),
            ("DELE joined", 250, 1.0),
            ("RMDA a", 250, 1.0),
        ] {
            let before = synced_directories(&node);
            session.command(command, code);
            let expected = if syncs { directories } else { 0.0 };
            assert_eq!(synced_directories(&node) - before, expected, "{command}, sync_uploads = {syncs}");
        }
        session.command("MKD a", 257);
        for (from, to, directories) in [("from", "to", 1.0), ("from", "a/to", 2.0)] {
            session.store(from, b"content");
            let before = synced_directories(&node);
            session.command(&format!("RNFR {from}"), 350);
            session.command(&format!("RNTO {to}"), 250);
            let expected = if syncs { directories } else { 0.0 };
            assert_eq!(synced_directories(&node) - before, expected, "RNTO {to}, sync_uploads = {syncs}");
        }
    }
}

#[test]
fn a_name_that_the_storage_cannot_keep_is_changed_and_not_confirmed() {
    let node = Node::standalone().failing_call(FailingCall::full_disk()).start();
    let mut session = node.login("demo", "x");
    fs::write(at(&node, "file"), b"content").unwrap();
    session.command("MKD directory", 452);
    assert!(at(&node, "directory").is_dir());
    session.command("RNFR file", 350);
    session.command("RNTO renamed", 452);
    assert!(!at(&node, "file").exists());
    session.command("DELE renamed", 452);
    assert!(!at(&node, "renamed").exists());
    session.command("RMD directory", 452);
    assert!(!at(&node, "directory").exists());
}
