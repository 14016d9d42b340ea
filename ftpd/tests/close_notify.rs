//! Encrypted uploads of clients that close TCP without close_notify, as .NET's FtpWebRequest does.

use std::{fs, io::Write, path::PathBuf};

use cluster_tests::{
    content::{bytes, sha256},
    node::Node,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
    tls::{Authority, SecureDialogue, cut},
};
use serde_json::{Value, json};

struct Tested {
    authority: Authority,
    node: Node,
    _parts: (Redis, StubAuthd),
}

/// A node whose stub authd accepts every login, with the root as home and the fields of `account`.
fn start(account: Value) -> Tested {
    let authority = Authority::new();
    let certificate = authority.sign("localhost");
    let authd = StubAuthd::start(move |request| {
        let mut account = account.clone();
        account["user"] = request["user"].clone();
        account["home"] = json!("/");
        Answer::account(&account)
    });
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let node = builder
        .setting("authd_urls", authd.url())
        .setting("redis_url", redis.address)
        .setting("tls_certificates", certificate.chain.display())
        .setting("tls_keys", certificate.key.display())
        .start();
    Tested { authority, node, _parts: (redis, authd) }
}

impl Tested {
    /// Sends the commands that FtpWebRequest sends before STOR.
    fn login(&self) -> SecureDialogue {
        let mut session = SecureDialogue::explicit(&self.authority.client(), self.node.address);
        session.command("USER anna", 331);
        session.command("PASS x", 230);
        session.command("PBSZ 0", 200);
        session.command("PROT P", 200);
        session.command("OPTS utf8 on", 200);
        session.command("PWD", 257);
        session.command("TYPE I", 200);
        session
    }

    fn path(&self, name: &str) -> PathBuf {
        self.node.root().join(name)
    }

    fn no_close_notify(&self) -> f64 {
        let metric = "ftp_transfers_total{direction=\"upload\",result=\"no_close_notify\"}";
        self.node.metric(metric).unwrap_or_default()
    }
}

/// Sends `content` and closes TCP. Returns code and text of the reply.
fn upload(session: &mut SecureDialogue, command: &str, content: &[u8]) -> (u16, String) {
    let mut data = session.begin(command);
    data.write_all(content).unwrap();
    cut(data);
    let reply = session.reply();
    (reply.code, reply.message())
}

#[test]
fn reply_and_log_of_a_missing_close_notify_name_the_setting() {
    for uploads in ["direct", "atomic"] {
        let tested = start(json!({ "uploads": uploads }));
        let mut session = tested.login();
        let (code, text) = upload(&mut session, "STOR file", b"content");
        assert_eq!(code, 426);
        assert!(text.contains("close_notify (tls_close_notify)"), "{text}");
        let line = tested.node.daemon.wait_for_message(
            "upload failed: the upload ended without TLS close_notify",
            &[("result", "no_close_notify")],
        );
        assert!(line.contains("tls_close_notify"), "{line}");
        assert_eq!(tested.no_close_notify(), 1.0);
        assert_eq!(tested.path("file").exists(), uploads == "direct");
        // The received data is kept for a resumption.
        assert_eq!(session.command("SIZE file", 213).message(), "7");
    }
}

#[test]
fn a_user_exempt_from_close_notify_uploads_in_direct_and_atomic_mode() {
    let content = bytes(5, 700_001);
    for uploads in ["direct", "atomic"] {
        let tested = start(json!({ "uploads": uploads, "tls": { "close_notify": false } }));
        let mut session = tested.login();
        assert_eq!(upload(&mut session, "STOR file", &content).0, 226);
        assert_eq!(sha256(fs::read(tested.path("file")).unwrap()), sha256(&content));
        assert_eq!(tested.no_close_notify(), 0.0);
        session.command("QUIT", 221);
    }
}

#[test]
fn an_account_can_require_close_notify_on_a_node_that_does_not() {
    let tested = start(json!({ "tls": { "close_notify": true } }));
    let node = tested.node.builder().setting("tls_close_notify", "false");
    let Tested { authority, node: first, _parts } = tested;
    drop(first);
    let tested = Tested { authority, node: node.start(), _parts };
    assert_eq!(upload(&mut tested.login(), "STOR file", b"content").0, 426);
}

#[test]
fn without_close_notify_an_upload_of_exactly_the_allo_size_is_complete() {
    let content = bytes(6, 300_001);
    for uploads in ["direct", "atomic"] {
        let tested = start(json!({ "uploads": uploads }));
        let mut session = tested.login();
        for (announced, came, code) in
            [(300_001, 300_000, 426), (299_999, 300_001, 426), (300_001, 300_001, 226)]
        {
            session.command(&format!("ALLO {announced}"), 200);
            assert_eq!(upload(&mut session, "STOR file", &content[..came]).0, code, "{announced} {came}");
            assert_eq!(tested.path("file").exists(), code == 226 || uploads == "direct");
        }
        assert_eq!(sha256(fs::read(tested.path("file")).unwrap()), sha256(&content));
        // After REST, some clients announce the remaining size, others the total size.
        for announced in [200_001, 300_001] {
            assert_eq!(upload(&mut session, "STOR part", &content[..100_000]).0, 426);
            session.command(&format!("ALLO {announced}"), 200);
            session.command("REST 100000", 350);
            assert_eq!(upload(&mut session, "STOR part", &content[100_000..]).0, 226, "{announced}");
            assert_eq!(sha256(fs::read(tested.path("part")).unwrap()), sha256(&content));
            session.command("DELE part", 250);
        }
    }
}
