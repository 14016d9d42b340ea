//! `ftpctl doctor` against clusters that are right, and against set-ups that are broken on purpose: it must
//! name the fault, and no other.

#[path = "doctor/activity.rs"]
mod activity;
#[path = "doctor/own_network.rs"]
mod own_network;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use cluster_tests::{
    authd::hash_password,
    cluster::{Cluster, ClusterBuilder},
    doctor::{Diagnosis, DoctorRun},
    doors::DoorKind,
    loopback::Loopback,
    network::{Host, Network, with_own_network},
    node::Node,
    tls::{Authority, CertificateFiles},
};
use serde_json::{Value, json};

fn doctor(cluster: &Cluster) -> DoctorRun {
    DoctorRun::new(cluster.address()).authd(cluster.authd().address)
}

/// The certificate of `localhost` with other dates, in days from now.
fn dated(authority: &Authority, from: i64, to: i64) -> CertificateFiles {
    authority.sign_with("localhost", &rcgen::PKCS_ECDSA_P256_SHA256, |parameters| {
        let now = time::OffsetDateTime::now_utc();
        parameters.not_before = now + time::Duration::days(from);
        parameters.not_after = now + time::Duration::days(to);
    })
}

/// What the doctor says of a single node with this certificate.
fn with_certificate(authority: &Authority, files: &CertificateFiles) -> Diagnosis {
    let node = Node::standalone()
        .user("demo", "secret")
        .setting("tls_certificates", files.chain.display())
        .setting("tls_keys", files.key.display())
        .start();
    DoctorRun::new(node.address).authority(&authority.file()).run()
}

/// Replaces the third node by another one.
fn replace_third(
    cluster: &mut Cluster,
    change: impl FnOnce(cluster_tests::node::NodeBuilder) -> cluster_tests::node::NodeBuilder,
) {
    let builder = cluster.node(2).builder();
    cluster.node_mut(2).daemon.kill();
    *cluster.node_mut(2) = change(builder).start();
}

fn users(extra: &str) -> String {
    format!("[users.demo]\npassword_hash = \"{}\"\n{extra}\n", hash_password("secret"))
}

#[test]
fn the_page_lists_every_finding() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (source, page) = (read("ftpctl/src/doctor/findings.rs"), read("docs/doctor.md"));
    let variants = source.split("enum Finding {").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
    let variants: Vec<&str> = variants.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    assert!(variants.len() > 50, "{variants:?}");
    for variant in variants {
        let mut name = String::new();
        for c in variant.chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        }
        assert!(page.contains(&format!("| `{name}` |")), "docs/doctor.md lacks {name}");
    }
}

mod in_order {
    use super::*;

    #[test]
    fn an_encrypted_cluster_has_no_findings_and_keeps_no_test_files() {
        let authority = Authority::new();
        let cluster = Cluster::builder().certificate(&authority.sign("localhost")).leased().start();
        let run = doctor(&cluster).authority(&authority.file());
        let diagnosis = run.implicit_port(cluster.implicit_address().port()).run();
        diagnosis.assert_findings(&[]);
        let passed: Vec<_> = diagnosis.checks.iter().filter(|check| check["verdict"] == "ok").collect();
        assert!(passed.len() >= 12, "{diagnosis}");
        assert!(diagnosis.to_string().contains("9 of 9 pairs"), "{diagnosis}");
        let home = cluster.storage().join("demo");
        let left: Vec<_> =
            std::fs::read_dir(home).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_plain_cluster_has_only_the_warning_of_no_tls() {
        let cluster = Cluster::start();
        doctor(&cluster).run().assert_findings(&["no_tls"]);
    }

    #[test]
    fn one_node_of_a_cluster_is_checked_alone() {
        let cluster = Cluster::start();
        let diagnosis = doctor(&cluster).argument("--node=ftp2").run();
        diagnosis.assert_findings(&["no_tls"]);
        let text = diagnosis.to_string();
        for seen in ["on ftp2", "1 of 1 pairs", "ftp2 agrees"] {
            assert!(text.contains(seen), "{seen}: {text}");
        }
        assert!(!text.contains("ftp1") && !text.contains("ftp3"), "{text}");
        doctor(&cluster).argument("--node=ftp9").run().assert_findings(&["no_nodes"]);
    }

    #[test]
    fn silent_connections_that_the_node_ends_itself_are_in_order() {
        let node = Node::standalone()
            .user("demo", "secret")
            .setting("idle_timeout", "2s")
            .setting("stall_timeout", "2s")
            .start();
        let diagnosis = DoctorRun::new(node.address).argument("--slow=4s").run();
        diagnosis.assert_findings(&["no_tls"]);
        assert!(diagnosis.to_string().contains("ends it with 421"), "{diagnosis}");
        assert!(diagnosis.to_string().contains("Transfer stalled"), "{diagnosis}");
    }
}

mod doors {
    use super::*;

