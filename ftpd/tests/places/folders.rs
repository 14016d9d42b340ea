//! Shared folders: directories of the storage that a user's tree shows beside the home.

use std::{fs, os::unix::fs::symlink};

use cluster_tests::eventually;
use serde_json::json;

use crate::support::{Site, TRANSFER_LOG, all_get, facts, names};

/// The home `/anna` with the folders `/shared`, `/partners/acme` and, inside the latter,
/// `/partners/acme/inner`.
fn site() -> Site {
    let site = Site::of(json!({
        "home": "/anna",
        "folders": [
            { "path": "/shared", "target": "/common/shared" },
            { "path": "/partners/acme", "target": "/acme" },
            { "path": "/partners/acme/inner", "target": "/inside" },
        ],
    }));
    for file in ["anna/mine", "anna/d/below", "common/shared/file", "acme/order", "acme/in/1", "inside/deep"]
    {
        site.put(file, file);
    }
    site
}

#[test]
fn folder_is_part_of_the_tree_in_every_command() {
    let site = site();
    let mut session = site.login("anna");
    assert_eq!(names(&mut session, ""), ["d", "mine", "partners", "shared"]);
    assert_eq!(names(&mut session, "partners"), ["partners/acme"]);
    assert_eq!(
        names(&mut session, "partners/acme"),
        ["in", "inner", "order"].map(|n| format!("partners/acme/{n}"))
    );
    assert_eq!(
        names(&mut session, "-R"),
        [
            "d",
            "d/below",
            "mine",
            "partners",
            "partners/acme",
            "partners/acme/in",
            "partners/acme/in/1",
            "partners/acme/inner",
            "partners/acme/inner/deep",
            "partners/acme/order",
            "shared",
            "shared/file",
        ]
    );
    let shown = String::from_utf8(session.receive("LIST -la")).unwrap();
    for name in ["partners", "shared"] {
        assert!(
            shown.lines().any(|line| line.starts_with('d') && line.ends_with(&format!(" {name}"))),
            "{shown}"
        );
    }
    // Wildcards, facts, and every way to change into a folder.
    assert_eq!(names(&mut session, "s*"), ["shared"]);
    assert!(facts(&mut session, "/", "partners").contains("perm=el;"));
    assert!(facts(&mut session, "/", "shared").contains("perm=celmp;"));
    assert!(facts(&mut session, "/partners", "acme").contains("type=dir;"));
    assert!(session.command("MLST partners", 250).text().contains("type=dir;"));
    session.command("CWD partners", 250);
    session.command("CWD acme/inner", 250);
    assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), "/partners/acme/inner");
    assert_eq!(session.retrieve("deep"), b"inside/deep");
    session.command("CDUP", 250);
    assert_eq!(session.retrieve("order"), b"acme/order");
    assert_eq!(session.retrieve("../../shared/file"), b"common/shared/file");
    session.command("CWD ..", 250);
    session.command("CDUP", 250);
    assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), "/");
    session.command("AVBL partners", 213);

    // All commands work in a folder and act on its directory in the storage.
    session.store("shared/new", b"new");
    session.transmit("APPE shared/new", b"er");
    assert_eq!(site.content("common/shared/new").as_deref(), Some("newer"));
    session.command("MKD shared/d", 257);
    session.command("RNFR shared/new", 350);
    session.command("RNTO shared/d/old", 250);
    session.command("SITE CHMOD 600 shared/d/old", 200);
    session.command("COMB shared/joined shared/d/old", 250);
    session.command("RMDA shared/d", 250);
    session.command("DELE shared/joined", 250);
    assert_eq!(names(&mut session, "shared"), ["shared/file"]);
    assert_eq!(fs::read_dir(site.node.root().join("anna")).unwrap().count(), 2);
}

#[test]
fn clients_cannot_change_folders_or_directories_above_them() {
    let site = site();
    let mut session = site.login("anna");
    for name in ["shared", "partners", "partners/acme", "partners/acme/inner"] {
        for command in ["RMD", "RMDA", "DELE", "SITE CHMOD 700", "MFMT 20200101000000", "MKD"] {
            session.command(&format!("{command} {name}"), 550);
        }
        for command in ["STOR", "APPE", "RETR"] {
            session.epsv();
            session.command(&format!("{command} {name}"), 550);
        }
        session.command(&format!("RNFR {name}"), 350);
        session.command("RNTO elsewhere", 550);
        session.command("RNFR mine", 350);
        session.command(&format!("RNTO {name}"), 550);
    }
    // A synthetic directory above a folder accepts no files.
    session.epsv();
    session.command("STOR partners/new", 550);
    session.command("MKD partners/new", 550);
    session.command("RNFR mine", 350);
    session.command("RNTO partners/mine", 550);
    session.command("RMDA /", 553);
    for (file, path) in [("anna/mine", "mine"), ("acme/order", "partners/acme/order")] {
        assert_eq!(session.retrieve(path), file.as_bytes());
    }
}

