//! Access rules of directories, and denied file names.

use std::{fs, os::unix::fs::symlink};

use cluster_tests::clients::Clients;
use serde_json::{Value, json};

use crate::support::{Site, all_get, facts, names};

const DENIED: &str = "550 Permission denied";

/// A home with a drop box: users may only upload to `/incoming`.
fn drop_box(more: Value) -> Site {
    let mut account = json!({
        "home": "/anna",
        "directories": [{
            "path": "/incoming",
            "permissions": {
                "list": false, "download": false, "overwrite": false, "append": false, "rename": false,
                "delete": false, "mkdir": false, "rmdir": false, "attributes": false,
            },
        }],
    });
    account.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let site = Site::of(account);
    site.put("anna/incoming/there", "of another user");
    site.put("anna/file", "mine");
    site
}

#[test]
fn drop_box_accepts_files_and_reveals_nothing_about_existing_ones() {
    let site = drop_box(json!({}));
    let mut session = site.login("anna");
    session.command("CWD incoming", 250);
    session.command("ALLO 1", 200);
    session.transmit("STOR new", b"1");
    session.transmit("APPE appended", b"2");
    session.transmit("STOU", b"3");
    session.transmit("STOU scan.pdf", b"4");
    session.command("CDUP", 250);
    session.transmit("STOR incoming/by-path", b"5");
    assert_eq!(site.content("anna/incoming/new").as_deref(), Some("1"));
    assert_eq!(fs::read_dir(site.node.root().join("anna/incoming")).unwrap().count(), 6);

    for name in ["there", "missing", "no/such/path", "there/below"] {
        let commands = [
            "LIST",
            "NLST",
            "NLST -R",
            "MLSD",
            "MLST",
            "STAT",
            "SIZE",
            "MDTM",
            "RETR",
            "HASH",
            "XCRC",
            "XMD5",
            "XSHA256",
            "RNFR",
            "DELE",
            "MKD",
            "RMD",
            "RMDA",
            "SITE CHMOD 600",
            "MFMT 20200101000000",
            "MDTM 20200101000000",
            "SITE UTIME 20200101000000",
            "AVBL",
            "COMB file",
        ]
        .map(|command| format!("{command} incoming/{name}"));
        all_get(&mut session, DENIED, &commands.iter().map(String::as_str).collect::<Vec<_>>());
    }
    all_get(
        &mut session,
        DENIED,
        &["LIST incoming", "NLST incoming/t*", "LIST -a incoming/*", "MLSD incoming", "STAT incoming"],
    );
    assert_eq!(session.command("CWD incoming/there", 550), session.command("CWD incoming/missing", 550));
    // Existing files cannot be changed.
    assert_eq!(session.probe("STOR incoming/there"), 550);
    assert_eq!(session.probe("APPE incoming/there"), 550);
    session.command("REST 3", 350);
    assert_eq!(session.probe("STOR incoming/there"), 550);
    session.command("RNFR file", 350);
    session.command("RNTO incoming/there", 550);
    session.command("COMB incoming/there file", 550);
    assert_eq!(site.content("anna/incoming/there").as_deref(), Some("of another user"));
    // Other directories are not affected.
    assert_eq!(session.retrieve("file"), b"mine");
    session.command("DELE file", 250);
}

#[test]
fn curl_lftp_and_ncftp_can_upload_to_a_drop_box() {
    let site = drop_box(json!({}));
    let clients = Clients::with_home();
    let address = site.node.address;
    for name in ["by-curl", "by-lftp", "by-ncftp"] {
        clients.write(name, name);
    }
    clients.run("curl", ["-sS", "-T", "by-curl", &format!("ftp://anna:x@{address}/incoming/")]);
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let script = "set net:max-retries 1; cd incoming && put by-lftp";
    clients.run("lftp", ["-u", "anna,x", "-p", &port, &ip, "-e", &format!("{script}; bye")]);
    clients.run("ncftpput", ["-u", "anna", "-p", "x", "-P", &port, &ip, "incoming", "by-ncftp"]);
    for name in ["by-curl", "by-lftp", "by-ncftp"] {
        assert_eq!(site.content(&format!("anna/incoming/{name}")).as_deref(), Some(name));
    }
}

