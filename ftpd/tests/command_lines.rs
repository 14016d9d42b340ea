//! Variants of command lines that clients send: bytes of names, spaces, line ends, short forms.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
};

use cluster_tests::{
    content::sha256,
    dialogue::Dialogue,
    node::Node,
    proxy::Connector,
    tls::{Authority, SecureDialogue},
};

/// Stores `content` as the file `name`. Returns false if the name is refused.
fn store(session: &mut Dialogue, name: &[u8], content: &[u8]) -> bool {
    let address = session.epsv();
    let mut data = session.data_connection(address);
    session.send_bytes(&[b"STOR ", name, b"\r\n"].concat());
    let code = session.reply().code;
    if code != 150 {
        return false;
    }
    std::io::Write::write_all(&mut data, content).unwrap();
    drop(data);
    session.expect(226);
    true
}

/// In windows-1251, letters have the codes of Telnet commands. Removing such "commands" would give two
/// different names the same bytes.
#[test]
fn in_a_name_the_byte_255_and_any_byte_after_it_are_kept() {
    let node = Node::standalone().setting("max_errors", 1000).start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    let mut expected = BTreeMap::new();
    for second in 0..=u8::MAX {
        let sent = [0xff, second, b'.', b't'];
        let name = match second {
            // Not allowed in a name, or end of the line.
            0 | b'\r' | b'\n' | b'/' => continue,
            0xff => b"\xff.t".to_vec(),
            _ => sent.to_vec(),
        };
        assert!(store(&mut session, &sent, &sent), "{second:x}");
        assert!(expected.insert(name, sha256(sent)).is_none(), "{second:x}");
    }
    // The byte 255 at the end of a line.
    for (sent, name) in
        [(&b"a\xff"[..], &b"a\xff"[..]), (b"b\xff\xff", b"b\xff"), (b"c\xff\xff\xff", b"c\xff\xff")]
    {
        assert!(store(&mut session, sent, sent));
        expected.insert(name.to_vec(), sha256(sent));
    }
    let stored: BTreeMap<_, _> = fs::read_dir(node.root())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().as_bytes().to_vec(), sha256(fs::read(entry.path()).unwrap())))
        .collect();
    assert_eq!(stored.len(), 255);
    assert!(stored == expected);
    assert!(!store(&mut session, b"\xff\0", b"x") && !store(&mut session, b"\xff\rx", b"x"));
    session.command("NOOP", 200);
}

#[test]
fn superfluous_arguments_and_spaces_are_ignored() {
    let node = Node::standalone().setting("max_errors", 1).start();
    let mut session = node.login("demo", "x");
    fs::create_dir(node.root().join("a ")).unwrap();
    for (command, code) in [
        ("NOOP x", 200),
        ("PWD x", 257),
        ("SYST x", 215),
        ("FEAT x", 211),
        ("CWD a ", 250),
        ("CDUP ..", 250),
        ("PASV 1", 227),
        ("EPSV 1 ", 229),
        ("REST 0 ", 350),
        ("STRU F ", 200),
        ("MODE S ", 200),
        ("TYPE L8", 200),
        ("TYPE AN", 200),
        ("TYPE I ", 200),
        ("OPTS UTF8 ON ", 200),
        ("ALLO 5 ", 200),
        ("SITE HELP x", 214),
        ("ABOR x", 226),
        ("REIN x", 220),
    ] {
        session.command(command, code);
    }
    session.login("demo", "x");
    session.command("QUIT bye", 221);
    session.expect_closed();
}

#[test]
fn a_line_may_end_with_cr_cr_lf() {
    let node = Node::standalone().start();
    let mut session = node.connect();
    session.send_bytes(b"USER demo\r\r\nPASS x\r\r\nMKD a\r\r\nABOR\r\r\nCWD a\r\r\nPWD\r\n");
    for code in [331, 230, 257, 226, 250] {
        session.expect(code);
    }
    assert_eq!(session.expect(257).quoted_path().unwrap(), "/a");
}

#[test]
fn cwd_without_a_path_and_cwd_tilde_change_to_the_home() {
    let node = Node::standalone().start();
    fs::create_dir_all(node.root().join("a/b")).unwrap();
    fs::create_dir_all(node.root().join("c/~")).unwrap();
    let mut session = node.login("demo", "x");
    for (from, command, to) in [
        ("/a/b", "CWD", "/"),
        ("/a/b", "CWD ", "/"),
        ("/a/b", "XCWD", "/"),
        ("/a/b", "CWD ~", "/"),
        ("/a/b", "CWD ~/", "/"),
        ("/a", "CWD ~/a/b", "/a/b"),
        // A directory named `~` takes precedence.
        ("/c", "CWD ~", "/c/~"),
    ] {
        session.command(&format!("CWD {from}"), 250);
        session.command(command, 250);
        assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), to, "{command}");
    }
    session.command("CWD ~/missing", 550);
    session.command("CWD ~root", 550);
}

#[test]
fn site_chmod_accepts_the_modes_of_chmod() {
    let node = Node::standalone().start();
    let file = node.root().join(OsStr::new("a b"));
    fs::write(&file, "").unwrap();
    let mut session = node.login("demo", "x");
    for (mode, after) in
        [("00640", 0o640), ("u+x", 0o740), ("go=r,u-x", 0o644), ("a+X", 0o644), ("+x", 0o755), ("600", 0o600)]
    {
        session.command(&format!("SITE CHMOD {mode} a b"), 200);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, after, "{mode}");
    }
    for mode in ["u+q", "888", "10000", "u+x,", "x"] {
        session.command(&format!("SITE CHMOD {mode} a b"), 501);
    }
}

#[test]
fn auth_tls_p_makes_data_connections_private_from_the_start() {
    let authority = Authority::new();
    let files = authority.sign("localhost");
    let builder = Node::standalone()
        .setting("tls_certificates", files.chain.display())
        .setting("tls_keys", files.key.display());
    let node = builder.clone().setting("tls_data", "required").start();
    for mechanism in ["TLS-P", "TLS-C"] {
        let mut clear = Dialogue::connect(node.address);
        clear.command(&format!("AUTH {mechanism}"), 234);
        let control = clear.control().try_clone().unwrap();
        let mut session = SecureDialogue::over(&authority.client(), &Connector::new(), control);
        session.command("USER demo", 331);
        session.command("PASS x", 230);
        session.command("TYPE I", 200);
        if mechanism == "TLS-P" {
            session.transmit("STOR file", b"content");
            assert_eq!(session.receive("RETR file"), b"content");
        } else {
            session.epsv();
            session.command("LIST", 521);
        }
    }
    drop(node);
    let node = builder.setting("tls_data", "off").start();
    Dialogue::connect(node.address).command("AUTH TLS-P", 534);
}