    #[test]
    fn a_name_that_does_not_resolve() {
        let run = DoctorRun::new(([127, 0, 0, 1], 21).into()).host("no-such-host.invalid");
        run.run().assert_findings(&["name_unresolved"]);
    }

    #[test]
    fn nothing_listens_on_the_control_port() {
        let loopback = Loopback::reserve();
        DoctorRun::new(loopback.socket(1, 21)).run().assert_findings(&["port_refused"]);
    }

    #[test]
    fn implicit_tls_is_published_and_not_served() {
        let node = Node::standalone().user("demo", "secret").start();
        let diagnosis = DoctorRun::new(node.address).implicit_port(990).run();
        diagnosis.assert_findings(&["no_tls", "port_refused"]);
        assert!(diagnosis.text_of("port_refused").starts_with("implicit TLS "), "{diagnosis}");
    }

    #[test]
    fn the_balancer_reaches_no_node() {
        let mut cluster = Cluster::start();
        for position in 0..3 {
            cluster.node_mut(position).daemon.kill();
        }
        doctor(&cluster).run().assert_findings(&["closed_without_greeting"]);
    }

    #[test]
    fn the_node_waits_for_a_header_that_the_balancer_does_not_send() {
        let node = Node::standalone()
            .user("demo", "secret")
            .setting("trusted_balancers", "127.0.0.0/8")
            .setting("proxy_header_timeout", "60s")
            .start();
        DoctorRun::new(node.address).timeout("2s").run().assert_findings(&["no_greeting"]);
    }

    #[test]
    fn the_balancer_sends_a_header_to_nodes_that_do_not_trust_it() {
        let cluster = Cluster::builder()
            .doors(DoorKind::HaProxyWithHeader)
            .setting("trusted_balancers", "203.0.113.0/24")
            .start();
        let diagnosis = doctor(&cluster).run();
        diagnosis.assert_findings(&["header_not_trusted"]);
    }

    #[test]
    fn one_node_is_missing_in_the_balancer() {
        let cluster = Cluster::builder().nodes(2).leased().start();
        let builder = cluster.node(0).builder();
        let (address, admin) = (builder.loopback().address(77), builder.loopback().socket(77, 9121));
        let forgotten = builder.listen(address);
        let forgotten = forgotten.setting("node_name", "ftp9").setting("node_address", address);
        let _forgotten = forgotten.setting("admin_listen", admin).start();
        let diagnosis = doctor(&cluster).run();
        diagnosis.assert_findings(&["no_tls", "node_not_reached"]);
        assert!(diagnosis.text_of("node_not_reached").starts_with("node ftp9: "), "{diagnosis}");
    }
}

mod certificates {
    use super::*;

    #[test]
    fn an_expired_certificate() {
        let authority = Authority::new();
        let diagnosis = with_certificate(&authority, &dated(&authority, -30, -2));
        diagnosis.assert_findings(&["certificate_expired"]);
    }

