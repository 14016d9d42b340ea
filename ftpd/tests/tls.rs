//! FTPS of a single node: handshakes, certificates, tickets, and proofs of data connections.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
};

use cluster_tests::{
    content::{bytes, sha256},
    dialogue::Dialogue,
    eventually,
    node::{Node, NodeBuilder},
    proxy::Connector,
    tls::{Authority, CertificateFiles, SecureDialogue, cut, end, hang_up},
};
use nix::sys::signal::Signal;
use rustls::version::{TLS12, TLS13};

fn node(certificate: &CertificateFiles) -> NodeBuilder {
    Node::standalone()
        .user("u", "p")
        .setting("tls_certificates", certificate.chain.display())
        .setting("tls_keys", certificate.key.display())
}

fn session(authority: &Authority, node: &Node) -> SecureDialogue {
    let mut session = SecureDialogue::explicit(&authority.client(), node.address);
    session.login("u", "p");
    session
}

#[test]
fn files_are_uploaded_and_downloaded_over_every_tls_version() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    for version in [&TLS12, &TLS13] {
        let mut session = SecureDialogue::explicit(&authority.client_of(version), node.address);
        session.login("u", "p");
        for size in [0, 1, 16_384, 3_000_001] {
            let content = bytes(size as u64, size);
            session.transmit("STOR file", &content);
            assert_eq!(sha256(session.receive("RETR file")), sha256(&content), "{size} bytes");
        }
        assert!(String::from_utf8_lossy(&session.receive("MLSD")).contains(" file\r\n"));
        session.command("TYPE A", 200);
        session.transmit("STOR text", b"a\r\nb\r\n");
        assert_eq!(fs::read(node.root().join("text")).unwrap(), b"a\nb\n");
        assert_eq!(session.receive("RETR text"), b"a\r\nb\r\n");
        let status = session.command("STAT", 211).text();
        assert!(status.contains("TLSv1.") && status.contains("data connections encrypted"), "{status}");
    }
}

/// On a kernel without kTLS both nodes encrypt downloads themselves.
#[test]
fn downloads_encrypted_by_the_kernel_and_by_the_node_have_the_same_content() {
    let authority = Authority::new();
    for choice in ["auto", "off"] {
        let node = node(&authority.sign("localhost")).setting("kernel_tls", choice).start();
        let by_kernel = node.daemon.lines().iter().any(|line| line.contains("encrypted by the kernel"));
        assert!(choice == "auto" || !by_kernel);
        let content = bytes(11, 5_000_003);
        fs::write(node.root().join("large"), &content).unwrap();
        fs::write(node.root().join("small"), &content[..1000]).unwrap();
        for version in [&TLS12, &TLS13] {
            let mut session = SecureDialogue::explicit(&authority.client_of(version), node.address);
            session.login("u", "p");
            assert_eq!(sha256(session.receive("RETR large")), sha256(&content));
            session.command("REST 3000000", 350);
            assert_eq!(sha256(session.receive("RETR large")), sha256(&content[3_000_000..]));
            assert_eq!(session.receive("RETR small"), &content[..1000]);
        }
        let count = |path: &str| node.metric(&format!("ftp_tls_downloads_total{{path=\"{path}\"}}"));
        let (kernel, records) = if by_kernel { (Some(4.0), 2.0) } else { (None, 6.0) };
        assert_eq!((count("kernel"), count("records")), (kernel, Some(records)));
    }
}

/// RFC 8446 section 4.6.3.
#[test]
fn a_client_may_update_its_key_during_a_transfer() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let mut session = SecureDialogue::explicit(&authority.client_of(&TLS13), node.address);
    session.login("u", "p");
    let content = bytes(12, 3_000_000);
    let mut data = session.begin("STOR file");
    for piece in content.chunks(1_000_000) {
        data.write_all(piece).unwrap();
        data.conn.refresh_traffic_keys().unwrap();
    }
    end(data);
    session.expect(226);
    let mut data = session.begin("RETR file");
    data.conn.refresh_traffic_keys().unwrap();
    data.flush().unwrap();
    let mut received = Vec::new();
    data.read_to_end(&mut received).unwrap();
    session.expect(226);
    assert_eq!(sha256(received), sha256(&content));
}

