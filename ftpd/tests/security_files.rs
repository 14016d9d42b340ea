//! Attacks on files through paths, links, patterns, deep trees, homes, and other users' files.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use cluster_tests::{
    DEADLINE,
    node::{Node, NodeBuilder},
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::{Value, json};

/// A node that does not log every command, for tests that send many.
fn quiet() -> NodeBuilder {
    Node::standalone().setting("log_level", "info").setting("max_errors", 100_000)
}

/// A node with a stub authd that answers each login with `account(user)`.
fn with_accounts(account: impl Fn(&str) -> Value + Send + Sync + 'static) -> (Redis, StubAuthd, Node) {
    let authd = StubAuthd::start(move |request| {
        let user = request["user"].as_str().unwrap_or_default();
        let mut answer = account(user);
        answer["user"] = user.into();
        Answer::account(&answer)
    });
    let builder = quiet().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder.setting("authd_urls", authd.url()).setting("redis_url", redis.address);
    let node = builder.setting("create_homes", "true").start();
    (redis, authd, node)
}

/// Everything below a directory: path, mode, modification time and content.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap_or_default()
        };
        tree.insert(path, (metadata.mode(), metadata.mtime(), content));
    }
    tree
}

/// Path traversal: CVE-2026-30914, CVE-2010-3867; access by another name: CVE-2026-35025
/// (`/proc/self/root`).
#[test]
fn no_path_leaves_the_home() {
    let builder = Node::standalone();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = builder.root();
    symlink(outside.path(), root.join("absolute")).unwrap();
    symlink(outside.path().join("secret"), root.join("file")).unwrap();
    let up = "../".repeat(20);
    symlink(format!("{up}{}", &outside.path().to_str().unwrap()[1..]), root.join("relative")).unwrap();
    symlink("/proc/self/root", root.join("proc")).unwrap();
    symlink("/", root.join("top")).unwrap();
    fs::create_dir(root.join("inside")).unwrap();
    fs::write(root.join("mine"), "mine").unwrap();
    let node = builder.setting("max_errors", 1000).start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    let out = outside.path().display().to_string();
    let ways = [
        format!("{out}/secret"),
        format!("{up}{}/secret", &out[1..]),
        format!("inside/{up}{}/secret", &out[1..]),
        "absolute/secret".to_owned(),
        "relative/secret".to_owned(),
        "file".to_owned(),
        format!("proc{out}/secret"),
        format!("top{out}/secret"),
        "/proc/self/root/etc/passwd".to_owned(),
        "../../../../../../etc/passwd".to_owned(),
        "....//....//etc/passwd".to_owned(),
        "..\\..\\etc\\passwd".to_owned(),
        "%2e%2e/%2e%2e/etc/passwd".to_owned(),
        "~root/.profile".to_owned(),
        "/dev/null".to_owned(),
    ];
    for way in &ways {
        for command in
            ["RETR", "APPE", "STOR", "LIST", "NLST -R", "MLSD", "HASH", "SIZE", "MDTM", "XMD5", "MLST"]
        {
            // Listings may show the link itself.
            if way == "file" && matches!(command, "LIST" | "NLST -R" | "MLST") {
                continue;
            }
            session.epsv();
            session.send(&format!("{command} {way}"));
            let reply = session.reply();
            // A name without a directory part is an ordinary name.
            let plain = !way.contains('/') && matches!(command, "STOR" | "APPE") && way != "file";
            if plain {
                assert_eq!(reply.code, 150, "{command} {way}: {reply:?}");
                session.command("ABOR", 426);
                session.expect(226);
            } else {
                assert!((500..=599).contains(&reply.code), "{command} {way}: {reply:?}");
            }
        }
        for command in [
            "SITE CHMOD 777",
            "MFMT 20200101000000",
            "SITE UTIME 20200101000000",
            "CWD",
            "RMD",
            "RMDA",
            "COMB mine",
        ] {
            session.send(&format!("{command} {way}"));
            let reply = session.reply();
            assert!((500..=599).contains(&reply.code), "{command} {way}: {reply:?}");
        }
        if way != "file" {
            for command in ["DELE", "RNFR"] {
                session.command(&format!("{command} {way}"), 550);
            }
            session.command("RNFR mine", 350);
            let name = format!("RNTO {way}");
            if way.contains('/') {
                _ = session.command(&name, 550)
            } else {
                session.command(&name, 250);
                session.command(&format!("RNFR {way}"), 350);
                session.command("RNTO mine", 250);
            }
        }
        session.send(&format!("MKD {way}/made"));
        assert!((500..=599).contains(&session.reply().code), "{way}");
    }
    // `..` of the root is the root, and a link to `/` leads to the home.
    session.command("CWD /../../..", 250);
    session.command("CWD top/inside", 250);
    assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), "/top/inside");
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read(node.root().join("mine")).unwrap(), b"mine");
}