    #[test]
    fn a_certificate_that_expires_soon() {
        let authority = Authority::new();
        let diagnosis = with_certificate(&authority, &dated(&authority, -30, 5));
        diagnosis.assert_findings(&["certificate_expires_soon"]);
    }

    #[test]
    fn a_certificate_of_another_name() {
        let authority = Authority::new();
        let diagnosis = with_certificate(&authority, &authority.sign("ftp.example.com"));
        diagnosis.assert_findings(&["certificate_wrong_name"]);
        assert!(diagnosis.to_string().contains("ftp.example.com"), "{diagnosis}");
    }

    #[test]
    fn a_certificate_of_an_unknown_authority() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let diagnosis = with_certificate(&authority, &stranger.sign("localhost"));
        diagnosis.assert_findings(&["certificate_untrusted"]);
    }

    #[test]
    fn one_node_has_another_certificate() {
        let authority = Authority::new();
        let files = authority.sign("localhost");
        let mut cluster = Cluster::builder().certificate(&files).start();
        // It is written over the first one's files, which the other nodes read at most once an hour.
        let other = Authority::new();
        let other_files = other.sign("localhost");
        replace_third(&mut cluster, |node| {
            node.setting("tls_certificates", other_files.chain.display())
                .setting("tls_keys", other_files.key.display())
        });
        let diagnosis = doctor(&cluster).authority(&authority.file()).argument("--insecure").run();
        assert!(diagnosis.findings().contains(&"certificates_differ"), "{diagnosis}");
    }

    #[test]
    fn one_node_has_no_certificate() {
        let authority = Authority::new();
        let mut cluster = Cluster::builder().certificate(&authority.sign("localhost")).start();
        replace_third(&mut cluster, |node| {
            node.without("tls_certificates").without("tls_keys").without("implicit_tls_port")
        });
        let diagnosis = doctor(&cluster).authority(&authority.file()).run();
        assert!(diagnosis.findings().contains(&"no_tls"), "{diagnosis}");
        assert!(diagnosis.to_string().contains("offers no TLS"), "{diagnosis}");
    }
}

mod logins {
    use super::*;

    #[test]
    fn a_wrong_user() {
        let cluster = Cluster::start();
        doctor(&cluster).user("nosuchuser").run().assert_findings(&["login_refused", "no_tls"]);
    }

    #[test]
    fn authd_is_away() {
        let mut cluster = Cluster::start();
        let run = doctor(&cluster);
        cluster.kill_authd();
        run.run().assert_findings(&["authd_unreachable", "login_unavailable", "no_tls"]);
    }

    #[test]
    fn a_wrong_token_of_the_administrator() {
        let cluster = Cluster::start();
        doctor(&cluster).token("wrong").run().assert_findings(&["no_tls", "token_refused"]);
    }

    #[test]
    fn redis_is_away() {
        let mut cluster = Cluster::start();
        cluster.kill_redis();
        let diagnosis = doctor(&cluster).run();
        assert!(diagnosis.findings().contains(&"redis_away"), "{diagnosis}");
    }

    #[test]
    fn one_node_asks_an_authd_that_does_not_exist() {
        let mut cluster = Cluster::start();
        let nowhere = format!("http://{}", cluster.client_address(90));
        replace_third(&mut cluster, |node| node.setting("authd_urls", format!("{nowhere}:5160")));
        let diagnosis = cluster_tests::eventually("the node to publish its failure", || {
            let diagnosis = doctor(&cluster).run();
            diagnosis.findings().contains(&"dependency_failing").then_some(diagnosis)
        });
        assert!(diagnosis.text_of("dependency_failing").starts_with("node ftp3: authd"), "{diagnosis}");
    }

    #[test]
    fn the_balancer_hides_the_address_of_the_client() {
        let cluster = Cluster::builder().doors(DoorKind::HaProxy).start();
        let diagnosis = doctor(&cluster).run();
        assert!(diagnosis.findings().contains(&"client_address_hidden"), "{diagnosis}");
    }
}

mod transfers {
    use super::*;

