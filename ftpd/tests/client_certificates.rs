//! Client certificates: the fields sent to authd, and the refusal of TLS resumptions after a certificate has
//! expired, was revoked, or lost its authority.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
};

use cluster_tests::{
    eventually,
    node::{Node, NodeBuilder},
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
    tls::{Authority, CertificateFiles, SecureDialogue, TlsClient, TlsStream},
};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, DnType, DnValue, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::{
    SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A node that verifies certificates of `authority`, and a stub authd that accepts every login with a
/// certificate.
struct Setup {
    authority: Authority,
    /// The file of `tls_client_ca`, initially a copy of the authority's certificate.
    trusted: PathBuf,
    authd: StubAuthd,
    node: Node,
    _redis: Redis,
    _directory: tempfile::TempDir,
}

impl Setup {
    fn start(configure: impl FnOnce(&Authority, NodeBuilder) -> NodeBuilder) -> Self {
        let authority = Authority::new();
        let server = authority.sign("localhost");
        let directory = tempfile::tempdir().unwrap();
        let trusted = directory.path().join("clients.pem");
        fs::copy(authority.file(), &trusted).unwrap();
        let authd = StubAuthd::start(|request| match &request["client_certificate"] {
            Value::Null => Answer::refusal("403 Forbidden", "invalid_credentials"),
            _ => Answer::account(&json!({ "user": request["user"], "home": "/" })),
        });
        let builder = Node::standalone().in_cluster();
        let redis = Redis::start(builder.loopback().socket(1, 6379));
        let builder = builder
            .setting("authd_urls", authd.url())
            .setting("redis_url", redis.address)
            .setting("tls_certificates", server.chain.display())
            .setting("tls_keys", server.key.display())
            .setting("tls_client_ca", trusted.display())
            .setting("tls_data_reuse", "required");
        let node = configure(&authority, builder).start();
        Self { authority, trusted, authd, node, _redis: redis, _directory: directory }
    }

    fn client(&self, version: &'static SupportedProtocolVersion, files: &CertificateFiles) -> TlsClient {
        self.authority.client_of_with(version, files)
    }

    /// A session that has logged in with its certificate and uploaded a file.
    fn logged_in(&self, client: &TlsClient) -> SecureDialogue {
        let mut session = SecureDialogue::explicit(client, self.node.address);
        session.login("anna", "");
        session.transmit("STOR file", b"content");
        session
    }

    /// Connects and logs in. Returns the reply code of PASS, and true if the TLS session was resumed.
    fn reconnect(&self, client: &TlsClient) -> (u16, bool) {
        let mut session = SecureDialogue::explicit(client, self.node.address);
        session.command("USER anna", 331);
        session.send("PASS x");
        (session.reply().code, session.is_resumed())
    }

    /// Returns true if the node refuses the certificate in a full handshake.
    fn refuses(&self, client: &TlsClient) -> bool {
        let mut clear = self.node.connect();
        clear.command("AUTH TLS", 234);
        let handshake = client.forgetful().encrypt(clear.control().try_clone().unwrap());
        // With TLS 1.3 the client sees the refusal only when it reads.
        let refused = |error: io::Error| error.kind() == io::ErrorKind::InvalidData;
        let answer = |mut stream: TlsStream| {
            stream.write_all(b"NOOP\r\n")?;
            stream.read_exact(&mut [0])
        };
        handshake.and_then(answer).is_err_and(refused)
    }

    fn reload(&self) {
        let before = self.reloads();
        self.node.daemon.signal(Signal::SIGHUP);
        eventually("certificates to be reloaded", || (self.reloads() > before).then_some(()));
    }

    fn reloads(&self) -> usize {
        self.node.daemon.lines().iter().filter(|line| line.contains("reloaded the certificates")).count()
    }
}

const RESUMED: (u16, bool) = (230, true);
const REFUSED: (u16, bool) = (530, false);

fn with_serial(authority: &Authority, name: &str, serial: u64) -> CertificateFiles {
    authority.sign_with(name, &PKCS_ECDSA_P256_SHA256, |parameters| {
        parameters.serial_number = Some(serial.into());
    })
}

#[test]
fn authd_gets_subject_key_and_names_and_different_subjects_stay_different() {
    let setup = Setup::start(|_, builder| builder);
    let sent = |change: &dyn Fn(&mut CertificateParams)| {
        let files = setup.authority.sign_with("client", &PKCS_ECDSA_P256_SHA256, |parameters| {
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            change(parameters);
        });
        let (_, resumed) = setup.reconnect(&setup.authority.client_with(&files));
        assert!(!resumed);
        setup.authd.requests().last().unwrap()["client_certificate"].clone()
    };
    let two = sent(&|parameters| {
        parameters.distinguished_name.push(DnType::OrganizationName, "Acme");
        parameters.distinguished_name.push(DnType::CommonName, "scanner");
        parameters.subject_alt_names.push(SanType::Rfc822Name("ann@example.com".try_into().unwrap()));
    });
    assert_eq!(two["subject"], "CN=scanner,O=Acme");
    assert_eq!(two["names"], json!(["DNS:client", "email:ann@example.com"]));
    assert!(two["key"].as_str().unwrap().starts_with("sha256:"), "{two}");
    let one = sent(&|parameters| {
        parameters.distinguished_name.push(DnType::OrganizationName, "Acme, CN=scanner");
    });
    assert_eq!(one["subject"], "O=Acme\\, CN=scanner");
    assert_ne!(one["key"], two["key"]);
    for value in ["a\0b", "a\nb"] {
        let none = sent(&|parameters| {
            let value = DnValue::Utf8String(value.to_owned());
            parameters.distinguished_name.push(DnType::CommonName, value);
        });
        assert_eq!(none["subject"], Value::Null);
        assert!(none["key"].is_string());
    }
}

#[test]
fn a_certificate_of_a_removed_authority_cannot_log_in_by_resumption() {
    let setup = Setup::start(|_, builder| builder);
    let own = fs::read(setup.authority.file()).unwrap();
    for version in VERSIONS {
        fs::write(&setup.trusted, &own).unwrap();
        setup.reload();
        let files = setup.authority.sign("scanner");
        let mut before = setup.logged_in(&setup.client(version, &files));
        let client = setup.client(version, &files);
        drop(setup.logged_in(&client));
        client.hide_certificate();
        // Resumed twice: the tickets of a resumed TLS session carry the certificate, too.
        assert_eq!([(); 2].map(|()| setup.reconnect(&client)), [RESUMED; 2], "{version:?}");
        fs::copy(Authority::new().file(), &setup.trusted).unwrap();
        setup.reload();
        assert_eq!(setup.reconnect(&client), REFUSED, "{version:?}");
        // A session that has logged in continues, including its data connections.
        before.transmit("STOR file", b"more");
        assert_eq!(before.receive("RETR file"), b"more");
    }
}

#[test]
fn an_additional_authority_does_not_prevent_resumptions() {
    let setup = Setup::start(|_, builder| builder);
    let client = setup.client(&TLS13, &setup.authority.sign("scanner"));
    drop(setup.logged_in(&client));
    client.hide_certificate();
    let both = [fs::read(Authority::new().file()).unwrap(), fs::read(setup.authority.file()).unwrap()];
    fs::write(&setup.trusted, both.concat()).unwrap();
    setup.reload();
    assert_eq!(setup.reconnect(&client), RESUMED);
}

#[test]
fn an_expired_certificate_cannot_log_in_by_resumption() {
    let setup = Setup::start(|_, builder| builder);
    for version in VERSIONS {
        let soon = OffsetDateTime::now_utc() + Duration::seconds(10);
        let files = setup.authority.sign_with("scanner", &PKCS_ECDSA_P256_SHA256, |parameters| {
            parameters.not_after = soon;
        });
        let client = setup.client(version, &files);
        drop(setup.logged_in(&client));
        client.hide_certificate();
        eventually("the certificate to expire", || {
            let reply = setup.reconnect(&client);
            assert!(reply == REFUSED || reply == RESUMED, "{reply:?}");
            (reply == REFUSED).then_some(())
        });
        assert!(OffsetDateTime::now_utc() >= soon - Duration::seconds(1), "{version:?}");
    }
}

#[test]
fn resumptions_end_at_the_maximum_age_and_sessions_continue() {
    let setup = Setup::start(|_, builder| builder.setting("tls_resumption_max_age", "3s"));
    for version in VERSIONS {
        let files = setup.authority.sign("scanner");
        let mut session = setup.logged_in(&setup.client(version, &files));
        let client = setup.client(version, &files);
        drop(setup.logged_in(&client));
        client.hide_certificate();
        eventually("the resumptions to end", || {
            let reply = setup.reconnect(&client);
            assert!(reply == REFUSED || reply == RESUMED, "{reply:?}");
            (reply == REFUSED).then_some(())
        });
        session.transmit("STOR file", b"more");
    }
}

#[test]
fn a_revoked_certificate_cannot_log_in_by_full_handshake_or_by_resumption() {
    let setup = Setup::start(|authority, builder| {
        builder.setting("tls_client_crls", authority.revoke(&[], 24).display())
    });
    for version in VERSIONS {
        setup.authority.revoke(&[], 24);
        setup.reload();
        let [revoked, other] = [(7, "revoked"), (8, "other")]
            .map(|(serial, name)| setup.client(version, &with_serial(&setup.authority, name, serial)));
        drop(setup.logged_in(&revoked));
        drop(setup.logged_in(&other));
        setup.authority.revoke(&[7], 24);
        setup.reload();
        assert!(setup.refuses(&revoked), "{version:?}");
        assert!(!setup.refuses(&other), "{version:?}");
        revoked.hide_certificate();
        other.hide_certificate();
        assert_eq!(setup.reconnect(&revoked), REFUSED, "{version:?}");
        assert_eq!(setup.reconnect(&other), RESUMED, "{version:?}");
    }
}

#[test]
fn with_an_expired_revocation_list_only_clients_with_certificates_are_refused() {
    let setup = Setup::start(|authority, builder| {
        builder.setting("tls_client_crls", authority.revoke(&[], 24).display())
    });
    let client = setup.client(&TLS13, &setup.authority.sign("scanner"));
    drop(setup.logged_in(&client));
    setup.authority.revoke(&[], -1);
    setup.reload();
    assert!(setup.refuses(&client));
    client.hide_certificate();
    assert_eq!(setup.reconnect(&client), REFUSED);
    setup.node.daemon.wait_for_line(|line| {
        line.contains("the revocation list has expired") && line.contains("tls_client_crls")
    });
    SecureDialogue::explicit(&setup.authority.client(), setup.node.address).command("NOOP", 200);
    let until = setup.node.metric("ftp_tls_crl_expiry_timestamp_seconds").unwrap();
    assert!(until < OffsetDateTime::now_utc().unix_timestamp() as f64);
}

#[test]
fn with_revocation_lists_an_authority_without_a_list_is_refused() {
    let other = Authority::new();
    let list = other.revoke(&[], 24);
    let setup = Setup::start(|_, builder| builder.setting("tls_client_crls", list.display()));
    assert!(setup.refuses(&setup.client(&TLS13, &setup.authority.sign("scanner"))));
}

#[test]
fn an_unusable_revocation_list_prevents_the_start_and_is_ignored_by_a_reload() {
    let setup = Setup::start(|authority, builder| {
        builder.setting("tls_client_crls", authority.revoke(&[7], 24).display())
    });
    let path = setup.authority.revoke(&[7], 24);
    fs::write(&path, "no list").unwrap();
    setup.node.daemon.signal(Signal::SIGHUP);
    setup.node.daemon.wait_for_line(|line| {
        line.contains("could not reload the certificates")
            && line.contains("crl.pem: the file contains no revocation list")
    });
    assert!(setup.refuses(&setup.client(&TLS13, &with_serial(&setup.authority, "revoked", 7))));
    let server = setup.authority.sign("localhost");
    for (settings, part) in [
        (vec![("tls_client_ca", setup.authority.file()), ("tls_client_crls", path.clone())], "crl.pem"),
        (vec![("tls_client_crls", path)], "tls_client_ca"),
    ] {
        let mut builder = Node::standalone()
            .user("u", "p")
            .setting("tls_certificates", server.chain.display())
            .setting("tls_keys", server.key.display());
        for (key, value) in settings {
            builder = builder.setting(key, value.display());
        }
        let mut node = builder.spawn();
        assert!(!node.daemon.wait().success());
        let log = node.daemon.lines().join("\n");
        assert!(log.contains(part), "{log}");
    }
}

/// A session cache in the node would not check certificate and age as tickets do.
#[test]
fn tls_1_2_sessions_are_resumed_only_by_tickets() {
    let setup = Setup::start(|_, builder| builder);
    let client = setup.client(&TLS12, &setup.authority.sign("scanner")).without_tickets();
    assert_eq!([(); 2].map(|()| setup.reconnect(&client)), [(230, false); 2]);
}
