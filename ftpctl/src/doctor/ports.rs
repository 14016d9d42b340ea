//! The passive ports: every block carries a listing, by EPSV and PASV, over IPv4 and IPv6.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use common::{admin_api::NodeView, node::PortRange};

use super::{
    Doctor,
    doors::SeenDoors,
    findings::Finding,
    ftp::{FtpClient, FtpError},
    report::Report,
    sessions::{self, NodeSession},
};

/// Ports of a block that are tried.
const PORTS_PER_BLOCK: usize = 3;

/// Time for the blocks of one node.
const NODE_TIME: Duration = Duration::from_secs(30);

/// Largest listing that is read.
const LISTING: usize = 1 << 20;

/// What the ports of a block showed.
#[derive(Default)]
struct BlockResult {
    good: BTreeSet<u16>,
    bad: BTreeMap<u16, (Finding, String)>,
}

/// Returns the nodes of which no port works.
pub(crate) async fn check(
    doctor: &Doctor,
    nodes: &[NodeView],
    doors: &SeenDoors,
    sessions: &mut [NodeSession],
    report: &mut Report<'_>,
) -> Vec<String> {
    let mut without = Vec::new();
    let (mut blocks, mut ports, mut not_resumed) = (0, 0, Vec::new());
    let mut is_well = true;
    for session in sessions.iter_mut() {
        let owned = nodes.iter().find(|node| node.name.as_str() == session.node);
        let owned = owned.map_or_else(|| vec![(1, u16::MAX)], blocks_of);
        let mut results: Vec<((u16, u16), BlockResult)> =
            owned.into_iter().map(|block| (block, BlockResult::default())).collect();
        match try_blocks(&mut session.client, &mut results).await {
            Ok(Some(false)) => not_resumed.push(session.node.clone()),
            Ok(_) => {}
            Err(error) => {
                let finding = match &error {
                    FtpError::Reply { reply, .. } if matches!(reply.code, 421 | 425) => {
                        Finding::PassivePortsUsedUp
                    }
                    _ => Finding::ListingFailed,
                };
                report.fail(&format!("EPSV on {}", session.node), finding, error.to_string());
                is_well = false;
            }
        }
        if results.iter().all(|(_, result)| result.good.is_empty()) {
            without.push(session.node.clone());
        }
        for (block, result) in &results {
            blocks += usize::from(!result.good.is_empty());
            ports += result.good.len();
            is_well &= report_block(&session.node, *block, result, report);
        }
    }
    if is_well && ports > 0 {
        report.ok("passive ports", format!("EPSV: {ports} ports of {blocks} blocks carry a listing"));
    }
    if !not_resumed.is_empty() {
        let text = format!("not on data connections to {}", not_resumed.join(", "));
        report.warn("TLS resumption", Finding::DataNotResumed, text);
    }
    let can_pasv =
        |session: &&mut NodeSession| session.client.peer.is_ipv4() && !without.contains(&session.node);
    if let Some(session) = sessions.iter_mut().find(can_pasv) {
        pasv(session, report).await;
    }
    // The sessions above use the first address; each other family gets a session of its own.
    let first = doors.working.first();
    let other = doors.working.iter().find(|address| first.is_some_and(|f| f.is_ipv4() != address.is_ipv4()));
    if let Some(other) = other {
        other_family(doctor, *other, doors.has_tls, report).await;
    }
    without
}