#[test]
fn a_forged_record_ends_an_upload_with_426_and_keeps_the_data_before_it() {
    let authority = Authority::new();
    for setting in ["true", "false"] {
        // Even if close_notify is not required, an upload that ends within a record is incomplete.
        let node = node(&authority.sign("localhost")).setting("tls_close_notify", setting).start();
        let content = bytes(13, 100_000);
        for (version, junk) in [
            (&TLS12, &b"junk"[..]),
            (&TLS13, b"junk"),
            (&TLS12, b"\x17\x03\x03\x10\0ab"),
            (&TLS13, b"\x17\x03\x03\x10\0ab"),
        ] {
            let mut session = SecureDialogue::explicit(&authority.client_of(version), node.address);
            session.login("u", "p");
            let mut data = session.begin("STOR file");
            data.write_all(&content).unwrap();
            data.flush().unwrap();
            data.sock.write_all(junk).unwrap();
            data.sock.shutdown(std::net::Shutdown::Write).unwrap();
            session.expect(426);
            assert_eq!(sha256(fs::read(node.root().join("file")).unwrap()), sha256(&content));
        }
    }
}

#[test]
fn implicit_ftps_starts_with_tls_and_private_data_connections() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost"));
    let port = node.loopback().ports().end() - 1;
    let node = node.setting("passive_port_max", port - 1).setting("implicit_tls_port", port).start();
    let mut session = SecureDialogue::implicit(&authority.client(), (node.address.ip(), port).into());
    session.command("USER u", 331);
    session.command("PASS p", 230);
    session.command("TYPE I", 200);
    session.transmit("STOR file", b"content");
    assert_eq!(session.receive("RETR file"), b"content");
    session.command("AUTH TLS", 503);
}

#[test]
fn tickets_suffice_for_many_transfers_and_each_transfer_proves_its_session() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).setting("tls_data_reuse", "required").start();
    for version in [&TLS12, &TLS13] {
        let mut session = SecureDialogue::explicit(&authority.client_of(version), node.address);
        session.login("u", "p");
        for i in 0..30 {
            session.transmit("STOR file", &bytes(i, 1000));
        }
    }
    assert_eq!(node.metric("ftp_data_tls_sessions_total{resumed=\"yes\"}"), Some(60.0));
    assert_eq!(node.metric("ftp_data_tls_sessions_total{resumed=\"no\"}"), None);
}

/// PASV theft from the same address: CVE-1999-0351.
#[test]
fn with_required_reuse_a_data_connection_without_proof_of_its_session_is_refused() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).setting("tls_data_reuse", "required").start();
    let mut victim = session(&authority, &node);
    victim.transmit("STOR secret", b"secret");
    let thief = session(&authority, &node);
    let own = victim.client.clone();
    for client in [own.forgetful(), thief.client.clone()] {
        let data = victim.begin_clear("RETR secret");
        victim.expect(150);
        if let Ok(mut stream) = client.encrypt(data) {
            let mut stolen = Vec::new();
            let _ = stream.read_to_end(&mut stolen);
            assert!(stolen.is_empty());
        }
        victim.expect(522);
    }
    assert_eq!(victim.receive("RETR secret"), b"secret");
}

/// The refused connection arrived at the victim's port. A ticket sent on it would prove the victim's session
/// on the next data connection.
#[test]
fn a_refused_data_connection_gets_no_ticket_that_proves_the_session() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).setting("tls_data_reuse", "required").start();
    for version in [&TLS12, &TLS13] {
        let mut victim = SecureDialogue::explicit(&authority.client_of(version), node.address);
        victim.login("u", "p");
        victim.transmit("STOR secret", b"secret");
        let thief = authority.client_of(version);
        for _ in 0..3 {
            let data = victim.begin_clear("RETR secret");
            victim.expect(150);
            if let Ok(mut stream) = thief.encrypt(data) {
                let mut stolen = Vec::new();
                let _ = stream.read_to_end(&mut stolen);
                assert!(stolen.is_empty(), "{version:?}");
            }
            victim.expect(522);
        }
        assert_eq!(victim.receive("RETR secret"), b"secret");
    }
}