/// Symlink races: CVE-2012-6095, CVE-2017-7418.
#[test]
fn a_link_that_is_constantly_replaced_never_leads_out_of_the_home() {
    let builder = Node::standalone();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "secret").unwrap();
    let root = builder.root().to_owned();
    fs::create_dir(root.join("inside")).unwrap();
    fs::write(root.join("inside/file"), "mine").unwrap();
    symlink("inside", root.join("link")).unwrap();
    let node = builder.setting("log_level", "info").start();
    let mut session = node.login("demo", "x");
    thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let target = outside.path().to_owned();
        scope.spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                for target in [target.as_path(), "inside".as_ref()] {
                    symlink(target, root.join("new")).unwrap();
                    fs::rename(root.join("new"), root.join("link")).unwrap();
                }
            }
        });
        session.command("TYPE I", 200);
        let mut seen = 0;
        for _ in 0..300 {
            session.send("SIZE link/file");
            match session.reply() {
                reply if reply.code == 213 => {
                    assert_eq!(reply.message(), "4", "the file outside has six bytes");
                    seen += 1;
                }
                reply => assert_eq!(reply.code, 550),
            }
        }
        drop(stop);
        assert!(seen > 0, "the link never pointed inside the home");
    });
}

/// Glob DoS: CVE-2011-0762, CVE-2011-0418, CVE-2019-20176, CVE-2025-14242.
#[test]
fn hostile_patterns_do_not_take_exponential_time() {
    let node = quiet().start();
    for i in 0..500 {
        fs::write(node.root().join(format!("{}{i}", "a".repeat(240))), "").unwrap();
    }
    let mut session = node.login("demo", "x");
    let started = Instant::now();
    for pattern in [
        "***************b".to_owned(),
        "*a".repeat(120) + "b",
        "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b".to_owned(),
        "?*".repeat(2000),
        "[".repeat(4000) + "*",
        "*[!a]".repeat(700),
        "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}*".to_owned(),
    ] {
        session.epsv();
        session.send(&format!("NLST {pattern}"));
        let reply = session.reply();
        // Either an empty listing, or the pattern is too long for a path.
        if reply.code == 150 {
            session.send("ABOR");
            session.reply();
            session.expect(226);
        } else {
            assert!((500..=599).contains(&reply.code), "{reply:?}");
        }
        session.receive(&format!("LIST {}", &pattern[..pattern.len().min(200)]));
    }
    // A wildcard in a directory part is an ordinary character; the `..` after it removes that part.
    for pattern in ["*/../*/../*", "*/../*/../*/../*/../*/../*/../*/../*/../*"] {
        assert_eq!(session.receive(&format!("NLST {pattern}")).split(|b| *b == b'\n').count(), 501);
    }
    session.epsv();
    session.command("NLST */*/*/*/*/*/*/*/*/*", 550);
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
}

/// Listing DoS: CVE-2019-20176, ProFTPD bug 3719 (`LIST -R` in a loop of links).
#[test]
fn a_tree_that_is_too_deep_is_listed_to_the_depth_limit_and_not_removed() {
    let builder = quiet();
    let deep = builder.root().join("d/".repeat(300));
    fs::create_dir_all(&deep).unwrap();
    symlink("..", builder.root().join("d/loop")).unwrap();
    let node = builder.start();
    let mut session = node.login("demo", "x");
    let shown = String::from_utf8(session.receive("LIST -R")).unwrap();
    assert_eq!(shown.lines().filter(|line| line.ends_with(':')).count(), 33);
    session.command("RMDA d", 550);
    session.command("NOOP", 200);
    assert!(deep.exists());
}

