//! Events in the Redis stream.

use std::{fs, path::PathBuf};

use cluster_tests::{cluster::Cluster, eventually};
use serde_json::Value;
use tempfile::TempDir;

use crate::{cluster_with, expect, session, upload};

/// A file with a stream.
fn events_file(directory: &TempDir, lines: &str) -> PathBuf {
    let path = directory.path().join("events.toml");
    fs::write(&path, format!("[[stream]]\nname = \"cluster\"\n{lines}\n")).unwrap();
    path
}

/// The events of the stream. The field `id` of each entry is the id of its event.
fn entries(cluster: &Cluster) -> Vec<Value> {
    let events = cluster.redis().stream("ftp:events").into_iter().map(|entry| {
        assert_eq!((entry.len(), entry[1].as_str(), entry[3].as_str()), (5, "id", "event"), "{entry:?}");
        let event: Value = serde_json::from_str(&entry[4]).unwrap();
        assert_eq!(event["id"], *entry[2]);
        event
    });
    events.collect()
}

#[test]
fn every_226_has_an_entry_in_the_stream_in_the_order_of_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster_with(events_file(&directory, "events = [\"upload\", \"append\"]"), 2);
    let mut sessions = [session(&cluster, 0, "atomic"), session(&cluster, 1, "atomic")];
    let mut expected = Vec::new();
    for number in 1..=10u32 {
        let session = &mut sessions[number as usize % 2];
        assert!(upload(session, "STOR same", number as usize));
        expected.push(("/atomic/same".to_owned(), u64::from(number)));
        assert!(upload(session, &format!("APPE own{number}"), 3));
        expected.push((format!("/atomic/own{number}"), 3));
    }
    expect(&expected, || entries(&cluster));
    assert_eq!(entries(&cluster).len(), expected.len(), "each event has one entry");
    assert!(entries(&cluster).iter().any(|event| event["event"] == "append"));
}

#[test]
fn events_wait_on_the_storage_while_redis_is_away() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = cluster_with(events_file(&directory, ""), 2);
    let mut first = session(&cluster, 0, "direct");
    let mut second = session(&cluster, 1, "atomic");
    assert!(upload(&mut first, "STOR before", 1));
    expect(&[("/direct/before".to_owned(), 1)], || entries(&cluster));
    cluster.kill_redis();
    let mut expected = Vec::new();
    for size in 2..=4u32 {
        assert!(upload(&mut first, "STOR file", size as usize));
        assert!(upload(&mut second, "STOR file", size as usize));
        for user in ["direct", "atomic"] {
            expected.push((format!("/{user}/file"), u64::from(size)));
        }
    }
    let waits = |node: usize| cluster.node(node).metric("ftp_events_pending").unwrap_or(0.0) >= 6.0;
    eventually("the events to wait", || (waits(0) || waits(1)).then_some(()));
    cluster.start_redis();
    let pending = |node: usize| cluster.node(node).metric("ftp_events_pending").unwrap_or(0.0);
    eventually("the events to be delivered", || (pending(0) + pending(1) == 0.0).then_some(()));
    expect(&expected, || entries(&cluster));
    assert_eq!(entries(&cluster).len(), expected.len(), "each event has one entry");
}

#[test]
fn a_deliverer_that_dies_may_leave_an_entry_twice_and_none_is_missing() {
    for step in ["before_post", "after_post"] {
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = cluster_with(events_file(&directory, ""), 1);
        cluster.restart_node_with(0, |node| node.variable("EVENTS_FAULT", format!("{step}:3")));
        let mut expected = Vec::new();
        let mut killed = session(&cluster, 0, "direct");
        for size in 1..=3u32 {
            // The node dies when the third event is on its way, at the latest when its reply is written.
            let is_complete = upload(&mut killed, "STOR file", size as usize);
            assert!(is_complete || size == 3);
            expected.push(("/direct/file".to_owned(), u64::from(size)));
        }
        cluster.node_mut(0).daemon.wait();
        cluster.restart_node(0);
        expect(&expected, || entries(&cluster));
        let number = entries(&cluster).len();
        let repeats = usize::from(step == "after_post");
        assert!((3..=3 + repeats).contains(&number), "{step}: {number} entries");
    }
}