#[test]
fn with_preferred_reuse_a_client_that_does_not_resume_is_served_and_counted() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let mut session = SecureDialogue::explicit(&authority.client().forgetful(), node.address);
    session.login("u", "p");
    session.transmit("STOR file", b"content");
    assert_eq!(node.metric("ftp_data_tls_sessions_total{resumed=\"no\"}"), Some(1.0));
}

#[test]
fn with_preferred_reuse_a_tls_1_2_session_that_has_resumed_must_always_resume() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    for version in [&TLS12, &TLS13] {
        let mut session = SecureDialogue::explicit(&authority.client_of(version), node.address);
        session.login("u", "p");
        session.transmit("STOR file", b"content");
        let data = session.begin_clear("RETR file");
        session.expect(150);
        // The stranger's own client may use another TLS version.
        let stranger = authority.client().encrypt(data);
        if version.version == TLS12.version {
            let mut stolen = Vec::new();
            let _ = stranger.map(|mut stream| stream.read_to_end(&mut stolen));
            assert!(stolen.is_empty());
            session.expect(522);
        } else {
            stranger.unwrap().read_to_end(&mut Vec::new()).unwrap();
            session.expect(226);
        }
        assert_eq!(session.receive("RETR file"), b"content");
    }
}

#[test]
fn a_returning_client_resumes_its_tls_session() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let client = authority.client();
    let mut first = SecureDialogue::explicit(&client, node.address);
    first.command("NOOP", 200);
    assert!(!first.is_resumed());
    assert!(SecureDialogue::explicit(&client, node.address).is_resumed());
}

#[test]
fn with_required_tls_no_password_is_accepted_in_the_clear() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).setting("tls", "required").start();
    let mut clear = Dialogue::connect(node.address);
    assert!(clear.command("USER u", 530).text().contains("AUTH TLS"));
    clear.command("PASS p", 503);
    session(&authority, &node).transmit("STOR file", b"content");
}

#[test]
fn with_required_data_protection_clear_transfers_are_refused() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).setting("tls_data", "required").start();
    let mut session = SecureDialogue::explicit(&authority.client(), node.address);
    session.command("USER u", 331);
    session.command("PASS p", 230);
    session.epsv();
    session.command("LIST", 521);
    session.command("PBSZ 0", 200);
    session.command("PROT C", 534);
    session.command("PROT P", 200);
    session.receive("LIST");
}

#[test]
fn security_commands_out_of_order_or_with_bad_arguments_are_refused() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let mut clear = Dialogue::connect(node.address);
    let features = clear.command("FEAT", 211).details();
    for line in ["AUTH TLS", "PBSZ", "PROT"] {
        assert!(features.iter().any(|feature| feature == line), "{features:?}");
    }
    clear.command("PBSZ 0", 503);
    clear.command("PROT P", 503);
    clear.command("AUTH KERBEROS_V4", 504);
    clear.command("AUTH", 501);
    for mechanism in ["TLS", "TLS-C", "SSL", "tls", "TLS-P", "TLS "] {
        Dialogue::connect(node.address).command(&format!("AUTH {mechanism}"), 234);
    }
    let mut session = session(&authority, &node);
    session.command("AUTH TLS", 503);
    session.command("CCC", 534);
    session.command("PROT S", 536);
    session.command("PROT E", 536);
    session.command("PROT X", 504);
    session.command("PROT C", 200);
    let mut data = session.begin_clear("STOR clear");
    session.expect(150);
    data.write_all(b"in the clear").unwrap();
    drop(data);
    session.expect(226);
}

