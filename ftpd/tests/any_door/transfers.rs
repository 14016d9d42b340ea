//! Transfers whose data connection is carried from one node to another.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
    time::Duration,
};

use cluster_tests::{
    content::bytes,
    dialogue::{Dialogue, is_closed, reset},
    proxy::Connector,
    tls::{Authority, SecureDialogue, end},
};
use rustls::version::{TLS12, TLS13};

use crate::support::{Site, receive_through, store_through};

#[test]
fn every_transfer_works_over_a_data_connection_to_any_node() {
    let site = Site::leased(3);
    for owner in 0..3 {
        let mut session = site.login(owner);
        for door in 0..3 {
            let name = format!("file-{owner}-{door}");
            let content = bytes(owner as u64 * 3 + door as u64, 1_000_001);
            store_through(&mut session, |passive| site.door(door, passive), &name, &content);
            assert_eq!(site.read(&name), content);
            let received =
                receive_through(&mut session, |passive| site.door(door, passive), &format!("RETR {name}"));
            assert!(received == content, "{name}");
            let listing = receive_through(&mut session, |passive| site.door(door, passive), "NLST");
            assert!(String::from_utf8(listing).unwrap().contains(&name));
            // Nothing but the two ends of the stream.
            store_through(&mut session, |passive| site.door(door, passive), "empty", b"");
            assert_eq!(site.read("empty"), b"");
        }
    }
    for (door, node) in site.nodes.iter().enumerate() {
        for owner in (0..3).filter(|owner| *owner != door) {
            let relayed = format!("ftp_relayed_total{{to=\"ftp-{owner}\"}}");
            assert_eq!(node.metric(&relayed), Some(4.0), "from node {door} to node {owner}");
        }
        assert_eq!(node.metric("ftp_data_connections_refused_total{reason=\"unexpected\"}"), None);
    }
}

#[test]
fn ftps_resumes_its_session_over_a_data_connection_to_another_node() {
    let authority = Authority::new();
    let files = authority.sign("localhost");
    let (chain, keys) = (files.chain.display().to_string(), files.key.display().to_string());
    let settings = [("tls_certificates", &*chain), ("tls_keys", &*keys), ("tls_data_reuse", "required")];
    let site = Site::start(2, &settings);
    site.wait_for_shares(&[0, 1]);
    let content = bytes(3, 300_001);
    for version in [&TLS12, &TLS13] {
        let client = authority.client_of(version);
        let mut session = SecureDialogue::explicit(&client, site.nodes[0].address);
        session.login("demo", "x");
        for round in 0..2 {
            let name = format!("file-{round}");
            let door = site.door(1, session.epsv());
            let data = Connector::new().connect(door).unwrap();
            session.command(&format!("STOR {name}"), 150);
            let mut data = client.encrypt(data).unwrap();
            data.write_all(&content).unwrap();
            end(data);
            session.expect(226);
            assert_eq!(site.read(&name), content);

            let door = site.door(1, session.epsv());
            let data = Connector::new().connect(door).unwrap();
            session.command(&format!("RETR {name}"), 150);
            let mut data = client.encrypt(data).unwrap();
            let mut received = Vec::new();
            data.read_to_end(&mut received).unwrap();
            session.expect(226);
            assert_eq!(received, content);
        }
    }
    site.nodes[1].wait_for_metric("ftp_relayed_total{to=\"ftp-0\"}", |count| count == 8.0);
}

/// A client that is reset sends RST; nothing after it is an end of file.
#[test]
fn an_upload_that_is_reset_at_another_node_is_not_confirmed() {
    let site = Site::leased(2);
    for round in 0..30 {
        let mut session = site.login(0);
        session.command("TYPE I", 200);
        let door = site.door(1, session.epsv());
        session.command("STOR file", 150);
        let mut data = session.data_connection(door);
        data.write_all(&bytes(1, 1000 + 100_000 * (round % 5))).unwrap();
        thread::sleep(Duration::from_millis(round as u64 % 7));
        reset(data);
        session.expect(426);
    }
}

