//! FTPS on a whole cluster: real clients through nginx, and TLS sessions that clients resume on other
//! nodes.

use std::io::Write;

use cluster_tests::{
    clients::Clients,
    cluster::{Cluster, ClusterBuilder},
    content::{bytes, sha256},
    dialogue::Dialogue,
    tls::{Authority, SecureDialogue},
};

fn encrypted(authority: &Authority) -> ClusterBuilder {
    Cluster::builder().certificate(&authority.sign("localhost"))
}

/// Opens a session directly on a node, from the balancer's address.
fn session_on(cluster: &Cluster, node: usize, client: &cluster_tests::tls::TlsClient) -> SecureDialogue {
    let clear = Dialogue::connect_with(&cluster.as_balancer(), cluster.node(node).address);
    let mut session = SecureDialogue::upgrade(client, &cluster.as_balancer(), clear);
    session.login("demo", "x");
    session
}

#[test]
fn the_certificates_of_these_tests_pass_strict_verification() {
    let authority = Authority::new();
    let clients = Clients::with_home();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA256] {
        let files = authority.sign_with("localhost", algorithm, |_| {});
        let (root, certificate) = (authority.file(), files.chain);
        let strict =
            ["verify", "-x509_strict", "-verify_hostname", "localhost", "-CAfile"].map(AsRef::as_ref);
        clients.run("openssl", strict.into_iter().chain([root.as_os_str(), certificate.as_os_str()]));
    }
}

#[test]
fn a_tls_session_of_one_node_can_be_resumed_on_every_other_node() {
    let authority = Authority::new();
    let cluster = encrypted(&authority).start();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = authority.client_of(version);
        let mut first = session_on(&cluster, 0, &client);
        first.transmit("STOR file", b"content");
        assert!(!first.is_resumed());
        for node in [1, 2, 0] {
            let mut session = session_on(&cluster, node, &client);
            assert!(session.is_resumed(), "node {node}, {version:?}");
            assert_eq!(session.receive("RETR file"), b"content");
        }
    }
}

#[test]
fn a_ticket_of_a_session_on_another_node_does_not_open_a_data_connection() {
    let authority = Authority::new();
    let cluster = encrypted(&authority).setting("tls_data_reuse", "required").start();
    let thief = authority.client();
    session_on(&cluster, 0, &thief).receive("LIST");
    let mut victim = session_on(&cluster, 1, &authority.client());
    let mut data = victim.begin_clear("STOR file");
    victim.expect(150);
    if let Ok(mut stream) = thief.encrypt(data.try_clone().unwrap()) {
        let _ = stream.write_all(b"forged");
    }
    let _ = data.flush();
    victim.expect(522);
    assert!(!cluster.storage().join("demo/file").exists());
}

#[test]
fn explicit_and_implicit_ftps_work_through_the_balancer() {
    let authority = Authority::new();
    let cluster = encrypted(&authority).setting("tls_data_reuse", "required").start();
    let content = bytes(1, 3 << 20);
    let client = authority.client();
    for _ in 0..3 {
        let mut session = SecureDialogue::explicit(&client, cluster.address());
        session.login("demo", "x");
        session.transmit("STOR explicit", &content);
        let mut session = SecureDialogue::implicit(&client, cluster.implicit_address());
        session.login("demo", "x");
        assert_eq!(sha256(session.receive("RETR explicit")), sha256(&content));
        session.transmit("STOR implicit", &content);
        assert_eq!(sha256(session.receive("RETR implicit")), sha256(&content));
    }
}

