//! PROXY headers that claim to come from a relay.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cluster_tests::{
    dialogue::Dialogue,
    proxy::{Connector, header_v2},
};
use common::registry::SharedKey;
use ftpd::protocol::relayed::{Relayed, seal};

use crate::support::Site;

/// The address from which a test connects: that of no node, balancer or client.
const NEIGHBOUR: u8 = 77;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The upload of a session at the node `ftp-0`, which waits for its data connection.
struct Upload {
    session: Dialogue,
    passive: SocketAddr,
    client: SocketAddr,
}

impl Upload {
    fn begin(site: &Site) -> Self {
        let mut session = site.login(0);
        session.command("TYPE I", 200);
        let passive = session.epsv();
        session.command("STOR file", 150);
        let client = SocketAddr::new(session.local_address().ip(), 40000);
        Self { session, passive, client }
    }

    fn sealed(&self, key: &SharedKey, time: u64) -> Vec<u8> {
        let port = self.passive.port();
        let relayed = Relayed { client: self.client, reached: self.passive, port };
        seal(&relayed, &"ftp-0".parse().unwrap(), key, time)
    }
}

fn connect(site: &Site, address: SocketAddr) -> TcpStream {
    Connector::new().from(site.loopback.address(NEIGHBOUR)).connect(address).unwrap()
}

/// Sends a header and content from a neighbour. Returns true if the node closes the connection.
fn is_refused(site: &Site, passive: SocketAddr, header: &[u8]) -> bool {
    let mut data = connect(site, passive);
    let _ = data.write_all(&[header, b"stolen"].concat());
    matches!(data.read(&mut [0]), Ok(0) | Err(_))
}

#[test]
fn a_header_with_a_valid_mac_is_accepted_from_any_address() {
    let site = Site::leased(1);
    let key = site.relay_key();
    let mut upload = Upload::begin(&site);
    let mut data = connect(&site, upload.passive);
    data.write_all(&upload.sealed(&key, now())).unwrap();
    data.write_all(b"content").unwrap();
    drop(data);
    upload.session.expect(226);
    assert_eq!(site.read("file"), b"content");
    // The header may come in parts.
    let mut upload = Upload::begin(&site);
    let mut data = connect(&site, upload.passive);
    let header = upload.sealed(&key, now());
    for part in header.chunks(20) {
        data.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    data.write_all(b"in parts").unwrap();
    drop(data);
    upload.session.expect(226);
    assert_eq!(site.read("file"), b"in parts");
}

#[test]
fn forged_old_and_doubled_headers_are_refused_logged_and_counted() {
    let site = Site::leased(1);
    let key = site.relay_key();
    let mut upload = Upload::begin(&site);
    let valid = upload.sealed(&key, now());
    let mut changed = valid.clone();
    *changed.last_mut().unwrap() ^= 1;
    // The client's address, in the fixed part.
    let mut other_client = valid.clone();
    other_client[19] ^= 1;
    let old = upload.sealed(&key, now() - 11_000);
    let future = upload.sealed(&key, now() + 11_000);
    let foreign = upload.sealed(&SharedKey::random(now()), now());
    let tlv = &valid[28..];
    let mut doubled = [&valid[..], tlv].concat();
    let length = u16::try_from(doubled.len() - 16).unwrap().to_be_bytes();
    doubled[14..16].copy_from_slice(&length);
    let without_mac = header_v2(upload.client, upload.passive);
    for (header, metric) in [
        (&changed, "ftp_relay_refused_total{reason=\"wrong_mac\"}"),
        (&other_client, "ftp_relay_refused_total{reason=\"wrong_mac\"}"),
        (&old, "ftp_relay_refused_total{reason=\"expired\"}"),
        (&future, "ftp_relay_refused_total{reason=\"expired\"}"),
        (&foreign, "ftp_relay_refused_total{reason=\"unknown_key\"}"),
        (&doubled, "ftp_relay_refused_total{reason=\"malformed\"}"),
        (&without_mac, "ftp_data_connections_refused_total{reason=\"proxy_header\"}"),
    ] {
        let node = &site.nodes[0];
        let before = node.metric(metric).unwrap_or(0.0);
        let lines = node.daemon.lines().len();
        assert!(is_refused(&site, upload.passive, header), "{metric}");
        assert_eq!(node.metric(metric), Some(before + 1.0), "{metric}");
        node.daemon.wait_for_line_after(lines, |line| {
            line.contains("WARN") && line.contains("data connection refused") && line.contains("port=")
        });
    }
    // The session still waits for the client's own connection.
    let mut data = upload.session.data_connection(upload.passive);
    data.write_all(b"content").unwrap();
    drop(data);
    upload.session.expect(226);
    assert_eq!(site.read("file"), b"content");
}

#[test]
fn a_header_for_another_node_or_port_is_refused() {
    let site = Site::leased(1);
    let key = site.relay_key();
    let upload = Upload::begin(&site);
    let port = upload.passive.port();
    let relayed = Relayed { client: upload.client, reached: upload.passive, port };
    let other_port = Relayed { port: if port == 20000 { 20001 } else { 20000 }, ..relayed };
    for header in [
        seal(&relayed, &"ftp-1".parse().unwrap(), &key, now()),
        seal(&other_port, &"ftp-0".parse().unwrap(), &key, now()),
    ] {
        assert!(is_refused(&site, upload.passive, &header));
    }
    let refused = site.nodes[0].metric("ftp_relay_refused_total{reason=\"wrong_mac\"}");
    assert_eq!(refused, Some(2.0));
}

#[test]
fn a_connection_that_was_carried_once_is_not_carried_again() {
    let site = Site::leased(2);
    let key = site.relay_key();
    let mut upload = Upload::begin(&site);
    let port = upload.passive.port();
    let relayed = Relayed { client: upload.client, reached: upload.passive, port };
    // As a relay with an old map sends it: to the node that does not own the port any more.
    let header = seal(&relayed, &"ftp-1".parse().unwrap(), &key, now());
    let mut data =
        Connector::new().from(site.nodes[0].address.ip()).connect(site.door(1, upload.passive)).unwrap();
    data.write_all(&header).unwrap();
    assert!(matches!(data.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(site.nodes[1].metric("ftp_relay_refused_total{reason=\"twice\"}"), Some(1.0));
    assert_eq!(site.nodes[1].metric("ftp_relayed_total{to=\"ftp-0\"}"), None);
    let mut data = upload.session.data_connection(upload.passive);
    data.write_all(b"content").unwrap();
    drop(data);
    upload.session.expect(226);
}
