//! `GET /v1/live`: server-sent events.

use std::time::{Duration, Instant};

use redis::Commands;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{commands, put_node},
    support::{ADMIN_TOKEN, Authd, EventReader, Redis, eventually},
};

async fn listen(authd: &Authd, query: &str) -> EventReader {
    let answer = authd.listen(&format!("/v1/live{query}"), ADMIN_TOKEN).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    EventReader::new(answer)
}

/// The data of the next event with this name for which `holds` is true.
async fn event(events: &mut EventReader, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
    loop {
        let (found, data) = events.next().await.expect("the stream goes on");
        if found == name && holds(&data) {
            return data;
        }
    }
}

#[tokio::test]
async fn listeners_get_the_state_of_the_cluster_and_its_changes() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    let began = Instant::now();
    let (mut first, mut second) = (listen(&authd, "").await, listen(&authd, "?events=sessions,status").await);
    let problems = event(&mut first, "problems", |_| true).await;
    assert_eq!((&problems["problems"], problems.get("unknown")), (&json!([]), None));
    for events in [&mut first, &mut second] {
        let status = event(events, "status", |_| true).await;
        assert_eq!((&status["nodes"][0]["name"], &status["sessions"]), (&json!("ftp-1"), &json!(1)));
        let sessions = event(events, "sessions", |_| true).await;
        assert_eq!((&sessions["total"], &sessions["sessions"][0]["user"]), (&json!(1), &json!("ann")));
    }
    // The node is told to publish what its sessions do every 5 s, however many listeners there are.
    let watches = commands(&mut connection, "ftp-1").iter().filter(|sent| sent["command"] == "watch").count();
    let most = began.elapsed().as_secs() / 5 + 1;
    assert!((1..=most).contains(&(watches as u64)), "{watches} in {:?}", began.elapsed());

    put_node(&mut connection, "ftp-2", "00112233445566bb", "bob", "192.0.2.2");
    let two_nodes = |status: &Value| status["nodes"].as_array().unwrap().len() == 2;
    event(&mut first, "status", two_nodes).await;
    event(&mut second, "sessions", |sessions| sessions["total"] == 2).await;
    assert!((authd.metric("authd_live_listeners").await - 2.0).abs() < 0.5);
    drop((first, second));
    eventually("no listener", async || authd.metric("authd_live_listeners").await < 0.5).await;

    for query in ["?events=", "?events=status,colour", "?topics=status"] {
        assert_eq!(authd.admin(Method::GET, &format!("/v1/live{query}"), None).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn fast_transfers_come_first_and_details_are_those_that_the_node_publishes() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    let ids = ["00112233445566aa", "00112233445566bb", "00112233445566cc"];
    let rates = [5.0, 7.0, 0.0];
    put_node(&mut connection, "ftp-1", ids[0], "ann", "192.0.2.1");
    for (id, rate) in ids.into_iter().zip(rates) {
        let record = json!({ "id": id, "node": "ftp-1", "user": "ann", "address": "192.0.2.1", "since": 7 });
        let _: () = connection.hset("ftp:sessions:ftp-1", id, record.to_string()).unwrap();
        let mut details = json!({ "id": id, "idle": 0.0, "uploaded": 7, "downloaded": 0 });
        if rate > 0.0 {
            details["transfer"] = json!({ "direction": "upload", "bytes": 1, "rate": rate, "seconds": 1.0 });
        }
        let _: () = connection.hset("ftp:live:ftp-1", id, details.to_string()).unwrap();
    }
    let mut events = listen(&authd, "?events=sessions").await;
    let sessions = event(&mut events, "sessions", |_| true).await;
    let shown: Vec<&str> =
        sessions["sessions"].as_array().unwrap().iter().map(|found| found["id"].as_str().unwrap()).collect();
    assert_eq!(shown, [ids[1], ids[0], ids[2]]);
    assert_eq!(sessions["sessions"][0]["details"]["transfer"]["rate"], 7.0);
}

#[tokio::test]
async fn the_number_of_listeners_has_a_limit_and_streams_end_with_sighup_and_sigterm() {
    let redis = Redis::start();
    let mut authd = Authd::start(&["--redis-url", &redis.url(), "--max-live-listeners", "1"]);
    let mut events = listen(&authd, "").await;
    event(&mut events, "status", |_| true).await;
    let refused = authd.admin(Method::GET, "/v1/live", None).await;
    assert_eq!(refused.error(), (503, "unavailable".to_owned()));
    assert!(refused.text.contains("max_live_listeners"), "{}", refused.text);
    // After SIGHUP there may be other administrators, so each listener shows its token again.
    authd.hangup();
    while events.next().await.is_some() {}
    let joined = async || authd.listen("/v1/live", ADMIN_TOKEN).await;
    let mut answer = joined().await;
    eventually("the place is free", async || {
        if answer.status() != 200 {
            answer = joined().await;
        }
        answer.status() == 200
    })
    .await;
    let mut events = EventReader::new(answer);
    event(&mut events, "status", |_| true).await;
    let began = Instant::now();
    assert_eq!(authd.terminate(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "the stream kept authd for {:?}", began.elapsed());
    while events.next().await.is_some() {}
}

#[tokio::test]
async fn listeners_are_told_what_cannot_be_known_while_redis_is_away() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    put_node(&mut redis.connection(), "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    let mut events = listen(&authd, "").await;
    event(&mut events, "status", |_| true).await;
    let stopped = redis.stop();
    let missing = event(&mut events, "unavailable", |data| data["event"] == "status").await;
    assert!(missing["message"].as_str().unwrap().contains("Redis"), "{missing}");
    let is_redis = |data: &Value| data["problems"][0]["kind"] == "redis";
    event(&mut events, "problems", is_redis).await;
    let _redis = stopped.start();
    event(&mut events, "status", |_| true).await;
}