#[test]
fn an_upload_is_not_confirmed_if_the_node_that_carries_it_is_killed() {
    let mut site = Site::leased(2);
    let mut session = site.login(0);
    session.command("TYPE I", 200);
    let door = site.door(1, session.epsv());
    session.command("STOR file", 150);
    let mut data = session.data_connection(door);
    data.write_all(&bytes(1, 3_000_000)).unwrap();
    site.nodes[1].daemon.kill();
    session.expect(426);
    // The client sees a reset, not an end.
    let error = data.read(&mut [0]).unwrap_err();
    assert!(is_closed(&error), "{error}");
}

#[test]
fn a_balancer_that_chooses_any_node_gets_the_clients_connections_to_their_session() {
    let site = Site::start(2, &[("trusted_balancers", "127.0.0.1/32")]);
    site.wait_for_shares(&[0, 1]);
    let (client, balancer) = (site.loopback.address(100), site.loopback.address(2));
    for connector in
        [Connector::new().proxy_v1(client, balancer), Connector::new().proxy_v2(client, balancer)]
    {
        let mut session = Dialogue::connect_with(&connector, site.nodes[0].address);
        session.login("demo", "x");
        let content = bytes(7, 500_000);
        store_through(&mut session, |passive| site.door(1, passive), "file", &content);
        assert_eq!(site.read("file"), content);
        let received = receive_through(&mut session, |passive| site.door(1, passive), "RETR file");
        assert!(received == content);
    }
    assert_eq!(site.nodes[1].metric("ftp_relayed_total{to=\"ftp-0\"}"), Some(4.0));
}

/// Such a client looks like another node that carries a connection, until no header comes.
#[test]
fn a_client_with_the_address_of_a_node_is_served() {
    let site = Site::leased(2);
    let connector = Connector::new().from(site.nodes[1].address.ip());
    let mut session = Dialogue::connect_with(&connector, site.nodes[0].address);
    session.login("demo", "x");
    let content = bytes(7, 500_000);
    for door in 0..2 {
        store_through(&mut session, |passive| site.door(door, passive), "file", &content);
        assert_eq!(site.read("file"), content);
        let received = receive_through(&mut session, |passive| site.door(door, passive), "RETR file");
        assert!(received == content);
    }
}

#[test]
fn a_connection_beyond_max_relayed_is_closed_and_counted() {
    let site = Site::start(2, &[("max_relayed", "1")]);
    site.wait_for_shares(&[0, 1]);
    let mut sessions: Vec<Dialogue> = (0..2).map(|_| site.login(0)).collect();
    let door = site.door(1, sessions[0].epsv());
    sessions[0].command("STOR first", 150);
    let mut first = sessions[0].data_connection(door);
    site.nodes[1].wait_for_metric("ftp_relayed", |count| count == 1.0);
    let door = site.door(1, sessions[1].epsv());
    sessions[1].command("STOR second", 150);
    // The reset may arrive before connect() returns.
    let ended = Connector::new().connect(door).and_then(|mut second| second.read(&mut [0]));
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| is_closed(&error)));
    sessions[1].expect(425);
    assert_eq!(site.nodes[1].metric("ftp_relay_refused_total{reason=\"limit\"}"), Some(1.0));
    assert_eq!(site.nodes[1].metric("ftp_limit{limit=\"max_relayed\"}"), Some(1.0));
    first.write_all(b"content").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    sessions[0].expect(226);
    assert_eq!(site.read("first"), b"content");
}

#[test]
fn nodes_with_slices_by_the_number_in_their_name_carry_connections_to_each_other() {
    let site = Site::start(3, &[("cluster_size", "3")]);
    for (owner, slice) in ["20000-20009", "20010-20019", "20020-20029"].into_iter().enumerate() {
        site.nodes[owner].daemon.wait_for_message("ready", &[("passive_ports", slice)]);
        let mut session = site.login(owner);
        let content = bytes(owner as u64, 100_000);
        store_through(&mut session, |passive| site.door((owner + 1) % 3, passive), "file", &content);
        assert_eq!(site.read("file"), content);
    }
}
