//! Nodes that join, leave, drain and die while sessions work.

use std::{
    io::Write,
    net::{Shutdown, SocketAddr},
};

use cluster_tests::{content::bytes, eventually, http};
use serde_json::json;

use crate::support::{BLOCKS, Site, store_through};

#[test]
fn a_node_that_joins_gets_its_share_and_running_transfers_go_on() {
    let mut site = Site::leased(1);
    let first = &site.nodes[0];
    first.wait_for_metric("ftp_blocks{state=\"leased\"}", |blocks| blocks as usize == BLOCKS);
    let mut session = site.login(0);
    session.command("TYPE I", 200);
    let content = bytes(1, 1_000_000);
    let mut upload = session.begin("STOR running");
    upload.write_all(&content[..500_000]).unwrap();
    // Each block has a session that waits for its data connection.
    let mut waiting: Vec<_> = (0..4 * BLOCKS).map(|_| site.login(0)).collect();
    let ports: Vec<SocketAddr> = waiting.iter_mut().map(cluster_tests::dialogue::Dialogue::epsv).collect();

    let second = site.builder(1).spawn();
    first.wait_for_metric("ftp_blocks{state=\"given_up\"}", |blocks| blocks as usize == BLOCKS / 2);
    for (index, session) in waiting.iter_mut().enumerate() {
        session.command(&format!("STOR waiting-{index}"), 150);
        let mut data = session.data_connection(ports[index]);
        data.write_all(b"content").unwrap();
        drop(data);
        session.expect(226);
    }
    second.daemon.wait_for_message("ready", &[]);
    site.nodes.push(second);
    site.wait_for_shares(&[0, 1]);
    upload.write_all(&content[500_000..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    session.expect(226);
    assert_eq!(site.read("running"), content);
    for owner in 0..2 {
        let mut session = site.login(owner);
        store_through(&mut session, |passive| site.door(1 - owner, passive), "after", &content);
        assert_eq!(site.read("after"), content);
    }
    let first = &site.nodes[0];
    assert_eq!(first.metric("ftp_passive_ports_given_up_total{reason=\"handed_over\"}"), None);
    let lines = first.daemon.lines();
    assert!(!lines.iter().any(|line| line.contains(" ERROR ")), "{lines:#?}");
}

#[test]
fn blocks_of_a_node_that_leaves_or_dies_go_to_the_others() {
    let mut site = Site::leased(3);
    site.nodes.remove(2).daemon.stop();
    site.wait_for_shares(&[0, 1]);
    // The blocks of a dead node rest for data_connect_timeout.
    site.nodes[1].daemon.kill();
    site.nodes[0].wait_for_metric("ftp_blocks{state=\"leased\"}", |blocks| blocks as usize == BLOCKS);
    let mut session = site.login(0);
    session.store("file", b"content");
    // It comes back, and the nodes share again.
    let restarted = site.builder(1).start();
    site.nodes[1] = restarted;
    site.wait_for_shares(&[0, 1]);
    let content = bytes(1, 100_000);
    let mut session = site.login(1);
    store_through(&mut session, |passive| site.door(0, passive), "after", &content);
    assert_eq!(site.read("after"), content);
}

#[test]
fn a_node_that_drains_is_reached_through_the_others_until_its_transfers_end() {
    let mut site = Site::leased(2);
    let mut session = site.login(0);
    session.command("TYPE I", 200);
    let door = site.door(1, session.epsv());
    session.command("STOR file", 150);
    site.nodes[0].daemon.terminate();
    site.nodes[0].daemon.wait_for_message("draining", &[]);
    let content = bytes(1, 1_000_000);
    let mut data = session.data_connection(door);
    data.write_all(&content).unwrap();
    drop(data);
    session.expect(226);
    assert_eq!(site.read("file"), content);
    assert!(site.nodes[0].daemon.wait().success());
}

#[test]
fn a_node_that_drains_finishes_the_connections_that_it_carries() {
    let mut site = Site::leased(2);
    let mut session = site.login(0);
    session.command("TYPE I", 200);
    let door = site.door(1, session.epsv());
    session.command("STOR file", 150);
    let content = bytes(1, 1_000_000);
    let mut data = session.data_connection(door);
    data.write_all(&content[..500_000]).unwrap();
    site.nodes[1].wait_for_metric("ftp_relayed", |count| count == 1.0);
    site.nodes[1].daemon.terminate();
    site.nodes[1].daemon.wait_for_line(|line| line.contains("waiting for the data connections"));
    // New connections go to other nodes.
    eventually("the node to stop listening", || std::net::TcpStream::connect(door).is_err().then_some(()));
    data.write_all(&content[500_000..]).unwrap();
    drop(data);
    session.expect(226);
    assert_eq!(site.read("file"), content);
    assert!(site.nodes[1].daemon.wait().success());
}

#[test]
fn a_node_without_passive_ports_is_not_ready_and_says_so() {
    let one_block = [("passive_port_max", "20004"), ("data_connect_timeout", "1s")];
    let mut site = Site::start(1, &one_block);
    let second = site.builder(1).spawn();
    second.daemon.wait_for_line(|line| line.contains("ERROR") && line.contains("passive_block_ports"));
    second.daemon.wait_for_message("starting without passive ports", &[]);
    second.daemon.wait_for_message("ready", &[]);
    let answer = eventually("the second node to be unready", || {
        let answer = http::get(second.admin, "/readyz").unwrap();
        (answer.json()["dependencies"]["passive_ports"]["state"] == "failed").then_some(answer)
    });
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["dependencies"]["passive_ports"]["setting"], json!("passive_block_ports"));
    let mut session = second.login("demo", "x");
    session.command("PASV", 425);
    // When the first node leaves, its block goes to the second.
    site.nodes.remove(0).daemon.stop();
    second.daemon.wait_for_message("this node owns passive ports again", &[]);
    eventually("the second node to be ready", || {
        (http::get(second.admin, "/readyz").unwrap().status == 200).then_some(())
    });
    session.store("file", b"content");
}