#[test]
fn drop_box_accepts_atomic_uploads() {
    let site = drop_box(json!({ "uploads": "atomic", "denied_names": [".*"] }));
    let mut session = site.login("anna");
    session.transmit("STOR incoming/new", b"1");
    assert_eq!(site.content("anna/incoming/new").as_deref(), Some("1"));
    assert_eq!(session.probe("STOR incoming/there"), 550);
    assert_eq!(fs::read_dir(site.node.root().join("anna/incoming")).unwrap().count(), 2);
}

#[test]
fn rename_without_list_permission_does_not_reveal_names() {
    let site = Site::of(json!({
        "home": "/anna",
        "directories": [{ "path": "/incoming", "permissions": { "list": false, "download": false } }],
    }));
    site.put("anna/incoming/x.part", "content");
    let mut session = site.login("anna");
    assert_eq!(session.command("RNFR incoming/x.part", 350), session.command("RNFR incoming/no", 350));
    session.command("RNTO incoming/y", 550);
    session.command("RNFR incoming/x.part", 350);
    session.command("RNTO incoming/x", 250);
    // Moving a file out of the drop box would make it readable.
    session.command("RNFR incoming/x", 350);
    assert_eq!(session.command("RNTO x", 550).text(), DENIED);
    session.command("COMB y incoming/x", 550);
    assert_eq!(site.content("anna/incoming/x").as_deref(), Some("content"));
}

#[test]
fn listings_omit_entries_without_list_permission_unless_enterable() {
    let site = Site::of(json!({
        "home": "/anna",
        "directories": [
            { "path": "/closed", "permissions": {
                "list": false, "download": false, "upload": false, "overwrite": false, "append": false,
                "rename": false, "delete": false, "mkdir": false, "rmdir": false, "attributes": false,
            } },
            { "path": "/drop", "permissions": { "list": false } },
            { "path": "/**/*.key", "permissions": { "list": false } },
        ],
    }));
    for file in ["a", "tls.key", "drop/in-drop", "closed/in-closed", "d/b", "d/other.key", "d/e/c"] {
        site.put(&format!("anna/{file}"), "x");
    }
    let mut session = site.login("anna");
    assert_eq!(names(&mut session, ""), ["a", "d", "drop"]);
    assert_eq!(names(&mut session, "*"), ["a", "d", "drop"]);
    assert_eq!(names(&mut session, "-t d"), ["d/b", "d/e"]);
    assert_eq!(names(&mut session, "-R"), ["a", "d", "d/b", "d/e", "d/e/c", "drop"]);
    for command in ["LIST", "LIST -la", "LIST -R", "LIST -tr", "MLSD", "LIST *"] {
        let shown = String::from_utf8(session.receive(command)).unwrap();
        assert!(shown.contains(" drop\r\n") && shown.contains(" a\r\n"), "{command}: {shown}");
        for hidden in ["in-drop", "closed", "in-closed", ".key"] {
            assert!(!shown.contains(hidden), "{command}: {shown}");
        }
    }
    let status = session.command("STAT /", 213).text();
    assert!(status.contains(" drop") && !status.contains("closed") && !status.contains(".key"), "{status}");
    all_get(
        &mut session,
        DENIED,
        &["CWD closed", "CWD closed/no", "LIST closed", "MLST tls.key", "SIZE tls.key"],
    );
    session.command("CWD drop", 250);
    assert_eq!(names(&mut session, "/d"), ["/d/b", "/d/e"]);
}

#[test]
fn fact_perm_reflects_the_permissions_of_each_entry() {
    let site = Site::of(json!({
        "home": "/anna",
        "directories": [
            { "path": "/in/*.csv", "permissions": { "delete": false } },
            { "path": "/in", "permissions": { "download": false, "mkdir": false, "rmdir": false } },
            { "path": "/read", "permissions": {
                "upload": false, "overwrite": false, "append": false, "rename": false, "delete": false,
                "mkdir": false, "rmdir": false,
            } },
        ],
    }));
    for file in ["in/a.csv", "in/b", "read/c", "d/e"] {
        site.put(&format!("anna/{file}"), "x");
    }
    let mut session = site.login("anna");
    session.command("OPTS MLST type;perm;", 200);
    for (path, name, expected) in [
        ("/", "in", "type=dir;perm=cefmlp;"),
        ("/", "read", "type=dir;perm=el;"),
        ("/", "d", "type=dir;perm=cdeflmp;"),
        ("/in", "a.csv", "type=file;perm=afrw;"),
        ("/in", "b", "type=file;perm=adfw;"),
        ("/read", "c", "type=file;perm=r;"),
        ("/read", ".", "type=cdir;perm=el;"),
        ("/read", "..", "type=pdir;perm=celmp;"),
    ] {
        let sorted = |facts: &str| {
            let mut letters: Vec<_> = facts.chars().collect();
            letters.sort_unstable();
            letters
        };
        let shown = facts(&mut session, path, name);
        let shown = shown.split(' ').next().unwrap();
        assert_eq!(sorted(shown), sorted(expected), "{path} {name}: {shown}");
    }
    assert!(session.command("MLST /in/a.csv", 250).text().contains("perm=afrw;"));
}