#[test]
fn without_a_certificate_tls_is_not_offered() {
    let node = Node::standalone().user("u", "p").start();
    let mut clear = Dialogue::connect(node.address);
    assert!(!clear.command("FEAT", 211).text().contains("AUTH"));
    clear.command("AUTH TLS", 502);
}

/// Plain text before TLS: CVE-2011-1575, CVE-2011-0411, ProFTPD bug 3624.
#[test]
fn commands_and_logins_before_auth_tls_have_no_effect_after_it() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let mut clear = Dialogue::connect(node.address);
    clear.command("USER u", 331);
    clear.send_bytes(b"AUTH TLS\r\nPASS p\r\nMKD injected\r\n");
    clear.expect(234);
    let control = clear.control().try_clone().unwrap();
    let mut session = SecureDialogue::over(&authority.client(), &Connector::new(), control);
    session.command("SYST", 215);
    session.command("PASS p", 503);
    session.login("u", "p");
    assert!(!node.root().join("injected").exists());
    // AUTH also ends a login that was made in the clear.
    let mut clear = node.login("u", "p");
    clear.command("AUTH TLS", 234);
    let control = clear.control().try_clone().unwrap();
    let mut session = SecureDialogue::over(&authority.client(), &Connector::new(), control);
    session.command("PWD", 530);
}

/// Truncation by an attacker on the network.
#[test]
fn an_upload_without_close_notify_gets_426_and_can_be_resumed() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let content = bytes(5, 1 << 20);
    for version in [&TLS12, &TLS13] {
        let mut session = SecureDialogue::explicit(&authority.client_of(version), node.address);
        session.login("u", "p");
        let mut data = session.begin("STOR file");
        data.write_all(&content[..1 << 19]).unwrap();
        cut(data);
        session.expect(426);
        let arrived: usize = session.command("SIZE file", 213).message().parse().unwrap();
        assert!(arrived <= 1 << 19);
        session.command(&format!("REST {arrived}"), 350);
        session.transmit("STOR file", &content[arrived..]);
        assert_eq!(sha256(session.receive("RETR file")), sha256(&content));
    }
}

/// If the node sent such a client anything before the upload is complete, the client's kernel would reset the
/// connection and lose data that it has not sent yet.
#[test]
fn an_upload_is_complete_if_the_client_reads_nothing_and_closes_at_once() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let content = bytes(21, 3 << 20);
    for version in [&TLS12, &TLS13] {
        let mut session = SecureDialogue::explicit(&authority.client_of(version), node.address);
        session.login("u", "p");
        for _ in 0..3 {
            let mut data = session.begin("STOR file");
            data.write_all(&content).unwrap();
            hang_up(data);
            session.expect(226);
            assert_eq!(sha256(fs::read(node.root().join("file")).unwrap()), sha256(&content));
        }
    }
}

#[test]
fn a_setting_allows_clients_that_never_send_close_notify() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).setting("tls_close_notify", "false").start();
    let mut session = session(&authority, &node);
    let mut data = session.begin("STOR file");
    data.write_all(b"content").unwrap();
    cut(data);
    session.expect(226);
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"content");
}

/// ALPACA, CVE-2021-3618.
#[test]
fn alpn_refuses_clients_of_other_protocols() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let handshake = |protocols: &[&str]| {
        let mut clear = Dialogue::connect(node.address);
        clear.command("AUTH TLS", 234);
        let client = authority.client().protocols(protocols);
        client.encrypt(clear.control().try_clone().unwrap()).is_ok()
    };
    assert!(handshake(&[]));
    assert!(handshake(&["ftp"]));
    assert!(handshake(&["h2", "ftp"]));
    assert!(!handshake(&["http/1.1"]));
}

