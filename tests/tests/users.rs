//! Accounts apply on every node: permissions, home, and the end of sessions.

use std::{
    fs,
    time::{Duration, Instant},
};

use cluster_tests::{
    authd::hash_password, cluster::Cluster, dialogue::Dialogue, eventually, proxy::Connector,
};
use serde_json::json;

/// Maximum time from authd's response until the sessions have ended.
const SOON: Duration = Duration::from_secs(2);

fn login_code(cluster: &Cluster, user: &str, password: &str) -> u16 {
    let mut session = Dialogue::connect(cluster.address());
    session.command(&format!("USER {user}"), 331);
    session.send(&format!("PASS {password}"));
    session.reply().code
}

#[test]
fn permissions_and_home_are_enforced_on_every_node() {
    /// Each permission with the commands that need it. They are refused without it, and only then.
    const NEEDS: [(&str, &[&str]); 10] = [
        ("list", &["SIZE old", "MLST old", "STAT old", "MDTM old"]),
        ("download", &["RETR old", "XMD5 old"]),
        ("upload", &["STOR new", "STOU", "APPE new"]),
        ("overwrite", &["STOR old"]),
        ("append", &["APPE old"]),
        ("rename", &["RNFR old"]),
        ("delete", &["DELE old"]),
        ("mkdir", &["MKD dir"]),
        ("rmdir", &["RMD empty"]),
        ("attributes", &["SITE CHMOD 600 old", "MFMT 20200101000000 old"]),
    ];
    let hash = hash_password("secret");
    let mut users = format!("[users.all]\npassword_hash = \"{hash}\"\nhome = \"/home\"\n");
    for (permission, _) in NEEDS {
        users += &format!(
            "[users.no-{permission}]\npassword_hash = \"{hash}\"\nhome = \"/home\"\n\
             permissions = {{ {permission} = false }}\n"
        );
    }
    let cluster = Cluster::builder().users(&users).start();
    let home = cluster.storage().join("home");
    let reset = || {
        // The home itself must stay: the sessions keep it open.
        fs::create_dir_all(home.join("empty")).unwrap();
        for entry in home.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            if entry != home.join("empty") {
                fs::remove_file(&entry).or_else(|_| fs::remove_dir(&entry)).unwrap();
            }
        }
        fs::write(home.join("old"), "content").unwrap();
    };
    reset();
    for (number, (missing, _)) in NEEDS.iter().enumerate() {
        let node = number % cluster.size();
        let mut without = cluster.session_through(node, &Connector::new(), &format!("no-{missing}"));
        without.command("TYPE I", 200);
        for (permission, commands) in NEEDS {
            for command in commands {
                reset();
                // An allowed transfer begins and is aborted.
                let code = without.probe(command);
                assert!(code < 400 || code == 550, "no-{missing}, {command}: {code}");
                let allowed = code != 550;
                assert_eq!(allowed, permission != *missing, "no-{missing}, {command}");
            }
        }
        // STOR after REST needs both `overwrite` and `append`.
        without.command("REST 3", 350);
        let cuts = without.probe("STOR old") != 550;
        assert_eq!(cuts, !matches!(*missing, "overwrite" | "append"), "no-{missing}");
        assert_eq!(fs::read(home.join("old")).unwrap(), b"content");
    }
}

#[test]
fn sessions_on_all_nodes_end_when_a_user_is_disabled_or_deleted() {
    let cluster = Cluster::builder().users("").start();
    let authd = cluster.authd();
    let create = |name: &str| {
        let answer =
            authd.administer("POST", "/v1/users", Some(&json!({"name": name, "password": "secret"})));
        assert!((200..300).contains(&answer.status), "{answer:?}");
    };
    create("other");
    let mut other = cluster.session_through(1, &Connector::new(), "other");
    create("partner");
    let changes = [
        ("PATCH", Some(json!({"enabled": false}))),
        ("PATCH", Some(json!({"password": "another"}))),
        ("DELETE", None),
    ];
    for (method, body) in changes {
        let answer = authd.administer(
            "PATCH",
            "/v1/users/partner",
            Some(&json!({"enabled": true, "password": "secret"})),
        );
        assert!((200..300).contains(&answer.status), "{answer:?}");
        let mut sessions: Vec<_> =
            (0..3).map(|node| cluster.session_through(node, &Connector::new(), "partner")).collect();
        let answer = authd.administer(method, "/v1/users/partner", body.as_ref());
        assert!((200..300).contains(&answer.status), "{answer:?}");
        let start = Instant::now();
        for session in &mut sessions {
            let codes: Vec<u16> = session.expect_closed().iter().map(|reply| reply.code).collect();
            assert_eq!(codes, [421], "{method} {body:?}");
        }
        assert!(start.elapsed() < SOON, "{method} {body:?}: {:?}", start.elapsed());
        assert_eq!(login_code(&cluster, "partner", "secret"), 530, "{method} {body:?}");
    }
    other.command("NOOP", 200);
}

#[test]
fn override_of_a_declared_user_ends_its_sessions_on_all_nodes_and_can_be_removed() {
    let hash = hash_password("secret");
    let user = |name: &str| format!("[users.{name}]\npassword_hash = \"{hash}\"\nhome = \"/{name}\"\n");
    let cluster = Cluster::builder().users(&(user("acme") + &user("other"))).start();
    let mut sessions: Vec<_> =
        (0..3).map(|node| cluster.session_through(node, &Connector::new(), "acme")).collect();
    let mut other = cluster.session_through(1, &Connector::new(), "other");
    let change = |enabled: bool| {
        let body = json!({ "enabled": enabled });
        cluster.authd().administer("PATCH", "/v1/users/acme", Some(&body))
    };
    let answer = change(false);
    assert_eq!(answer.status, 200, "{answer:?}");
    for session in &mut sessions {
        let codes: Vec<u16> = session.expect_closed().iter().map(|reply| reply.code).collect();
        assert_eq!(codes, [421]);
    }
    assert_eq!(login_code(&cluster, "acme", "secret"), 530);
    other.command("NOOP", 200);
    assert_eq!(change(true).status, 200);
    assert_eq!(login_code(&cluster, "acme", "secret"), 230);
}

#[test]
fn changed_users_file_applies_to_the_next_login_and_ends_sessions_of_removed_users() {
    let hash = hash_password("secret");
    let cluster = Cluster::builder()
        .users(&format!("[users.ann]\npassword_hash = \"{hash}\"\nhome = \"/ann\"\n"))
        .start();
    assert_eq!(login_code(&cluster, "ann", "secret"), 230);
    assert_eq!(login_code(&cluster, "bob", "secret"), 530);
    let mut sessions: Vec<_> =
        (0..3).map(|node| cluster.session_through(node, &Connector::new(), "ann")).collect();
    let changed = format!("[users.bob]\npassword_hash = \"{hash}\"\nhome = \"/bob\"\n");
    fs::write(cluster.authd().users_file(), changed).unwrap();
    eventually("the new user to log in", || (login_code(&cluster, "bob", "secret") == 230).then_some(()));
    assert_eq!(login_code(&cluster, "ann", "secret"), 530);
    // The sessions of the removed user end.
    for session in &mut sessions {
        let codes: Vec<u16> = session.expect_closed().iter().map(|reply| reply.code).collect();
        assert_eq!(codes, [421]);
    }
}
