//! Redis with TLS, client certificates and a user of its access control list.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use cluster_tests::{
    authd::{Authd, AuthdBuilder},
    cluster::Cluster,
    content::bytes,
    eventually, http,
    loopback::Loopback,
    process::field,
    redis::Redis,
    tls::{Authority, CertificateFiles},
};

const TLS_PORT: u16 = 6380;

/// The permissions of docs/redis.md.
const USER: [&str; 14] = [
    "--user",
    "node",
    "on",
    ">word",
    "~ftp:*",
    "-@all",
    "+@read",
    "+@write",
    "+@connection",
    "+@scripting",
    "+info",
    "+role",
    "+time",
    "+wait",
];

/// A Redis with TLS. It lets a client in that has a certificate of `authority`.
struct EncryptedRedis {
    redis: Redis,
    loopback: Arc<Loopback>,
    client: CertificateFiles,
    directory: tempfile::TempDir,
}

impl EncryptedRedis {
    fn start(authority: &Authority) -> Self {
        Self::start_with(authority, None)
    }

    /// With a certificate for this host, or for its address.
    fn start_with(authority: &Authority, host: Option<&str>) -> Self {
        let loopback = Arc::new(Loopback::reserve());
        let files = match host {
            Some(host) => authority.sign(host),
            None => authority.sign(&loopback.address(1).to_string()),
        };
        let mut arguments = Redis::tls_arguments(TLS_PORT, &files, &authority.file());
        arguments.extend(USER.map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("password"), "word").unwrap();
        Self {
            redis: Redis::start_with(loopback.socket(1, 6379), &arguments),
            client: authority.sign("client.example"),
            loopback,
            directory,
        }
    }

    fn address(&self) -> SocketAddr {
        self.loopback.socket(1, TLS_PORT)
    }

    /// The settings that lead to this Redis.
    fn settings(&self, authority: &Path) -> Vec<(String, String)> {
        let password = self.directory.path().join("password");
        [
            ("redis_url", format!("rediss://{}", self.address())),
            ("redis_ca_file", authority.display().to_string()),
            ("redis_client_certificate", self.client.chain.display().to_string()),
            ("redis_client_key", self.client.key.display().to_string()),
            ("redis_user", "node".to_owned()),
            ("redis_password_file", password.display().to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    }

    /// An authd with the settings, one of them changed.
    fn authd(&self, authority: &Path, key: &str, value: &str) -> Authd {
        let authd = AuthdBuilder::new(self.loopback.socket(2, 5160));
        let authd =
            self.settings(authority).iter().fold(authd, |authd, (key, value)| authd.setting(key, value));
        authd.setting(key, value).start()
    }
}

/// The state of Redis in `/readyz` of authd, and the setting to check.
fn registry(authd: &Authd) -> (String, String) {
    let answer = http::get(authd.address, "/readyz").expect("authd answers");
    let report: serde_json::Value = serde_json::from_str(&answer.body).expect("the report is JSON");
    let registry = &report["dependencies"]["registry"];
    let text = |key: &str| registry[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("setting"))
}

#[test]
fn all_parts_reach_redis_with_tls_a_client_certificate_and_a_user_of_few_rights() {
    if !Redis::has_tls() {
        return;
    }
    let authority = Authority::new();
    let encrypted = EncryptedRedis::start(&authority);
    let cluster = Cluster::builder().nodes(2).registry(encrypted.settings(&authority.file())).start();
    let content = bytes(1, 300_000);
    for node in 0..2 {
        let mut session = cluster.login_through(node);
        session.store(&format!("file-{node}"), &content);
        assert_eq!(session.retrieve(&format!("file-{node}")), content);
        session.command(&format!("RNFR file-{node}"), 350);
        session.command(&format!("RNTO renamed-{node}"), 250);
        session.quit();
    }
    let created = serde_json::json!({"name": "new", "password": "secret"});
    assert_eq!(cluster.authd().administer("POST", "/v1/users", Some(&created)).status, 201);
    // Two nodes with two connections each, authd, the relay; and the test itself as the default user.
    let clients = encrypted.redis.response("CLIENT LIST").expect("Redis answers");
    let users: Vec<String> = clients.lines().filter_map(|line| field(line, "user")).collect();
    assert!(users.iter().filter(|user| *user == "node").count() >= 6, "{clients}");
    assert_eq!(users.iter().filter(|user| *user != "node").count(), 1, "{clients}");
    for position in 0..2 {
        let lines = cluster.node(position).daemon.lines();
        assert!(!lines.iter().any(|line| line.contains("NOPERM")), "{lines:#?}");
    }
    let lines = cluster.authd().daemon.lines();
    assert!(!lines.iter().any(|line| line.contains("NOPERM")), "{lines:#?}");
}

#[test]
fn an_unknown_authority_is_refused_until_the_file_names_the_right_one() {
    if !Redis::has_tls() {
        return;
    }
    let (authority, stranger) = (Authority::new(), Authority::new());
    let encrypted = EncryptedRedis::start(&authority);
    let file = encrypted.directory.path().join("ca.pem");
    fs::copy(stranger.file(), &file).unwrap();
    let authd = encrypted.authd(&file, "demo", "true");
    let line = authd.daemon.wait_for_message("Redis is away", &[("setting", "redis_ca_file")]);
    assert!(line.contains("invalid peer certificate"), "{line}");
    assert_eq!(registry(&authd), ("failed".to_owned(), "redis_ca_file".to_owned()));
    // No restart is needed.
    fs::copy(authority.file(), &file).unwrap();
    eventually("authd to reach Redis", || (registry(&authd).0 == "ok").then_some(()));
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    if !Redis::has_tls() {
        return;
    }
    let authority = Authority::new();
    let encrypted = EncryptedRedis::start_with(&authority, Some("other.example"));
    let authd = encrypted.authd(&authority.file(), "demo", "true");
    let line = authd.daemon.wait_for_message("Redis is away", &[("setting", "redis_ca_file")]);
    assert!(line.contains("not valid for name"), "{line}");
}

#[test]
fn a_wrong_password_of_the_user_is_a_wrong_setting() {
    if !Redis::has_tls() {
        return;
    }
    let authority = Authority::new();
    let encrypted = EncryptedRedis::start(&authority);
    let authd = encrypted.authd(&authority.file(), "redis_user", "stranger");
    eventually("authd to see that Redis refuses the user", || {
        let wrong = ("misconfigured".to_owned(), "redis_password_file".to_owned());
        (registry(&authd) == wrong).then_some(())
    });
}