#[test]
fn a_renewed_certificate_is_used_without_ending_sessions() {
    let authority = Authority::new();
    let files = authority.sign("localhost");
    let node = node(&files).start();
    let mut before = session(&authority, &node);
    authority.sign("localhost");
    node.daemon.signal(Signal::SIGHUP);
    let shown = || SecureDialogue::explicit(&authority.client(), node.address).certificate();
    let renewed = eventually("the new certificate to be used", || {
        Some(shown()).filter(|certificate| *certificate != before.certificate())
    });
    before.transmit("STOR file", b"content");
    // A key that does not match the certificate is only logged.
    fs::copy(authority.sign("elsewhere").key, &files.key).unwrap();
    node.daemon.signal(Signal::SIGHUP);
    node.daemon.wait_for_line(|line| line.contains("could not reload the certificates"));
    assert_eq!(shown(), renewed);
}

#[test]
fn a_changed_certificate_is_loaded_without_a_signal() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let shown = || SecureDialogue::explicit(&authority.client(), node.address).certificate();
    let before = shown();
    authority.sign("localhost");
    eventually("the new certificate to be used", || (shown() != before).then_some(()));
}

#[test]
fn the_certificate_matches_the_requested_server_name() {
    let authority = Authority::new();
    let hosts = ["localhost", "ftp.example.com", "ftp.example.org"];
    let files = hosts.map(|host| authority.sign(host));
    let list = |path: fn(&CertificateFiles) -> &Path| {
        files.iter().map(|files| path(files).display().to_string()).collect::<Vec<_>>().join(",")
    };
    let node = Node::standalone()
        .user("u", "p")
        .setting("tls_certificates", list(|files| &files.chain))
        .setting("tls_keys", list(|files| &files.key))
        .start();
    // Each handshake verifies the name.
    let shown = hosts
        .map(|host| SecureDialogue::explicit(&authority.client().host(host), node.address).certificate());
    assert!(shown[0] != shown[1] && shown[1] != shown[2] && shown[0] != shown[2]);
}

#[test]
fn an_rsa_key_is_supported() {
    let authority = Authority::new();
    let files = authority.sign_with("localhost", &rcgen::PKCS_RSA_SHA256, |_| {});
    let node = node(&files).start();
    session(&authority, &node).transmit("STOR file", b"content");
}

#[test]
fn with_an_unusable_certificate_the_node_does_not_start_and_names_the_file() {
    let authority = Authority::new();
    let right = authority.sign("localhost");
    let other = authority.sign("elsewhere");
    let missing = CertificateFiles { chain: "/nowhere.pem".into(), key: right.key.clone() };
    let no_key = CertificateFiles { chain: right.chain.clone(), key: right.chain.clone() };
    let mismatch = CertificateFiles { chain: right.chain.clone(), key: other.key.clone() };
    for (files, names) in [
        (missing, vec!["/nowhere.pem".to_owned()]),
        (no_key, vec![right.chain.display().to_string()]),
        (mismatch, vec![right.chain.display().to_string(), other.key.display().to_string()]),
    ] {
        let mut node = node(&files).spawn();
        assert!(!node.daemon.wait().success());
        let log = node.daemon.lines().join("\n");
        assert!(names.iter().all(|name| log.contains(name.as_str())), "{names:?} in {log}");
    }
}

#[test]
fn an_expired_certificate_is_logged() {
    let authority = Authority::new();
    let files = authority.sign_with("localhost", &rcgen::PKCS_ECDSA_P256_SHA256, |parameters| {
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let node = node(&files).start();
    node.daemon.wait_for_line(|line| line.contains("has expired") && line.contains("localhost.pem"));
}

#[test]
fn abor_ends_an_encrypted_transfer() {
    let authority = Authority::new();
    let node = node(&authority.sign("localhost")).start();
    let mut session = session(&authority, &node);
    fs::write(node.root().join("large"), vec![7; 64 << 20]).unwrap();
    let data = session.begin("RETR large");
    session.command("ABOR", 426);
    session.expect(226);
    drop(data);
    let data = session.begin("STOR upload");
    session.command("NOOP", 200);
    session.command("ABOR", 426);
    session.expect(226);
    end(data);
    session.command("NOOP", 200);
}