#[test]
fn every_command_checks_the_permissions_of_its_path() {
    let site = Site::of(json!({
        "home": "/anna",
        "permissions": {
            "list": false, "download": false, "upload": false, "overwrite": false, "append": false,
            "rename": false, "delete": false, "mkdir": false, "rmdir": false, "attributes": false,
        },
        "directories": [{ "path": "/mine", "permissions": {
            "list": true, "download": true, "upload": true, "overwrite": true, "append": true,
            "rename": true, "delete": true, "mkdir": true, "rmdir": true, "attributes": true,
        } }],
    }));
    for file in ["f", "mine/f", "mine/t/x", "t/x", "mine/e"] {
        site.put(&format!("anna/{file}"), "x");
    }
    let mut session = site.login("anna");
    let commands = [
        ("SIZE %f", 213),
        ("MDTM %f", 213),
        ("MLST %f", 250),
        ("STAT %f", 213),
        ("AVBL %f", 213),
        ("HASH %f", 213),
        ("XCRC %f", 250),
        ("MFMT 20200101000000 %f", 213),
        ("SITE CHMOD 600 %f", 200),
        ("SITE UTIME 20200101000000 %f", 213),
        ("MKD %d", 257),
        ("RMD %d", 250),
        ("RMDA %t", 250),
        ("RNFR %f", 350),
        ("RNTO %g", 250),
        ("DELE %g", 250),
        ("COMB %joined %e", 250),
    ];
    for (command, code) in commands {
        session.command(&command.replace('%', "/mine/"), code);
    }
    for (command, _) in commands {
        // RNTO without RNFR would get 503 before permissions are checked, but no RNFR has succeeded
        // here.
        all_get(&mut session, DENIED, &[&command.replace('%', "/"), &command.replace('%', "/mine/../")]);
    }
    for command in ["RETR", "STOR", "APPE", "STOU", "LIST", "NLST", "MLSD"] {
        all_get(&mut session, DENIED, &[&format!("{command} /f"), &format!("{command} f")]);
    }
    for command in ["STOR /mine/f", "APPE /mine/f", "STOU /mine/f"] {
        session.transmit(command, b"content");
    }
    session.receive("RETR /mine/f");
    session.receive("LIST /mine");
    // Directories above a permitted path can be entered, others cannot.
    session.command("CWD /", 250);
    session.command("CWD /t", 550);
    // Moving out of, or into, a directory without permission.
    session.command("RNFR /mine/f", 350);
    session.command("RNTO /f", 550);
    session.command("COMB /mine/f /t/x", 550);
    assert_eq!(site.content("anna/f").as_deref(), Some("x"));
}

#[test]
fn tree_is_moved_or_removed_only_if_no_rule_could_forbid_it_below() {
    let site = Site::of(json!({
        "home": "/anna",
        "directories": [
            { "path": "/projects/*/signed", "permissions": { "delete": false, "download": false } },
            { "path": "/published", "permissions": { "upload": false, "mkdir": false } },
        ],
    }));
    for file in ["projects/x/signed/contract", "projects/x/draft/1", "published/p", "free/f", "plain"] {
        site.put(&format!("anna/{file}"), "x");
    }
    let mut session = site.login("anna");
    all_get(
        &mut session,
        DENIED,
        &["RMDA /projects", "RMDA /projects/x", "RMDA /projects/x/signed", "RMDA /"],
    );
    for (from, to) in [
        ("/projects", "/p"),
        ("/projects/x", "/free/x"),
        ("/projects/x/signed", "/free/signed"),
        ("/projects/x/signed/contract", "/contract"),
        ("/free", "/published/free"),
        ("/plain", "/published/plain"),
    ] {
        session.command(&format!("RNFR {from}"), 350);
        assert_eq!(session.command(&format!("RNTO {to}"), 550).text(), DENIED, "{from} to {to}");
    }
    for (from, to) in [
        ("/projects/x/signed/contract", "/projects/x/signed/c"),
        ("/projects/x/draft", "/draft"),
        ("/published/p", "/published/q"),
        ("/free", "/projects/free"),
    ] {
        session.command(&format!("RNFR {from}"), 350);
        session.command(&format!("RNTO {to}"), 250);
    }
    session.command("RMDA /draft", 250);
    assert_eq!(site.content("anna/projects/x/signed/c").as_deref(), Some("x"));
}

