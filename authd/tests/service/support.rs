//! Harness: starts and stops authd and Redis, and sends requests to them.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::secret::Secret;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const NODE_TOKEN: &str = "node-token-7f3a";
pub(crate) const ADMIN_TOKEN: &str = "admin-token-91bc";

const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `holds` returns true. `what` describes the condition for the failure message.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "did not happen within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The cheapest hash of a password.
pub(crate) fn hash(password: &str) -> String {
    let params = argon2::Params::new(64, 1, 1, None).unwrap();
    authd::accounts::password::hash(&params, &Secret::new(password)).unwrap().as_str().to_owned()
}

/// A running Redis, empty at its start.
pub(crate) struct Redis {
    child: Child,
    pub port: u16,
    dir: TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        for _ in 0..10 {
            // Another process may take the port in the meantime. Then the next one is tried.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(redis) = Self::start_on(port, tempfile::tempdir().unwrap()) {
                return redis;
            }
        }
        panic!("no Redis");
    }

    fn start_on(port: u16, dir: TempDir) -> Option<Self> {
        let mut child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let deadline = Instant::now() + DEADLINE;
        let client = redis::Client::open(("127.0.0.1", port)).unwrap();
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            let pid = client.get_connection().and_then(|mut connection| {
                let info: redis::InfoDict = redis::cmd("INFO").arg("server").query(&mut connection)?;
                Ok(info.get::<u32>("process_id"))
            });
            if pid.is_ok_and(|pid| pid == Some(child.id())) {
                return Some(Self { child, port, dir });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    pub(crate) fn url(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn connection(&self) -> redis::Connection {
        redis::Client::open(("127.0.0.1", self.port)).unwrap().get_connection().unwrap()
    }

    /// Stops it and keeps its data.
    pub(crate) fn stop(mut self) -> StoppedRedis {
        stop(&mut self.child);
        StoppedRedis { port: self.port, dir: std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap()) }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stopped Redis with its data.
pub(crate) struct StoppedRedis {
    port: u16,
    dir: TempDir,
}

impl StoppedRedis {
    pub(crate) fn start(self) -> Redis {
        Redis::start_on(self.port, self.dir).expect("Redis starts again on its port")
    }
}

fn stop(child: &mut Child) {
    // Until it is waited for, the process exists, at least as a zombie.
    signal(child, Signal::SIGTERM);
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "does not end on SIGTERM");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// A running authd.
pub(crate) struct Authd {
    child: Child,
    pub url: String,
    log: Arc<Mutex<String>>,
    client: reqwest::Client,
    _files: TempDir,
}

/// A response of authd.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {:?}", self.text))
    }

    /// The status and the public code.
    pub(crate) fn error(&self) -> (u16, String) {
        (self.status, self.json()["error"].as_str().unwrap_or_default().to_owned())
    }
}

/// Reads server-sent events.
pub(crate) struct EventReader {
    answer: reqwest::Response,
    text: String,
}

impl EventReader {
    pub(crate) fn new(answer: reqwest::Response) -> Self {
        Self { answer, text: String::new() }
    }

    /// The name and the data of the next event. `None`: the stream has ended in order.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                if let (Some(name), Some(data)) = (field("event"), field("data")) {
                    return Some((name.to_owned(), serde_json::from_str(data).unwrap()));
                }
            }
            let part = tokio::time::timeout(DEADLINE, self.answer.chunk()).await;
            let part = part.expect("no event in time").unwrap()?;
            self.text += std::str::from_utf8(&part).unwrap();
        }
    }
}

/// The authd command with cheap hashes and an empty environment.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_authd"));
    command.env_clear().env("AUTHD_ARGON2_MEMORY_KIB", "64").env("AUTHD_ARGON2_ITERATIONS", "1");
    // The tests use short passwords.
    command.env("AUTHD_MIN_PASSWORD_LENGTH", "1").args(args);
    command
}

impl Authd {
    /// Starts authd with both tokens.
    pub(crate) fn start(args: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let token = |name: &str, token: &str| -> PathBuf {
            let path = files.path().join(name);
            fs::write(&path, format!("{token}\n")).unwrap();
            path
        };
        let (node, admin) = (token("node", NODE_TOKEN), token("admin", ADMIN_TOKEN));
        let tokens =
            ["--node-token-file", node.to_str().unwrap(), "--admin-token-file", admin.to_str().unwrap()];
        Self::spawn(&[&tokens[..], args].concat(), files)
    }

    /// Starts authd with the tokens in `args`, if any.
    pub(crate) fn start_bare(args: &[&str]) -> Self {
        Self::spawn(args, tempfile::tempdir().unwrap())
    }

    fn spawn(args: &[&str], files: TempDir) -> Self {
        let mut child = command(&["--listen", "127.0.0.1:0", "--log-level", "debug"])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, captured) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        let (found, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, address)) = line.split_once(" listening address=") {
                    let _ = found.send(address.to_owned());
                }
                *captured.lock().unwrap() += &format!("{line}\n");
            }
        });
        let Ok(address) = address.recv_timeout(DEADLINE) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("authd does not listen:\n{}", log.lock().unwrap());
        };
        // The host may have no files of the usual authorities, as in Nix's sandbox.
        let client = reqwest::Client::builder().timeout(DEADLINE).tls_certs_only([]).build().unwrap();
        Self { child, url: format!("http://{address}"), log, client, _files: files }
    }

    /// The standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn hangup(&self) {
        signal(&self.child, Signal::SIGHUP);
    }

    /// Ends authd with SIGTERM and returns its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        stop(&mut self.child);
        self.child.wait().unwrap().code()
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // A stream of events has no end.
        let is_stream = headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let text = if is_stream { String::new() } else { response.text().await.unwrap() };
        Answer { status, headers, text }
    }

    /// The head of an answer whose body is read later.
    pub(crate) async fn listen(&self, path: &str, token: &str) -> reqwest::Response {
        // Without the time limit of `client`, which includes the body.
        let request = reqwest::Client::new().get(format!("{}{path}", self.url)).bearer_auth(token);
        tokio::time::timeout(DEADLINE, request.send()).await.expect("no answer in time").unwrap()
    }

    pub(crate) async fn admin(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.call(method, path, Some(ADMIN_TOKEN), body).await
    }

    /// Creates a user with a password.
    pub(crate) async fn create(&self, name: &str, password: &str) {
        let body = json!({ "name": name, "password": password });
        let answer = self.admin(Method::POST, "/v1/users", Some(&body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
    }

    pub(crate) async fn login_from(&self, user: &str, password: &str, address: &str) -> Answer {
        let body = authenticate(user, password, address);
        self.call(Method::POST, "/v1/authenticate", Some(NODE_TOKEN), Some(&body)).await
    }

    pub(crate) async fn login(&self, user: &str, password: &str) -> Answer {
        self.login_from(user, password, "192.0.2.1").await
    }

    /// The value of a metric, or 0 if it is absent. `name` includes the labels as in the output.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.call(Method::GET, "/metrics", None, None).await.text;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    pub(crate) async fn verifications(&self) -> f64 {
        self.metric("authd_verification_seconds_count").await
    }
}

/// The body of a login request.
pub(crate) fn authenticate(user: &str, password: &str, address: &str) -> Value {
    json!({
        "user": user, "password": password, "address": address,
        "node": "ftp-1", "session": "00112233445566aa", "tls": false,
    })
}

impl Drop for Authd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            #[allow(clippy::print_stderr)] // A failed test prints the log.
            {
                eprintln!("--- authd ---\n{}", self.log());
            }
        }
    }
}
