//! Which transfers convert line ends: TYPE and the setting `ascii_conversion`.

use std::fs;

use cluster_tests::{
    clients::Clients,
    content::{bytes, sha256},
    dialogue::Dialogue,
    node::Node,
};

use crate::support::{at, start, stored};

/// Beginning of a PNG file. It contains CR LF and a lone LF, so that TYPE A damages it.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

/// Downloads with PASV and `command`.
fn passive_download(session: &mut Dialogue, command: &str) -> Vec<u8> {
    let address = session.pasv();
    let mut data = session.data_connection(address);
    session.command(command, 150);
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut data, &mut content).unwrap();
    session.expect(226);
    content
}

fn passive_upload(session: &mut Dialogue, command: &str, content: &[u8]) {
    let address = session.pasv();
    let data = session.data_connection(address);
    session.command(command, 150);
    crate::support::finish(data, content);
    session.expect(226);
}

/// .NET's and Mono's `FtpWebRequest` with the method `GetFileSize`, and then `GetDateTimestamp`.
#[test]
fn dotnet_get_file_size_works_although_it_sends_no_type() {
    let node = start();
    fs::write(at(&node, "img.png"), PNG).unwrap();
    for (method, answer) in [("SIZE img.png", "16"), ("MDTM img.png", "")] {
        let mut session = node.connect();
        session.command("USER demo", 331);
        session.command("PASS x", 230);
        session.command("OPTS utf8 on", 200);
        session.command("PWD", 257);
        let reply = session.command(method, 213).message();
        assert!(reply.starts_with(answer), "{reply}");
        session.quit();
    }
}

#[test]
fn a_client_that_sends_no_type_stores_and_fetches_every_byte() {
    let node = start();
    let mut session = node.login("demo", "x");
    let content = [PNG, &bytes(6, 300_000)].concat();
    passive_upload(&mut session, "STOR img.png", &content);
    assert_eq!(sha256(stored(&node, "img.png")), sha256(&content));
    assert_eq!(sha256(passive_download(&mut session, "RETR img.png")), sha256(&content));
    session.command("REST 8", 350);
    assert_eq!(sha256(passive_download(&mut session, "RETR img.png")), sha256(&content[8..]));
    session.command("REST 8", 350);
    passive_upload(&mut session, "STOR img.png", &content[8..]);
    passive_upload(&mut session, "APPE img.png", PNG);
    assert_eq!(sha256(stored(&node, "img.png")), sha256([&content[..], PNG].concat()));
    // Listings have CR LF in every TYPE.
    assert!(session.receive("LIST").ends_with(b" img.png\r\n"));
    assert_eq!(session.receive("NLST"), b"img.png\r\n");
}

#[test]
fn type_a_converts_until_type_i_or_rein() {
    let node = start();
    let mut session = node.login("demo", "x");
    let stat = |session: &mut Dialogue| session.command("STAT", 211).text();
    assert!(stat(&mut session).contains("TYPE: image (default)"));
    session.command("TYPE A", 200);
    assert!(stat(&mut session).contains("TYPE: ASCII,"));
    session.transmit("STOR text", b"a\r\nb\r\n");
    assert_eq!(stored(&node, "text"), b"a\nb\n");
    assert_eq!(session.receive("RETR text"), b"a\r\nb\r\n");
    session.command("SIZE text", 550);
    session.command("TYPE I", 200);
    assert!(stat(&mut session).contains("TYPE: image,"));
    assert_eq!(session.receive("RETR text"), b"a\nb\n");
    session.command("TYPE A", 200);
    assert_eq!(session.receive("RETR text"), b"a\r\nb\r\n");
    session.command("REIN", 220);
    session.login("demo", "x");
    assert_eq!(session.receive("RETR text"), b"a\nb\n");
    assert_eq!(session.command("SIZE text", 213).message(), "4");
}

#[test]
fn curl_transfers_text_with_type_a_and_bytes_otherwise() {
    let (node, clients) = (start(), Clients::with_home());
    fs::write(at(&node, "text"), b"a\nb\n").unwrap();
    let url = format!("ftp://demo:x@{}/text", node.address);
    let curl = |url: &str| clients.run("curl", ["-sS", url]).stdout;
    let moved = |direction: &str| {
        node.metric(&format!("ftp_transfer_bytes_total{{direction=\"{direction}\"}}")).unwrap_or_default()
    };
    // curl removes the CRs again. The node's byte count shows that it sent two of them.
    assert_eq!((curl(&format!("{url};type=a")), moved("download")), (b"a\nb\n".to_vec(), 6.0));
    assert_eq!((curl(&url), moved("download")), (b"a\nb\n".to_vec(), 6.0 + 4.0));
    clients.write("mine", "a\nb\n");
    clients.run("curl", ["-sS", "-T", "mine", &format!("{url};type=a")]);
    assert_eq!((stored(&node, "text"), moved("upload")), (b"a\nb\n".to_vec(), 6.0));
    clients.write("mine", PNG);
    clients.run("curl", ["-sS", "-T", "mine", &url]);
    assert_eq!(stored(&node, "text"), PNG);
}

#[test]
fn ascii_conversion_on_converts_from_login_without_type_a() {
    let node = Node::standalone().setting("ascii_conversion", "on").start();
    let mut session = node.login("demo", "x");
    assert!(session.command("STAT", 211).text().contains("TYPE: ASCII (default)"));
    session.transmit("STOR text", b"a\r\nb\r\n");
    assert_eq!(stored(&node, "text"), b"a\nb\n");
    session.command("SIZE text", 550);
    session.epsv();
    session.command("REST 1", 350);
    session.command("RETR text", 554);
    session.command("TYPE I", 200);
    assert_eq!(session.receive("RETR text"), b"a\nb\n");
}

#[test]
fn ascii_conversion_off_accepts_type_a_and_changes_no_byte() {
    let node = Node::standalone().setting("ascii_conversion", "off").start();
    let mut session = node.login("demo", "x");
    session.command("TYPE A", 200);
    assert!(session.command("STAT", 211).text().contains("TYPE: ASCII (line ends are not converted)"));
    session.transmit("STOR img.png", PNG);
    assert_eq!(stored(&node, "img.png"), PNG);
    assert_eq!(session.command("SIZE img.png", 213).message(), "16");
    session.command("REST 4", 350);
    assert_eq!(session.receive("RETR img.png"), &PNG[4..]);
    assert!(session.receive("LIST").ends_with(b" img.png\r\n"));
}
