//! A session on each node, through the public address.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use common::admin_api::{NodeView, SessionView};

use super::{
    Doctor,
    cluster::{control_port, owns, takes_sessions},
    doors::SeenDoors,
    findings::Finding,
    ftp::{self, FtpClient, FtpError},
    report::Report,
    trust::SessionTls,
};

/// Connections for each node that the balancer may choose before the doctor gives up.
const TRIES: usize = 6;

/// A session of the doctor.
pub(crate) struct NodeSession {
    /// The node's name; `the node` if authd does not tell the nodes.
    pub(crate) node: String,
    pub(crate) client: FtpClient,
    tls: Option<SessionTls>,
}

/// Logs in until every node has a session. Empty: no login succeeded, and a line says why.
pub(crate) async fn open(
    doctor: &Doctor,
    nodes: &[NodeView],
    doors: &SeenDoors,
    report: &mut Report<'_>,
) -> Vec<NodeSession> {
    let Some(&address) = doors.working.first() else {
        report.skipped("login", "no control port works");
        return Vec::new();
    };
    if doors.is_untrusted && !doctor.insecure {
        report.skipped(
            "login",
            "not tried, because the password would go to a server with a wrong certificate; --insecure tries",
        );
        return Vec::new();
    }
    let before = doctor.sessions().await;
    let serving: Vec<&NodeView> = nodes.iter().filter(|node| takes_sessions(node)).collect();
    let wanted: Vec<&NodeView> = serving.iter().copied().filter(|node| doctor.wants(&node.name)).collect();
    let mut known = before;
    let mut sessions: Vec<NodeSession> = Vec::new();
    let mut addresses: HashMap<String, SessionView> = HashMap::new();
    let (mut tries, mut failures) = (0, Vec::new());
    while tries < TRIES * serving.len().max(1) && (sessions.is_empty() || sessions.len() < wanted.len()) {
        tries += 1;
        match log_in(doctor, address, doors.has_tls, None).await {
            Ok((mut client, tls)) => {
                let now = doctor.sessions().await;
                let new = now.iter().find(|session| !known.iter().any(|old| old.id == session.id)).cloned();
                let node = node_of(&mut client, nodes, new.as_ref()).await;
                known = now;
                let is_wanted = doctor.only.as_ref().is_none_or(|only| *only == node);
                if let Some(new) = new.filter(|_| is_wanted) {
                    addresses.entry(node.clone()).or_insert(new);
                }
                if !is_wanted || sessions.iter().any(|session| session.node == node) {
                    client.quit().await;
                } else {
                    sessions.push(NodeSession { node, client, tls });
                }
            }
            Err(error) if is_final(&error) => {
                login_failed(doctor, &error, report);
                return sessions;
            }
            Err(error) => failures.push(error),
        }
    }
    if sessions.is_empty()
        && let Some(error) = failures.first()
    {
        login_failed(doctor, error, report);
        return sessions;
    }
    sessions.sort_by(|one, other| one.node.cmp(&other.node));
    summarise(doctor, &wanted, &sessions, tries, &failures, report).await;
    judge_addresses(&sessions, &addresses, report);
    judge_certificates(&sessions, report);
    if sessions.len() > 1 && doors.has_tls {
        resumption(doctor, address, nodes, sessions.len(), report).await;
    }
    sessions
}

/// One session: TLS if the node has it, then the login. `tls`: with the tickets of an earlier session.
pub(crate) async fn log_in(
    doctor: &Doctor,
    address: SocketAddr,
    has_tls: bool,
    tls: Option<SessionTls>,
) -> Result<(FtpClient, Option<SessionTls>), FtpError> {
    let client = FtpClient::connect(address, None, doctor.limit).await?;
    let (mut client, tls) = match (has_tls, tls.or_else(|| doctor.session_tls().ok())) {
        (true, Some(tls)) => {
            let (client, is_encrypted) = client.auth_tls(tls.clone()).await?;
            if !is_encrypted {
                let reply = ftp::FtpReply { code: 502, text: "this node offers no TLS".to_owned() };
                return Err(FtpError::Reply { command: "AUTH TLS".to_owned(), reply });
            }
            (client, Some(tls))
        }
        _ => (client, None),
    };
    client.login(&doctor.user, &doctor.password).await?;
    Ok((client, tls))
}

/// The node of a session: the owner of the passive port that it reserves, or what authd says.
async fn node_of(client: &mut FtpClient, nodes: &[NodeView], session: Option<&SessionView>) -> String {
    if let Ok(port) = client.epsv().await
        && let Some(node) = nodes.iter().find(|node| owns(node, port))
    {
        return node.name.to_string();
    }
    session.map_or_else(|| "the node".to_owned(), |session| session.node.to_string())
}

/// True if another connection would get the same answer.
fn is_final(error: &FtpError) -> bool {
    matches!(error, FtpError::Reply { reply, .. } if matches!(reply.code, 500 | 530 | 534 | 550))
}