/// Symlink races: CVE-2012-6095, CVE-2017-7418, ProFTPD #2256.
#[test]
fn no_operation_follows_a_link_that_is_replaced_at_the_same_time() {
    let builder = quiet();
    let root = builder.root().to_owned();
    let outside = tempfile::tempdir().unwrap();
    for directory in [outside.path(), &root.join("inside")] {
        fs::create_dir_all(directory.join("sub/below")).unwrap();
        fs::write(directory.join("file"), if directory == outside.path() { "secret" } else { "mine" })
            .unwrap();
    }
    symlink("inside", root.join("link")).unwrap();
    fs::write(root.join("mine"), "mine").unwrap();
    let before = tree(outside.path());
    let node = builder.start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for target in [outside.path(), "inside".as_ref()] {
                    symlink(target, root.join("new")).unwrap();
                    fs::rename(root.join("new"), root.join("link")).unwrap();
                }
            }
        });
        let mut done = BTreeMap::<&str, u32>::new();
        let swapping = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..60 {
                for command in [
                    "MKD link/made",
                    "RMD link/made",
                    "SITE CHMOD 777 link/file",
                    "MFMT 20200101000000 link/file",
                    "MLST link/file",
                    "HASH link/file",
                    "RMDA link/sub",
                    "MKD link/sub",
                    "DELE link/stored",
                    "COMB link/joined mine",
                    "DELE link/joined",
                    "MKD mine",
                ] {
                    session.send(command);
                    let reply = session.reply();
                    *done.entry(command).or_default() += u32::from(reply.code < 400);
                    assert!(reply.code < 400 || (500..=599).contains(&reply.code), "{command}: {reply:?}");
                    // COMB removes its source.
                    fs::write(root.join("mine"), "mine").unwrap();
                }
                for (from, to) in
                    [("link/file", "link/file2"), ("link/file2", "link/file"), ("link/file2", "link/file")]
                {
                    session.send(&format!("RNFR {from}"));
                    if session.reply().code == 350 {
                        session.send(&format!("RNTO {to}"));
                        session.reply();
                    }
                }
                for command in ["STOR link/stored", "RETR link/file", "NLST link"] {
                    let address = session.epsv();
                    session.send(command);
                    // Connect only after 150: an unused connection would wait at the port for the next
                    // transfer.
                    if session.reply().code == 150 {
                        let mut data = session.data_connection(address);
                        if command.starts_with("STOR") {
                            drop(data);
                        } else {
                            let mut content = String::new();
                            std::io::Read::read_to_string(&mut data, &mut content).unwrap();
                            assert!(!content.contains("secret"), "{command}");
                        }
                        // The link may have been replaced again before the listing starts.
                        let reply = session.reply();
                        assert!(
                            reply.code == 226 || command == "NLST link" && reply.code == 550,
                            "{command}: {reply:?}"
                        );
                    }
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        swapping.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(
            done.iter().filter(|(_, count)| **count > 0).count() > 6,
            "the link rarely pointed inside the home: {done:?}"
        );
    });
    assert_eq!(tree(outside.path()), before);
}

