//! Limits and orders apply to all nodes.

use cluster_tests::{
    authd::hash_password, cluster::Cluster, dialogue::Dialogue, eventually, proxy::Connector,
};

fn login(cluster: &Cluster, client: &Connector, user: &str) -> (u16, Dialogue) {
    let mut session = Dialogue::connect_with(client, cluster.address());
    session.command(&format!("USER {user}"), 331);
    session.send("PASS secret");
    let code = session.reply().code;
    (code, session)
}

fn refused(cluster: &Cluster, client: &Connector, user: &str) {
    let (code, _) = login(cluster, client, user);
    assert!(matches!(code, 421 | 530), "{code}");
}

fn admitted(cluster: &Cluster, client: &Connector, user: &str) -> Dialogue {
    eventually("a place for one more session", || {
        let (code, session) = login(cluster, client, user);
        (code == 230).then_some(session)
    })
}

#[test]
fn session_limit_of_a_user_counts_all_nodes() {
    let hash = hash_password("secret");
    let cluster = Cluster::builder()
        .users(&format!(
            "[users.partner]\npassword_hash = \"{hash}\"\nhome = \"/partner\"\nlimits = {{ sessions = 2 }}\n\
             [users.other]\npassword_hash = \"{hash}\"\nhome = \"/other\"\n"
        ))
        .start();
    let anyone = Connector::new();
    let first = cluster.session_through(0, &anyone, "partner");
    let _second = cluster.session_through(1, &anyone, "partner");
    for _ in 0..cluster.size() {
        refused(&cluster, &anyone, "partner");
    }
    let _other = admitted(&cluster, &anyone, "other");
    first.quit();
    let _third = admitted(&cluster, &anyone, "partner");
    refused(&cluster, &anyone, "partner");
}

#[test]
fn session_limit_per_address_counts_all_nodes() {
    let cluster = Cluster::builder().setting("max_sessions_per_address", 3).start();
    let (crowded, other) = (cluster.client(1), cluster.client(2));
    let _sessions: Vec<_> = (0..3).map(|node| cluster.session_through(node, &crowded, "demo")).collect();
    for _ in 0..cluster.size() {
        refused(&cluster, &crowded, "demo");
    }
    let _admitted = admitted(&cluster, &other, "demo");
}

#[test]
fn administrator_sees_all_sessions_and_ends_one_on_any_node() {
    let cluster = Cluster::start();
    let client = cluster.client(1);
    let mut sessions: Vec<_> = (0..3).map(|node| cluster.session_through(node, &client, "admin")).collect();
    let listed = eventually("the sessions to be listed", || {
        let answer = cluster.authd().administer("GET", "/v1/sessions", None).json();
        let list = answer.as_array().or_else(|| answer["sessions"].as_array())?.clone();
        let own: Vec<_> = list.into_iter().filter(|session| session["user"] == "admin").collect();
        (own.len() == 3).then_some(own)
    });
    let address = cluster.client_address(1).to_string();
    assert!(listed.iter().all(|session| session["address"] == address.as_str()), "{listed:?}");
    let victim = listed.iter().find(|session| session["node"] == "ftp2").expect("one is on each node");
    let path = format!("/v1/sessions/{}", victim["id"].as_str().expect("an id is text"));
    let answer = cluster.authd().administer("DELETE", &path, None);
    assert!((200..300).contains(&answer.status), "{answer:?}");
    let replies = sessions[1].expect_closed();
    assert_eq!(replies.iter().map(|reply| reply.code).collect::<Vec<_>>(), [421]);
    sessions[0].command("NOOP", 200);
    sessions[2].command("NOOP", 200);
}