#[test]
fn curl_lftp_and_python_encrypt_everything() {
    let authority = Authority::new();
    let cluster = encrypted(&authority).setting("tls", "required").setting("tls_data", "required").start();
    let clients = Clients::with_home();
    let content = bytes(2, 5 << 20);
    clients.write("file.bin", &content);
    let ca = authority.file().display().to_string();
    let stored = |name: &str| std::fs::read(cluster.storage().join("demo").join(name)).unwrap();

    let (explicit, implicit) = (cluster.address(), cluster.implicit_address());
    for (scheme, address, name) in [("ftp", explicit, "curl-explicit"), ("ftps", implicit, "curl-implicit")] {
        // The certificate is for localhost, but each test has its own loopback address.
        let connect = format!("localhost:{0}:{1}:{0}", address.port(), address.ip());
        let url = format!("{scheme}://demo:x@localhost:{}/{name}", address.port());
        let common = ["-sS", "--ssl-reqd", "--cacert", &ca, "--connect-to", &connect];
        clients.run("curl", common.into_iter().chain(["-T", "file.bin", &url]));
        assert_eq!(sha256(stored(name)), sha256(&content), "{name}");
        clients.run("curl", common.into_iter().chain(["-o", "back.bin", &url]));
        assert_eq!(sha256(clients.read("back.bin")), sha256(&content), "{name}");
    }

    let lftp = |url: &str, name: &str| {
        let script = format!(
            "set ssl:ca-file {ca}; set ssl:check-hostname false; set ftp:ssl-force true; \
             set ftp:ssl-protect-data true; set net:max-retries 2; set cmd:fail-exit true; \
             set xfer:clobber true; open {url}; put file.bin -o {name}; get {name} -o back.bin; \
             mkdir tree-{name}; put -O tree-{name} file.bin; mirror tree-{name} tree-{name}"
        );
        clients.run("lftp", ["--norc", "-c", &script]);
        assert_eq!(sha256(stored(name)), sha256(&content), "{name}");
        assert_eq!(sha256(clients.read("back.bin")), sha256(&content), "{name}");
        assert_eq!(sha256(clients.read(&format!("tree-{name}/file.bin"))), sha256(&content), "{name}");
    };
    lftp(&format!("ftp://demo:x@{explicit}/"), "lftp-explicit");
    lftp(&format!("ftps://demo:x@{implicit}/"), "lftp-implicit");
    // lftp sends an IP address as the TLS server name, which RFC 6066 section 3 forbids but many clients
    // do. The nodes must not log it.
    for node in 0..cluster.size() {
        let lines = cluster.node(node).daemon.lines();
        assert!(!lines.iter().any(|line| line.contains("rustls")), "{lines:#?}");
    }

    let program = format!(
        "import ftplib, ssl\n\
         context = ssl.create_default_context(cafile={ca:?})\n\
         context.verify_flags |= ssl.VERIFY_X509_STRICT\n\
         context.check_hostname = False\n\
         ftp = ftplib.FTP_TLS(context=context, timeout=30)\n\
         ftp.connect({:?}, {})\n\
         ftp.login('demo', 'x')\n\
         ftp.prot_p()\n\
         print(ftp.storbinary('STOR python', open('file.bin', 'rb')))\n\
         with open('back.bin', 'wb') as back:\n    ftp.retrbinary('RETR python', back.write)\n\
         assert 'python' in ftp.nlst()\n\
         assert any(name == 'python' for name, facts in ftp.mlsd())\n\
         ftp.quit()\n",
        explicit.ip().to_string(),
        explicit.port()
    );
    let output = clients.run("python3", ["-c", &program]).text();
    assert!(output.contains("226"), "{output}");
    assert_eq!(sha256(stored("python")), sha256(&content));
    assert_eq!(sha256(clients.read("back.bin")), sha256(&content));

    let refused = clients.attempt("curl", ["-sS", "-T", "file.bin", &cluster.url("demo", "/clear")]);
    assert!(!refused.succeeded);
}

/// Like FileZilla: many sessions at the same time, whose data
/// connections resume the TLS session of their control connection.
#[test]
fn twenty_simultaneous_sessions_each_resume_their_own_tls_session() {
    let authority = Authority::new();
    let cluster = encrypted(&authority).setting("tls_data_reuse", "required").start();
    std::thread::scope(|scope| {
        for i in 0..20 {
            let (authority, cluster) = (&authority, &cluster);
            scope.spawn(move || {
                let content = bytes(i, 300_000);
                let mut session = SecureDialogue::explicit(&authority.client(), cluster.address());
                session.login("demo", "x");
                for round in 0..3 {
                    session.transmit(&format!("STOR file-{i}-{round}"), &content);
                    assert_eq!(sha256(session.receive(&format!("RETR file-{i}-{round}"))), sha256(&content));
                    session.command(&format!("REST {}", 100_000), 350);
                    let rest = session.receive(&format!("RETR file-{i}-{round}"));
                    assert_eq!(rest, &content[100_000..]);
                }
            });
        }
    });
}