/// Access rules bypassed by another name: CVE-2015-1419, CVE-2026-35025, ProFTPD #2170, #2282.
#[test]
fn permissions_apply_to_every_spelling_of_a_path() {
    let denied = ["list", "download", "overwrite", "append", "rename", "delete", "attributes"];
    let permissions: serde_json::Map<_, _> =
        denied.iter().map(|name| ((*name).to_owned(), json!(false))).collect();
    let (_redis, _authd, node) =
        with_accounts(move |_| json!({ "home": "/home", "permissions": permissions }));
    let home = node.root().join("home");
    fs::create_dir_all(home.join("directory")).unwrap();
    fs::write(home.join("file"), "content").unwrap();
    symlink("../file", home.join("directory/link")).unwrap();
    symlink(".", home.join("self")).unwrap();
    let before = tree(&home);
    let mut session = node.login("ann", "x");
    session.command("TYPE I", 200);
    for form in [
        "file",
        "./file",
        "/file",
        "//file",
        "/../file",
        "directory/../file",
        "directory/link",
        "self/self/file",
        "directory/./../self//file",
    ] {
        for command in [
            "RETR",
            "STOR",
            "APPE",
            "DELE",
            "RNFR",
            "SIZE",
            "MDTM",
            "MLST",
            "HASH",
            "XCRC",
            "STAT",
            "LIST",
            "NLST",
            "SITE CHMOD 777",
            "MFMT 20200101000000",
            "COMB",
        ] {
            session.epsv();
            let more = if command == "COMB" { " file" } else { "" };
            session.command(&format!("{command} {form}{more}"), 550);
        }
        session.command("CWD directory", 250);
        session.epsv();
        session.command("RETR ../file", 550);
        session.command("CDUP", 250);
    }
    assert_eq!(tree(&home), before);
}

/// Placeholders in the path of a home: CVE-2026-30915 (`%username%`).
#[test]
fn user_names_do_not_enter_paths_and_homes_have_no_placeholders() {
    let (_redis, authd, node) = with_accounts(|_| json!({ "home": "/homes/%username%/{user}/$USER/~" }));
    for (number, user) in ["..", "../..", "a/b", "/", ".", "%username%", "a\\b", "$(id)", "*", "ann' or '1"]
        .into_iter()
        .enumerate()
    {
        let mut session = node.login(user, "x");
        session.store(&format!("file{number}"), b"content");
        assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), "/");
        assert!(
            node.root().join(format!("homes/%username%/{{user}}/$USER/~/file{number}")).exists(),
            "{user}"
        );
        session.quit();
    }
    let mut session = node.connect();
    session.command_bytes(b"USER a\0b", 501);
    session.command("USER", 501);
    assert_eq!(authd.requests().len(), 10);
    assert_eq!(fs::read_dir(node.root()).unwrap().count(), 1);
}

/// Renames and links between homes.
#[test]
fn no_path_or_link_leads_from_one_home_to_another() {
    let (_redis, _authd, node) = with_accounts(|user| json!({ "home": format!("/{user}") }));
    let (anns, bens) = (node.root().join("ann"), node.root().join("ben"));
    for home in [&anns, &bens] {
        fs::create_dir(home).unwrap();
        fs::write(home.join("file"), home.file_name().unwrap().to_str().unwrap()).unwrap();
    }
    symlink("../ben", anns.join("relative")).unwrap();
    symlink("/ben", anns.join("absolute")).unwrap();
    symlink(&bens, anns.join("real")).unwrap();
    symlink("../ben/file", anns.join("tofile")).unwrap();
    let before = tree(&bens);
    let mut session = node.login("ann", "x");
    session.command("TYPE I", 200);
    for way in
        ["../ben/file", "/ben/file", "relative/file", "absolute/file", "real/file", "tofile/../../ben/file"]
    {
        for command in [
            "RETR",
            "STOR",
            "APPE",
            "DELE",
            "RNFR",
            "SIZE",
            "MLST",
            "HASH",
            "SITE CHMOD 777",
            "MFMT 20200101000000",
            "COMB file",
            "MKD",
            "RMDA",
        ] {
            session.epsv();
            session.send(&format!("{command} {way}"));
            let reply = session.reply();
            assert!((500..=599).contains(&reply.code), "{command} {way}: {reply:?}");
        }
        session.command("RNFR file", 350);
        session.command(&format!("RNTO {way}"), 550);
    }
    // Ann owns the link itself: she can delete and rename it, but not reach its target.
    for command in ["STOR tofile", "RETR tofile", "APPE tofile"] {
        session.epsv();
        session.send(command);
        let reply = session.reply();
        assert!((500..=599).contains(&reply.code), "{command}: {reply:?}");
    }
    session.command("DELE tofile", 250);
    session.command("RNFR relative", 350);
    session.command("RNTO still-relative", 250);
    assert_eq!(tree(&bens), before);
}