#[test]
fn rename_and_comb_between_folders_are_refused() {
    let site = site();
    let mut session = site.login("anna");
    let refused = "553 Cannot move between folders or file systems";
    for (from, to) in [
        ("mine", "shared/mine"),
        ("shared/file", "file"),
        ("partners/acme/order", "partners/acme/inner/order"),
        ("partners/acme/inner/deep", "shared/deep"),
        ("d", "shared/d"),
    ] {
        session.command(&format!("RNFR {from}"), 350);
        assert_eq!(session.command(&format!("RNTO {to}"), 553).text(), refused, "{from}");
    }
    all_get(&mut session, refused, &["COMB mine shared/file", "COMB shared/new mine"]);
    session.command("RNFR partners/acme/order", 350);
    session.command("RNTO partners/acme/in/order", 250);
    assert!(site.content("acme/in/order").is_some());
}

#[test]
fn folder_hides_the_home_directory_of_its_name_and_shares_parent_directories() {
    let site = Site::of(json!({
        "home": "/anna",
        "folders": [
            { "path": "/covered", "target": "/a" },
            { "path": "/way/folder", "target": "/b" },
            { "path": "/file/folder", "target": "/b" },
        ],
    }));
    for file in ["anna/covered/hidden", "anna/way/mine", "anna/file", "a/x", "b/y"] {
        site.put(file, file);
    }
    let mut session = site.login("anna");
    assert_eq!(names(&mut session, ""), ["covered", "file", "way"]);
    assert_eq!(names(&mut session, "covered"), ["covered/x"]);
    assert_eq!(names(&mut session, "way"), ["way/folder", "way/mine"]);
    assert_eq!(names(&mut session, "file"), ["file/folder"]);
    assert_eq!(session.retrieve("file/folder/y"), b"b/y");
    session.epsv();
    session.command("RETR covered/hidden", 550);
    session.store("way/new", b"x");
    assert!(site.content("anna/way/new").is_some());
    session.command("RMDA way", 550);
    session.command("CWD file", 250);
    assert!(site.content("anna/way/mine").is_some());
}