fn login_failed(doctor: &Doctor, error: &FtpError, report: &mut Report<'_>) {
    let name = format!("login as {}", doctor.user);
    match error {
        // A reply to something that the client has not sent: the balancer's header.
        FtpError::Reply { reply, .. } if reply.code == 500 => {
            report.fail(&name, Finding::HeaderNotTrusted, format!("{error}: a reply to a line not sent"));
        }
        FtpError::Reply { reply, .. } if reply.code == 421 => {
            report.fail(&name, Finding::LoginUnavailable, error.to_string());
        }
        FtpError::Reply { reply, .. } if reply.code == 502 => {
            report.fail(&name, Finding::NoTls, error.to_string());
        }
        FtpError::Reply { .. } => report.fail(&name, Finding::LoginRefused, error.to_string()),
        _ => report.fail(&name, Finding::ClosedWithoutGreeting, error.to_string()),
    }
}

async fn summarise(
    doctor: &Doctor,
    wanted: &[&NodeView],
    sessions: &[NodeSession],
    tries: usize,
    failures: &[FtpError],
    report: &mut Report<'_>,
) {
    let names: Vec<&str> = sessions.iter().map(|session| session.node.as_str()).collect();
    if !names.is_empty() {
        report.ok(&format!("login as {}", doctor.user), format!("on {}", names.join(", ")));
    }
    if let Some(error) = failures.first() {
        let text = format!("{} of {tries} failed, for example: {error}", failures.len());
        let finding = match error {
            FtpError::Reply { reply, .. } if reply.code == 502 => Finding::NoTls,
            _ => Finding::SomeConnectionsFail,
        };
        report.fail("control connections", finding, text);
    }
    for node in wanted.iter().filter(|node| !names.contains(&node.name.as_str())) {
        let direct = match (node.address, control_port(node)) {
            (Some(address), Some(port)) => {
                let limit = doctor.limit.min(Duration::from_secs(2));
                match FtpClient::connect((address, port).into(), None, limit).await {
                    Ok(client) => {
                        client.quit().await;
                        format!("; at {address}:{port} it greets")
                    }
                    Err(_) => format!("; {address}:{port} is not reached from here"),
                }
            }
            _ => String::new(),
        };
        report.fail(
            &format!("node {}", node.name),
            Finding::NodeNotReached,
            format!("none of {tries} connections reached it{direct}"),
        );
    }
}

/// Compares the address that authd lists for a session with the address of this host.
fn judge_addresses(
    sessions: &[NodeSession],
    addresses: &HashMap<String, SessionView>,
    report: &mut Report<'_>,
) {
    let mut right = Vec::new();
    for session in sessions {
        let Some(seen) = addresses.get(&session.node) else { continue };
        let (seen, local) = (seen.address.to_canonical(), session.client.local.ip().to_canonical());
        let name = format!("client address on {}", session.node);
        if seen == local {
            right.push(local);
        } else if seen == session.client.peer.ip().to_canonical() {
            report.fail(
                &name,
                Finding::ClientAddressHidden,
                format!("the node sees {seen}, the balancer's address, instead of {local}"),
            );
        } else {
            let text = format!("the node sees {seen}; this host's address is {local}");
            report.warn(&name, Finding::ClientAddressTranslated, text);
        }
    }
    if let Some(address) = right.first().filter(|_| right.len() == addresses.len()) {
        report.ok("client address", format!("the nodes see {address}, which is this host's"));
    }
}

fn judge_certificates(sessions: &[NodeSession], report: &mut Report<'_>) {
    let seen = sessions.iter().filter_map(|session| Some((&session.node, session.tls.as_ref()?)));
    let leaves: Vec<_> = seen.filter_map(|(node, tls)| Some((node, tls.certificate()?))).collect();
    let Some((first, expected)) = leaves.first() else { return };
    for (node, certificate) in &leaves[1..] {
        if certificate.leaf != expected.leaf {
            let fault = certificate.fault.as_ref().map(|(_, text)| format!(": {text}")).unwrap_or_default();
            let text = format!("another one than {first}{fault}");
            report.warn(&format!("certificate of {node}"), Finding::CertificatesDiffer, text);
        }
    }
}

/// Connects with the tickets of one session until every other node has been met. `count` nodes are known.
async fn resumption(
    doctor: &Doctor,
    address: SocketAddr,
    nodes: &[NodeView],
    count: usize,
    report: &mut Report<'_>,
) {
    // A session of its own: its tickets are used up here.
    let Ok((mut client, Some(tls))) = log_in(doctor, address, true, None).await else { return };
    let origin = node_of(&mut client, nodes, None).await;
    client.quit().await;
    let mut kinds: HashMap<String, bool> = HashMap::new();
    for _ in 0..TRIES * count {
        if kinds.len() + 1 >= count {
            break;
        }
        let Ok((mut client, _)) = log_in(doctor, address, true, Some(tls.clone())).await else { continue };
        let node = node_of(&mut client, nodes, None).await;
        if node != origin {
            kinds.entry(node).or_insert(client.is_resumed == Some(true));
        }
        client.quit().await;
    }
    let fresh: Vec<&str> =
        kinds.iter().filter(|(_, resumed)| !**resumed).map(|(node, _)| node.as_str()).collect();
    if !fresh.is_empty() {
        let text = format!("{} does not resume TLS sessions of {origin}", fresh.join(", "));
        report.warn("TLS resumption", Finding::NotResumed, text);
    } else if !kinds.is_empty() {
        report
            .ok("TLS resumption", format!("sessions of {origin} are resumed on {} other nodes", kinds.len()));
    }
}
