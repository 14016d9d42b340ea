//! A node whose user accounts the test defines.

use std::fs;

use cluster_tests::{
    dialogue::Dialogue,
    node::Node,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::Value;

/// Name of the transfer log, in the root of the storage.
pub(crate) const TRANSFER_LOG: &str = "transfers.log";

/// The processes of a test.
pub(crate) struct Site {
    pub node: Node,
    _redis: Redis,
    _authd: StubAuthd,
}

impl Site {
    /// `account` returns the account of a user name. Missing homes are created if `create_homes`.
    pub(crate) fn new(create_homes: bool, account: impl Fn(&str) -> Value + Send + Sync + 'static) -> Self {
        let authd = StubAuthd::start(move |request| {
            let mut answer = account(request["user"].as_str().unwrap_or_default());
            answer["user"] = request["user"].clone();
            Answer::account(&answer)
        });
        let builder = Node::standalone().in_cluster().setting("create_homes", create_homes);
        let redis = Redis::start(builder.loopback().socket(1, 6379));
        let builder = builder.setting("authd_urls", authd.url()).setting("redis_url", redis.address);
        let log = builder.root().join(TRANSFER_LOG);
        let builder = builder.setting("transfer_log", log.display());
        Self { node: builder.setting("max_errors", 1000).start(), _redis: redis, _authd: authd }
    }

    /// The same account for all users.
    pub(crate) fn of(account: Value) -> Self {
        Self::new(true, move |_| account.clone())
    }

    /// Creates a file in the storage, with missing directories.
    pub(crate) fn put(&self, path: &str, content: &str) {
        let path = self.node.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Content of a file in the storage, if it exists.
    pub(crate) fn content(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.node.root().join(path)).ok()
    }

    /// Logs in and sends TYPE I.
    pub(crate) fn login(&self, user: &str) -> Dialogue {
        let mut session = self.node.login(user, "x");
        session.command("TYPE I", 200);
        session
    }
}

/// The sorted lines of an NLST.
pub(crate) fn names(session: &mut Dialogue, argument: &str) -> Vec<String> {
    let listing = String::from_utf8(session.receive(&format!("NLST {argument}"))).unwrap();
    let mut names: Vec<_> = listing.lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// The facts of the entry `name` in the MLSD of `path`.
pub(crate) fn facts(session: &mut Dialogue, path: &str, name: &str) -> String {
    let listing = String::from_utf8(session.receive(&format!("MLSD {path}"))).unwrap();
    let line = listing.lines().find(|line| line.ends_with(&format!("; {name}")));
    line.unwrap_or_else(|| panic!("no {name} in {listing}")).to_owned()
}

/// Asserts that each command gets exactly this reply.
pub(crate) fn all_get(session: &mut Dialogue, reply: &str, commands: &[&str]) {
    for command in commands {
        session.epsv();
        session.send(command);
        assert_eq!(session.reply().text(), reply, "{command}");
    }
}