/// Lists over a new port again and again, until each block has been seen often enough. Returns whether the
/// data connections resumed the TLS session of the control connection.
async fn try_blocks(
    client: &mut FtpClient,
    results: &mut [((u16, u16), BlockResult)],
) -> Result<Option<bool>, FtpError> {
    let end = Instant::now() + NODE_TIME;
    let most = results.len() * PORTS_PER_BLOCK * 8;
    let mut resumed = None;
    for _ in 0..most {
        let is_done = |((from, to), result): &((u16, u16), BlockResult)| {
            let wanted = PORTS_PER_BLOCK.min(usize::from(to - from) + 1);
            result.good.len() >= wanted || result.bad.len() >= 2
        };
        if results.iter().all(is_done) || Instant::now() > end {
            break;
        }
        let port = client.epsv().await?;
        let block = results.iter_mut().find(|((from, to), _)| (*from..=*to).contains(&port));
        // A block that moved to this node since it was asked.
        let Some((_, result)) = block else { continue };
        if result.bad.len() >= 2 {
            continue;
        }
        let address = client.data_address(port);
        match list(client, address).await {
            Ok(is_resumed) => {
                resumed = is_resumed.map(|new| resumed.unwrap_or(true) && new);
                result.good.insert(port);
            }
            Err(error) => {
                let finding = match &error {
                    FtpError::Refused => Finding::PassivePortRefused,
                    FtpError::Silent(_) => Finding::PassivePortSilent,
                    FtpError::Reply { reply, .. } if matches!(reply.code, 425 | 426) => {
                        Finding::PassivePortClosed
                    }
                    FtpError::Closed | FtpError::Broken(_) | FtpError::NoReply(_) | FtpError::Tls(_) => {
                        Finding::PassivePortClosed
                    }
                    _ => return Err(error),
                };
                let waits = matches!(error, FtpError::NoReply(_));
                result.bad.insert(port, (finding, error.to_string()));
                if waits {
                    // The node still waits for the data connection.
                    client.send("ABOR").await?;
                    while client.reply_within(Duration::from_secs(2)).await.is_ok() {}
                }
            }
        }
    }
    Ok(resumed)
}

async fn list(client: &mut FtpClient, address: SocketAddr) -> Result<Option<bool>, FtpError> {
    let data = client.begin("LIST", address).await?;
    let is_resumed = data.is_resumed();
    client.read_all(data, LISTING).await?;
    Ok(is_resumed)
}

/// Returns true if all tried ports of the block work.
fn report_block(node: &str, block: (u16, u16), result: &BlockResult, report: &mut Report<'_>) -> bool {
    let Some((finding, text)) = result.bad.values().next() else { return true };
    let name = format!("passive ports {}-{}", block.0, block.1);
    let tried: Vec<String> = result.bad.keys().map(u16::to_string).collect();
    let rest = if result.good.is_empty() { "" } else { "; other ports of the block work" };
    let text = format!("of {node}: {text} (port {}){rest}", tried.join(", "));
    report.fail(&name, *finding, text);
    false
}

async fn pasv(session: &mut NodeSession, report: &mut Report<'_>) {
    let client = &mut session.client;
    let address = match client.pasv().await {
        Ok(address) => address,
        Err(error) => {
            report.fail("PASV", Finding::ListingFailed, error.to_string());
            return;
        }
    };
    let expected = client.peer.ip().to_canonical();
    if address.ip() == expected {
        match list(client, address).await {
            Ok(_) => report.ok("PASV", format!("names {expected}, and carries a listing")),
            Err(error) => report.fail("PASV", Finding::PassivePortClosed, error.to_string()),
        }
        return;
    }
    let private = match address.ip() {
        IpAddr::V4(ip) if ip.is_private() || ip.is_loopback() => ", a private address",
        _ => "",
    };
    let text = format!("names {}{private}; clients are connected to {expected}", address.ip());
    report.fail("PASV", Finding::PassiveAddressWrong, text);
}

async fn other_family(doctor: &Doctor, address: SocketAddr, has_tls: bool, report: &mut Report<'_>) {
    let name = if address.is_ipv6() { "EPSV over IPv6" } else { "EPSV over IPv4" };
    let mut client = match sessions::log_in(doctor, address, has_tls, None).await {
        Ok((client, _)) => client,
        Err(error) => {
            report.fail(name, Finding::LoginUnavailable, error.to_string());
            return;
        }
    };
    let listed = async {
        let port = client.epsv().await?;
        let address = client.data_address(port);
        list(&mut client, address).await
    };
    match listed.await {
        Ok(_) => report.ok(name, format!("a session through {} lists", address.ip())),
        Err(FtpError::Refused) => report.fail(name, Finding::PassivePortRefused, "connection refused"),
        Err(error @ FtpError::Silent(_)) => report.fail(name, Finding::PassivePortSilent, error.to_string()),
        Err(error) => report.fail(name, Finding::PassivePortClosed, error.to_string()),
    }
    client.quit().await;
}

/// The first and the last port of each block of the node.
fn blocks_of(node: &NodeView) -> Vec<(u16, u16)> {
    node.passive_ports.iter().copied().map(PortRange::into).collect()
}