    #[test]
    fn pasv_names_an_address_that_clients_do_not_reach() {
        let cluster = Cluster::builder().setting("external_address", "10.9.8.7").start();
        let diagnosis = doctor(&cluster).run();
        diagnosis.assert_findings(&["no_tls", "passive_address_wrong"]);
        assert!(diagnosis.text_of("passive_address_wrong").contains("names 10.9.8.7, a private address"));
    }

    #[test]
    fn the_relay_for_data_connections_does_not_run() {
        let cluster = Cluster::start();
        cluster.relay().daemon.terminate();
        cluster_tests::eventually("the relay to end", || {
            TcpStream::connect((cluster.address().ip(), 20000)).is_err().then_some(())
        });
        doctor(&cluster).run().assert_findings(&["no_tls", "passive_port_refused"]);
    }

    #[test]
    fn nginx_carries_data_and_turns_resets_into_ends() {
        let cluster = Cluster::builder().doors(DoorKind::Nginx).setting("nginx_data_path", true).start();
        doctor(&cluster).run().assert_findings(&["no_tls", "reset_confirmed"]);
    }

    #[test]
    fn one_node_has_another_storage() {
        let mut cluster = Cluster::start();
        let other = tempfile::tempdir().unwrap();
        replace_third(&mut cluster, |node| node.storage(other));
        let diagnosis = doctor(&cluster).run();
        diagnosis.assert_findings(&["no_tls", "storage_differs"]);
        assert!(diagnosis.text_of("storage_differs").starts_with("storage of ftp3"), "{diagnosis}");
    }

    #[test]
    fn the_user_may_not_write() {
        let cluster =
            Cluster::builder().users(&users("permissions = { upload = false, mkdir = false }")).start();
        doctor(&cluster).run().assert_findings(&["no_tls", "not_writable"]);
    }

    #[test]
    fn the_quota_is_used_up() {
        let cluster = Cluster::builder().users(&users("quota = { bytes = 100 }")).start();
        let diagnosis = doctor(&cluster).run();
        diagnosis.assert_findings(&["no_tls", "quota_used_up"]);
    }
}

mod silence {
    use super::*;

    /// Carries connections to a server and closes those that are silent for a while, until it is dropped.
    struct Carrier {
        address: SocketAddr,
        is_over: Arc<AtomicBool>,
        thread: Option<thread::JoinHandle<()>>,
    }

    impl Carrier {
        fn start(address: SocketAddr, server: SocketAddr, limit: Duration) -> Self {
            let listener = TcpListener::bind(address).unwrap();
            let is_over = Arc::<AtomicBool>::default();
            let end = Arc::clone(&is_over);
            let thread = thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    let server = TcpStream::connect(server).unwrap();
                    // Both directions of a dialogue are silent together.
                    client.set_read_timeout(Some(limit)).unwrap();
                    let copies = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    thread::spawn(move || forward(copies.0, copies.1));
                    thread::spawn(move || forward(server, client));
                }
            });
            Self { address, is_over, thread: Some(thread) }
        }
    }

    impl Drop for Carrier {
        fn drop(&mut self) {
            self.is_over.store(true, Ordering::Relaxed);
            // Wakes the thread; when it has ended, the address is free.
            if let (Ok(_), Some(thread)) = (TcpStream::connect(self.address), self.thread.take()) {
                let _ = thread.join();
            }
        }
    }

    fn forward(mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    #[test]
    fn a_part_in_between_cuts_silent_control_connections() {
        let node = Node::standalone().user("demo", "secret").start();
        let door = SocketAddr::new(node.address.ip(), 2121);
        let _carrier = Carrier::start(door, node.address, Duration::from_millis(1500));
        let diagnosis = DoctorRun::new(door).argument("--slow=4s").run();
        assert!(diagnosis.findings().contains(&"silent_control_cut"), "{diagnosis}");
        assert!(!diagnosis.findings().contains(&"silent_control_dropped"), "{diagnosis}");
    }
}
