//! The example session in the README of the reference system, with its environment variables.

use cluster_tests::{cluster::Cluster, dialogue::Dialogue};

/// The session in that README: greeting, login, PWD and LIST with the promised replies.
fn walk_through(cluster: &Cluster, user: &str, password: &str) -> Dialogue {
    let mut session = Dialogue::connect(cluster.address());
    assert_eq!(session.command(&format!("USER {user}"), 331).text(), "331 Password required");
    assert_eq!(session.command(&format!("PASS {password}"), 230).text(), "230 Login successful");
    assert_eq!(session.command("PWD", 257).text(), "257 \"/\" is current directory");
    let announced = session.pasv();
    assert_eq!(announced.ip(), cluster.address().ip(), "FtpExternalIP");
    let mut data = session.data_connection(announced);
    assert_eq!(session.command("LIST", 150).text(), "150 Opening data connection for directory list");
    let mut listing = Vec::new();
    std::io::Read::read_to_end(&mut data, &mut listing).unwrap();
    assert_eq!(session.expect(226).text(), "226 Directory listing completed");
    session
}

#[test]
fn demo_admin_and_test_log_in_with_any_password() {
    let cluster = Cluster::builder().reference_variables().start();
    for user in ["demo", "admin", "test"] {
        for password in ["anypassword", "x"] {
            walk_through(&cluster, user, password).quit();
        }
        assert!(cluster.storage().join(user).is_dir(), "the home of {user} is in the shared storage");
    }
}

#[test]
fn cluster_serves_while_one_node_is_stopped_and_after_its_restart() {
    let mut cluster = Cluster::builder().reference_variables().start();
    cluster.node(0).daemon.terminate();
    cluster.node_mut(0).daemon.wait();
    for _ in 0..4 {
        walk_through(&cluster, "demo", "anypassword").quit();
    }
    cluster.restart_node(0);
    cluster.login_through(0).quit();
}

#[test]
fn uploaded_file_exists_after_reconnecting() {
    let cluster = Cluster::builder().reference_variables().start();
    walk_through(&cluster, "demo", "anypassword").store("report.txt", b"shared");
    for _ in 0..cluster.size() {
        let mut session = walk_through(&cluster, "demo", "other");
        assert_eq!(session.retrieve("report.txt"), b"shared");
        let listing = String::from_utf8(session.receive("LIST")).unwrap();
        assert!(listing.contains("report.txt"), "{listing}");
    }
}