/// Access rules bypassed by another path: CVE-2026-35025, CVE-2015-1419.
#[test]
fn links_do_not_bypass_access_rules() {
    let rules = json!([{ "path": "/secret", "permissions": { "download": false, "delete": false } }]);
    let site = Site::new(true, move |user| match user {
        "ruled" => json!({ "home": "/home", "directories": rules }),
        _ => json!({ "home": "/home" }),
    });
    site.put("home/secret/file", "secret");
    let root = site.node.root();
    symlink("secret", root.join("home/link")).unwrap();
    symlink("secret/file", root.join("home/file")).unwrap();
    assert_eq!(site.login("free").retrieve("link/file"), b"secret");

    let mut session = site.login("ruled");
    for way in ["link/file", "file", "./link/../link/file", "secret/../link/file"] {
        for command in
            ["RETR", "SIZE", "HASH", "XMD5", "SITE CHMOD 600", "MFMT 20200101000000", "STOR", "APPE"]
        {
            session.epsv();
            session.command(&format!("{command} {way}"), 550);
        }
    }
    for command in [
        "CWD link",
        "DELE link/file",
        "RMDA link",
        "MLSD link/file",
        "NLST link/file",
        "MKD link/d",
        "COMB new link/file",
    ] {
        session.epsv();
        session.command(command, 550);
    }
    for way in ["secret/file", "//secret//file", "./secret/./file", "x/../secret/file", "/../secret/file"] {
        all_get(
            &mut session,
            DENIED,
            &[&format!("RETR {way}"), &format!("DELE {way}"), &format!("HASH {way}")],
        );
    }
    session.command("RNFR secret", 350);
    session.command("RNTO open", 550);
    // The link itself can be listed, renamed and removed.
    assert!(facts(&mut session, "/", "link").contains("type=OS.unix=slink:secret;"));
    session.command("RNFR link", 350);
    session.command("RNTO link2", 250);
    session.command("DELE link2", 250);
    assert_eq!(site.content("home/secret/file").as_deref(), Some("secret"));
}

#[test]
fn no_command_can_give_a_file_a_denied_name() {
    let site = Site::of(json!({
        "home": "/anna",
        "denied_names": ["*.exe", ".ht*", "con"],
        "directories": [
            { "path": "/closed", "permissions": { "upload": false, "overwrite": false, "append": false } },
        ],
    }));
    site.put("anna/file", "x");
    site.put("anna/part", "x");
    site.put("anna/old.exe", "x");
    site.put("anna/directory/x", "x");
    let mut session = site.login("anna");
    let refused = "553 File name not allowed";
    all_get(
        &mut session,
        refused,
        &[
            "STOR a.exe",
            "STOR A.EXE",
            "STOR directory/Setup.Exe",
            "STOR .htaccess",
            "APPE con",
            "STOR old.exe",
            "STOU b.exe",
            "COMB joined.exe part",
        ],
    );
    for from in ["file", "directory", "old.exe"] {
        session.command(&format!("RNFR {from}"), 350);
        assert_eq!(session.command("RNTO b.exe", 553).text(), refused);
    }
    all_get(&mut session, "550 Permission denied", &["STOR closed/a.exe"]);
    // Directories may have denied names, and existing files can be read and renamed.
    session.command("MKD tools.exe", 257);
    session.transmit("STOR tools.exe/x.txt", b"x");
    session.transmit("STOR exe", b"x");
    assert_eq!(session.retrieve("old.exe"), b"x");
    session.command("RNFR old.exe", 350);
    session.command("RNTO old.bin", 250);
    let metric = "ftp_uploads_refused_total{reason=\"denied_name\"}";
    assert_eq!(site.node.metric(metric), Some(11.0));
    site.node.daemon.wait_for_line(|line| {
        line.contains("matches a pattern of denied_names") && line.contains("Setup.Exe")
    });
}