#[test]
fn missing_folder_is_created_or_omitted_depending_on_create_homes() {
    let account = || {
        json!({
            "home": "/anna",
            "folders": [
                { "path": "/missing", "target": "/nowhere/at/all" },
                { "path": "/out", "target": "/out" },
                { "path": "/", "target": "/acme" },
                { "path": "/acme", "target": "/acme" },
                { "path": "/acme/", "target": "/other" },
            ],
        })
    };
    for create_homes in [true, false] {
        let site = Site::new(create_homes, move |_| account());
        site.put("anna/mine", "x");
        site.put("acme/order", "x");
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), site.node.root().join("out")).unwrap();
        let mut session = site.login("anna");
        let expected: &[&str] = if create_homes { &["acme", "mine", "missing"] } else { &["acme", "mine"] };
        assert_eq!(names(&mut session, ""), expected);
        assert_eq!(names(&mut session, "acme"), ["acme/order"]);
        assert_eq!(site.node.root().join("nowhere/at/all").is_dir(), create_homes);
        session.command("CWD out", 550);
        // A client must not be able to create a missing folder's path in the home: the folder would
        // hide the created files at the next login.
        for command in ["MKD out", "MKD out/below", "STOR out/file", "RNFR out"] {
            assert_eq!(session.probe(command), 550, "{command}");
        }
        session.command("RNFR mine", 350);
        session.command("RNTO out", 550);
        assert_eq!(fs::read_dir(site.node.root().join("anna")).unwrap().count(), 1);
        for path in ["/out", "/"] {
            site.node.daemon.wait_for_line(|line| {
                line.contains("shared folder left out") && line.contains(&format!("path={path}"))
            });
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

#[test]
fn no_path_or_link_leaves_a_folder() {
    let site = site();
    let root = site.node.root();
    site.put("secret/file", "secret");
    for (name, target) in [
        ("up", "../secret".to_owned()),
        ("far", format!("{}secret", "../".repeat(20))),
        ("absolute", root.join("secret").display().to_string()),
        ("file", "../secret/file".to_owned()),
        ("proc", "/proc/self/root".to_owned()),
        ("home", "../anna".to_owned()),
    ] {
        symlink(target, root.join("acme").join(format!("link-{name}"))).unwrap();
    }
    // A link in the home resolves inside the home, not to a folder.
    symlink("/shared/file", root.join("anna/link")).unwrap();
    let mut session = site.login("anna");
    session.command("CWD /partners/acme", 250);
    for way in [
        "link-up/file",
        "link-far/file",
        "link-absolute/file",
        "link-file",
        "link-proc/etc/passwd",
        "link-home/mine",
        "../../../secret/file",
        "/../secret/file",
        "../secret/file",
        "/link",
    ] {
        for command in ["RETR", "SIZE", "HASH", "APPE", "SITE CHMOD 777"] {
            session.epsv();
            session.send(&format!("{command} {way}"));
            let reply = session.reply();
            assert!((500..=599).contains(&reply.code), "{command} {way}: {reply:?}");
        }
    }
    assert_eq!(site.content("secret/file").as_deref(), Some("secret"));
}

/// A client that deletes everything in a folder must not reach the targets of links there.
#[test]
fn links_in_a_folder_are_listed_as_links_and_parents_of_folders_as_directories() {
    let site = site();
    let root = site.node.root();
    site.put("acme/keep/important", "important");
    fs::create_dir(root.join("acme/site")).unwrap();
    symlink("../keep", root.join("acme/site/link")).unwrap();
    fs::create_dir(root.join("anna/elsewhere")).unwrap();
    symlink("elsewhere", root.join("anna/partners")).unwrap();
    let mut session = site.login("anna");
    assert!(facts(&mut session, "/partners/acme/site", "link").starts_with("type=OS.unix=slink:../keep;"));
    session.command("RMD /partners/acme/site/link", 550);
    session.command("RMDA /partners/acme/site", 250);
    assert_eq!(site.content("acme/keep/important").as_deref(), Some("important"));
    // A link in the home does not hide the directory above a folder.
    assert!(facts(&mut session, "/", "partners").starts_with("type=dir;"));
    assert!(session.command("MLST /partners", 250).details()[0].starts_with("type=dir;"));
    assert!(facts(&mut session, "/partners", "acme").starts_with("type=dir;"));
    session.command("DELE /partners", 550);
    session.command("RMD /partners", 550);
}

#[test]
fn file_has_one_writer_across_homes_and_folders() {
    let site = Site::new(true, |user| match user {
        "anna" => json!({ "home": "/anna", "folders": [{ "path": "/with/bert", "target": "/bert/shared" }] }),
        "cleo" => json!({ "home": "/bert/shared", "uploads": "atomic" }),
        _ => json!({ "home": "/bert" }),
    });
    site.put("bert/shared/file", "x");
    let (mut anna, mut bert, mut cleo) = (site.login("anna"), site.login("bert"), site.login("cleo"));
    let writing = anna.begin("STOR with/bert/file");
    for (session, path) in [(&mut bert, "shared/file"), (&mut cleo, "file")] {
        session.epsv();
        session.command(&format!("STOR {path}"), 450);
    }
    drop(writing);
    anna.expect(226);
    bert.store("shared/file", b"of bert");
    assert_eq!(anna.retrieve("with/bert/file"), b"of bert");
}

#[test]
fn access_rules_apply_to_virtual_paths_in_folders() {
    let site = Site::of(json!({
        "home": "/anna",
        "folders": [{ "path": "/partners/acme", "target": "/acme" }],
        "directories": [
            { "path": "/partners/*/out", "permissions": { "upload": false, "delete": false } },
            { "path": "/acme", "permissions": { "list": false } },
        ],
        "denied_names": ["*.exe"],
    }));
    site.put("acme/out/report", "x");
    site.put("acme/in/old", "x");
    let mut session = site.login("anna");
    session.store("partners/acme/in/order", b"x");
    all_get(
        &mut session,
        "550 Permission denied",
        &[
            "STOR partners/acme/out/new",
            "DELE partners/acme/out/report",
            "RMDA partners/acme/out",
            "RMDA partners/acme",
            "RMDA partners",
        ],
    );
    session.command("CWD partners/acme", 250);
    session.epsv();
    session.command("STOR in/a.exe", 553);
    assert_eq!(names(&mut session, ""), ["in", "out"]);
    assert_eq!(session.retrieve("out/report"), b"x");
}

#[test]
fn transfer_log_has_the_path_in_the_storage() {
    let site = site();
    let mut session = site.login("anna");
    session.retrieve("partners/acme/order");
    session.retrieve("mine");
    let lines = eventually("two lines", || {
        let log = site.content(TRANSFER_LOG)?;
        (log.lines().count() == 2).then_some(log)
    });
    assert!(lines.contains(" /acme/order ") && lines.contains(" /anna/mine "), "{lines}");
}
