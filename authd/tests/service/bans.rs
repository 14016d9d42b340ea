//! Bans: exemptions, listing and lifting.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Authd, Redis, eventually};

const THROTTLED: [&str; 6] =
    ["--throttle-free-failures", "2", "--throttle-free-failures-per-address", "4", "--throttle-delay", "60s"];

async fn fail(authd: &Authd, user: &str, address: &str, times: usize) {
    for _ in 0..times {
        let refused = authd.login_from(user, "wrong", address).await;
        assert_eq!(refused.error(), (403, "invalid_credentials".to_owned()), "{user} {address}");
    }
}

async fn bans(authd: &Authd) -> Vec<(Value, Value)> {
    let bans = authd.admin(Method::GET, "/v1/bans", None).await.json();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for ban in bans.as_array().unwrap() {
        let until = humantime::parse_rfc3339(ban["until"].as_str().unwrap()).unwrap();
        let until = until.duration_since(UNIX_EPOCH).unwrap();
        assert!(until > now && until < now + Duration::from_secs(65), "{ban}");
    }
    bans.as_array().unwrap().iter().map(|ban| (ban["by"].clone(), ban["name"].clone())).collect()
}

/// Behaviour with and without Redis. `two` is another instance, or the same one if there is no Redis.
async fn bans_are_listed_and_lifted(one: &Authd, two: &Authd) {
    assert_eq!(bans(one).await, []);
    fail(one, "Ann Smith", "192.0.2.1", 3).await;
    for i in 0..5 {
        fail(one, &format!("user{i}"), &format!("2001:db8:1:2::{i}"), 1).await;
    }
    let names = [("user", "Ann Smith"), ("address", "2001:db8:1:2::/64")];
    let expected = names.map(|(by, name)| (json!(by), json!(name)));
    assert_eq!(bans(two).await, expected);
    for line in [
        "ban begins by=user name=\"Ann Smith\" wait=60",
        "ban begins by=address name=2001:db8:1:2::/64 wait=60",
    ] {
        eventually(line, async || one.log().contains(line)).await;
    }
    for by in ["user", "address"] {
        assert_eq!(one.metric(&format!("authd_bans_total{{by=\"{by}\"}}")).await, 1.0);
    }
    let lift = async |path: &str| two.admin(Method::DELETE, &format!("/v1/bans/{path}"), None).await;
    assert_eq!(one.login_from("Ann Smith", "x", "192.0.2.9").await.status, 429);
    assert_eq!(lift("user/Ann%20Smith").await.status, 204);
    assert_eq!(one.login_from("Ann Smith", "x", "192.0.2.9").await.status, 403);
    assert_eq!(one.login_from("nobody", "x", "2001:db8:1:2::9").await.status, 429);
    assert_eq!(bans(one).await, expected[1..]);
    // Every address of the network stands for the network.
    assert_eq!(lift("address/2001:db8:1:2:ffff::1").await.status, 204);
    assert_eq!(one.login_from("nobody", "x", "2001:db8:1:2::9").await.status, 403);
    assert_eq!(bans(two).await, []);
    let line = "ban lifted by=address name=2001:db8:1:2::/64";
    eventually(line, async || two.log().contains(line)).await;
    assert_eq!(two.metric("authd_bans_lifted_total{by=\"user\"}").await, 1.0);
    for (path, status) in [
        ("user/Ann%20Smith", 404),
        ("user/nobody", 404),
        ("user/a%2Fb", 404),
        ("address/2001:db8:1:2::%2F64", 404),
        ("address/192.0.2.77", 404),
        ("address/192.0.2.0%2F24", 400),
        ("address/here", 400),
    ] {
        assert_eq!(lift(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn bans_are_listed_and_lifted_over_all_instances() {
    let redis = Redis::start();
    let url = redis.url();
    let args = [&["--redis-url", &url], &THROTTLED[..]].concat();
    bans_are_listed_and_lifted(&Authd::start(&args), &Authd::start(&args)).await;
}

#[tokio::test]
async fn without_redis_the_process_lists_and_lifts_its_own_bans() {
    let authd = Authd::start(&THROTTLED);
    bans_are_listed_and_lifted(&authd, &authd).await;
}

#[tokio::test]
async fn failures_elsewhere_do_not_ban_a_user_at_known_addresses() {
    let redis = Redis::start();
    let url = redis.url();
    let args = [&["--redis-url", &url], &THROTTLED[..]].concat();
    let (one, two) = (Authd::start(&args), Authd::start(&args));
    one.create("ann", "hunter2").await;
    let login = async |authd: &Authd, address: &str| authd.login_from("ann", "hunter2", address).await.status;
    assert_eq!(login(&one, "192.0.2.1").await, 200);
    fail(&two, "ann", "198.51.100.1", 3).await;
    for _ in 0..3 {
        assert_eq!(login(&two, "192.0.2.1").await, 200);
        // These logins do not lift the ban for other addresses.
        assert_eq!(login(&one, "198.51.100.2").await, 429);
    }
    // Failures from the known address count for the address, and successful logins do not reset them.
    fail(&one, "ann", "192.0.2.1", 5).await;
    assert_eq!(login(&two, "192.0.2.1").await, 429);
    assert_eq!(two.metric("authd_throttled_total{by=\"address\"}").await, 1.0);
}

#[tokio::test]
async fn known_addresses_are_limited_in_number_and_time() {
    let redis = Redis::start();
    let url = redis.url();
    let known = ["--throttle-known-addresses", "2", "--throttle-known-time", "5m"];
    let authd = Authd::start(&[&["--redis-url", &url], &THROTTLED[..], &known].concat());
    authd.create("ann", "hunter2").await;
    let login = async |address: &str| authd.login_from("ann", "hunter2", address).await.status;
    for i in 1..=3 {
        assert_eq!(login(&format!("192.0.2.{i}")).await, 200);
        // Redis orders the logins by milliseconds.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut connection = redis.connection();
    let key = "ftp:known-addresses:ann";
    let life: i64 = redis::cmd("PTTL").arg(key).query(&mut connection).unwrap();
    assert!((1..=300_000).contains(&life), "{life}");
    fail(&authd, "ann", "198.51.100.1", 3).await;
    for (address, status) in [("192.0.2.1", 429), ("192.0.2.2", 200), ("192.0.2.3", 200)] {
        assert_eq!(login(address).await, status, "{address}");
    }
    // Simulates a login long ago.
    let _: () = redis::cmd("ZADD").arg(key).arg(1).arg("192.0.2.3").query(&mut connection).unwrap();
    assert_eq!(login("192.0.2.3").await, 429);
}

#[tokio::test]
async fn trusted_networks_are_never_banned() {
    let redis = Redis::start();
    let url = redis.url();
    let trusted = ["--trusted-networks", "10.0.0.0/8,2001:db8:9::/48"];
    let authd = Authd::start(&[&["--redis-url", &url], &THROTTLED[..], &trusted].concat());
    authd.create("ann", "hunter2").await;
    for address in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8:9:1::1"] {
        fail(&authd, "ann", address, 6).await;
        assert_eq!(authd.login_from("ann", "hunter2", address).await.status, 200);
    }
    assert_eq!(bans(&authd).await, []);
    fail(&authd, "ann", "192.0.2.1", 3).await;
    assert_eq!(authd.login_from("ann", "hunter2", "192.0.2.1").await.status, 429);
    assert_eq!(authd.login_from("ann", "hunter2", "10.1.2.3").await.status, 200);
}

/// Otherwise an attacker who knew the old password could go on guessing from a known address.
#[tokio::test]
async fn known_addresses_are_forgotten_when_the_password_changes() {
    let redis = Redis::start();
    let url = redis.url();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    let declare = |password: &str| {
        let text = format!("[users.bob]\npassword_hash = \"{}\"\n", crate::support::hash(password));
        std::fs::write(&file, text).unwrap();
    };
    declare("one");
    let users = ["--redis-url", &url, "--users-file", file.to_str().unwrap()];
    let authd = Authd::start(&[&users[..], &THROTTLED[..]].concat());
    authd.create("ann", "one").await;
    let login = async |user: &str, password: &str| authd.login_from(user, password, "192.0.2.1").await.status;
    let change =
        async |method, body: Option<Value>| authd.admin(method, "/v1/users/ann", body.as_ref()).await.status;

    // A change of another property keeps the known addresses.
    assert_eq!(login("ann", "one").await, 200);
    assert_eq!(change(Method::PATCH, Some(json!({ "home": "/a" }))).await, 200);
    fail(&authd, "ann", "198.51.100.1", 3).await;
    assert_eq!(login("ann", "one").await, 200);
    assert_eq!(change(Method::PATCH, Some(json!({ "password": "two" }))).await, 200);
    assert_eq!(login("ann", "two").await, 429);

    assert_eq!(authd.admin(Method::DELETE, "/v1/bans/user/ann", None).await.status, 204);
    assert_eq!(login("ann", "two").await, 200);
    assert_eq!(change(Method::DELETE, None).await, 204);
    authd.create("ann", "three").await;
    fail(&authd, "ann", "198.51.100.2", 3).await;
    assert_eq!(login("ann", "three").await, 429);

    assert_eq!(login("bob", "one").await, 200);
    declare("two");
    authd.hangup();
    let line = "ending the sessions of a user who was changed in the users file";
    eventually(line, async || authd.log().contains(line)).await;
    fail(&authd, "bob", "198.51.100.3", 3).await;
    assert_eq!(login("bob", "two").await, 429);
}
