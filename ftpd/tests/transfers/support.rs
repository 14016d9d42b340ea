//! Helpers of the transfer tests: start a node, log in, read stored files and metrics.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::PathBuf,
};

use cluster_tests::{dialogue::Dialogue, eventually, node::Node};

pub(crate) fn start() -> Node {
    Node::standalone().start()
}

pub(crate) fn login(node: &Node) -> Dialogue {
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    session
}

pub(crate) fn at(node: &Node, name: &str) -> PathBuf {
    node.root().join(name)
}

pub(crate) fn stored(node: &Node, name: &str) -> Vec<u8> {
    fs::read(at(node, name)).unwrap()
}

pub(crate) fn transfers(node: &Node, direction: &str, result: &str) -> f64 {
    node.metric(&format!("ftp_transfers_total{{direction=\"{direction}\",result=\"{result}\"}}"))
        .unwrap_or(0.0)
}

pub(crate) fn wait_for_size(node: &Node, name: &str, size: usize) {
    eventually("bytes to be in the file", || {
        let length = fs::metadata(at(node, name)).ok()?.len();
        (length >= size as u64).then_some(())
    });
}

/// Sends the rest of an upload and ends it.
pub(crate) fn finish(mut data: TcpStream, content: &[u8]) {
    data.write_all(content).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
}

pub(crate) fn read_to_end(data: &mut TcpStream) -> Vec<u8> {
    let mut content = Vec::new();
    data.read_to_end(&mut content).unwrap();
    content
}
