//! `/v1/status` and `/v1/problems`: the cluster in one answer; what is wrong now or was in the last minutes.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use common::{
    admin_api::{BalancerView, NodeView, ProblemSeverity, ProblemView, ProblemsView, StatusView},
    clock::{rfc3339, since_epoch, unix_seconds},
    node::NodeState,
};
use redis::cmd;
use serde::Deserialize;

use super::{events, failures, nodes, registry};
use crate::{audit_window, error::ApiError, instances, service::Service};

/// A file operation that runs longer than this is a problem, in seconds.
const SLOW_OPERATION: f64 = 2.0;

/// An fsync is slow if it takes this many times the median of the nodes, and longer than [`SLOW_FSYNC`].
const FSYNC_FACTOR: f64 = 4.0;

/// In seconds.
const SLOW_FSYNC: f64 = 0.1;

/// Clocks may differ by this, in ms. A node's record is up to a refresh (5 s) old, so only a clock that is
/// ahead, or further behind than [`RECORD_AGE`], is known to be wrong.
const CLOCK_DIFFERENCE: u64 = 2000;

/// Maximum age of a node's record, in ms: a third of the longest usual `node_lease`.
const RECORD_AGE: u64 = 20_000;

/// For how many minutes refused uploads, operations and logins are shown, unless the query says otherwise.
const USUAL_MINUTES: u64 = 15;

/// A certificate that expires within this is a problem, in seconds.
const EXPIRY_WARNING: u64 = 14 * 24 * 3600;

/// The query of `GET /v1/problems`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProblemQuery {
    /// For how many minutes refused uploads, operations and logins are shown.
    minutes: Option<u64>,
}

/// The cluster in one answer.
///
/// # Errors
/// Redis cannot be reached.
pub async fn status(service: &Service) -> Result<StatusView, ApiError> {
    let registry = registry(service)?;
    let began = Instant::now();
    registry.link().query::<()>(&cmd("PING")).await?;
    let redis_seconds = Some(began.elapsed().as_secs_f64());
    let nodes = nodes::list(service).await?;
    let authds = instances::list(registry).await?;
    let (of_trail, _) = of_trail(service, USUAL_MINUTES).await;
    let of_events = events::problems(&events::show(service).await?);
    let activity = || nodes.iter().filter_map(|node| node.activity.as_ref());
    Ok(StatusView {
        time: rfc3339(unix_seconds()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sessions: nodes.iter().map(|node| u64::from(node.sessions)).sum(),
        transfers: nodes.iter().map(|node| u64::from(node.transfers)).sum(),
        upload_rate: activity().map(|activity| activity.upload_rate).sum(),
        download_rate: activity().map(|activity| activity.download_rate).sum(),
        redis_seconds,
        certificate_expiry: activity().filter_map(|activity| activity.certificate_expiry).min().map(rfc3339),
        problems: of_nodes(&nodes).len() + of_trail.len() + of_events.len(),
        balancers: balancers(&nodes),
        nodes,
        authds,
    })
}

/// The balancers, as the nodes see them, by address.
fn balancers(nodes: &[NodeView]) -> Vec<BalancerView> {
    let mut found = BTreeMap::<IpAddr, BalancerView>::new();
    for node in nodes {
        for seen in node.activity.iter().flat_map(|activity| &activity.balancers) {
            let address = seen.address;
            let view = found.entry(address).or_insert_with(|| BalancerView {
                address,
                connections: 0,
                nodes: Vec::new(),
                seconds: seen.seconds,
            });
            view.connections += u64::from(seen.connections);
            view.nodes.push(node.name.clone());
            view.seconds = view.seconds.min(seen.seconds);
        }
    }
    found.into_values().collect()
}

/// What is wrong now, and what was refused in the last minutes, the worst first.
///
/// # Errors
/// The query is invalid.
pub async fn problems(service: &Service, query: ProblemQuery) -> Result<ProblemsView, ApiError> {
    let minutes = query.minutes.unwrap_or(USUAL_MINUTES);
    if !(1..=audit_window::MINUTES).contains(&minutes) {
        let message = format!("minutes: expected a number from 1 to {}", audit_window::MINUTES);
        return Err(ApiError::InvalidRequest(message));
    }
    let (mut problems, mut unknown) = of_trail(service, minutes).await;
    match nodes::list(service).await {
        Ok(nodes) => {
            problems.extend(of_nodes(&nodes));
            match events::show(service).await {
                Ok(state) => problems.extend(events::problems(&state)),
                Err(_) => unknown.push("events".to_owned()),
            }
        }
        Err(ApiError::NoRedis) => unknown.push("nodes: authd has no Redis (setting redis_url)".to_owned()),
        Err(error) => {
            unknown.push("nodes".to_owned());
            problems.push(ProblemView {
                remedy: "check that Redis runs and that authd reaches it (redis_url)".to_owned(),
                ..problem("redis", ProblemSeverity::Critical, format!("authd: {error}"))
            });
        }
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    Ok(ProblemsView { time: rfc3339(unix_seconds()), problems, unknown })
}

/// The problems that the audit trail shows, and what could not be asked.
async fn of_trail(service: &Service, minutes: u64) -> (Vec<ProblemView>, Vec<String>) {
    // Without Redis there is no trail in it, which the list of nodes tells.
    let Some(registry) = &service.registry else { return (Vec::new(), Vec::new()) };
    match service.failures.failures(registry, minutes).await {
        Ok(found) => {
            let problem = |(cause, group): &_| failures::problem(cause, group, minutes);
            (found.iter().map(problem).collect(), Vec::new())
        }
        Err(_) => (Vec::new(), vec!["audit trail".to_owned()]),
    }
}

fn problem(kind: &str, severity: ProblemSeverity, text: String) -> ProblemView {
    ProblemView {
        kind: kind.to_owned(),
        severity,
        node: None,
        since: None,
        count: 1,
        text,
        remedy: String::new(),
        command: None,
        reason: None,
        parts: Vec::new(),
    }
}

/// The problems that the nodes' records show.
fn of_nodes(nodes: &[NodeView]) -> Vec<ProblemView> {
    let mut problems = Vec::new();
    if nodes.is_empty() {
        problems.push(ProblemView {
            remedy: "start the nodes; their log tells why they are not in the registry".to_owned(),
            ..problem("no_nodes", ProblemSeverity::Critical, "no node is in the registry".to_owned())
        });
    }
    let mut fsyncs: Vec<f64> =
        nodes.iter().filter_map(|node| Some(node.activity.as_ref()?.fsync_max)).collect();
    fsyncs.sort_by(f64::total_cmp);
    let median = fsyncs.get(fsyncs.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    for node in nodes {
        of_dependencies(node, &mut problems);
        of_activity(node, median, &mut problems);
    }
    problems
}

fn of_dependencies(node: &NodeView, problems: &mut Vec<ProblemView>) {
    for failing in &node.failing {
        let severity = if failing.required { ProblemSeverity::Critical } else { ProblemSeverity::Warning };
        let text = format!("{} fails: {}", failing.dependency, failing.error);
        problems.push(ProblemView {
            node: Some(node.name.clone()),
            since: Some(failing.since.clone()),
            remedy: format!("repair {}, or drain the node while the others work", failing.dependency),
            command: Some(format!("ftpctl drain {}", node.name)),
            ..problem("dependency", severity, text)
        });
    }
}

fn of_activity(node: &NodeView, median_fsync: f64, problems: &mut Vec<ProblemView>) {
    let Some(activity) = &node.activity else { return };
    let name = &node.name;
    let on_node =
        |kind, severity, text| ProblemView { node: Some(name.clone()), ..problem(kind, severity, text) };
    if activity.oldest_operation > SLOW_OPERATION {
        let what = &activity.oldest_operation_name;
        let text = format!("storage is slow: {what} waits for {:.1} s", activity.oldest_operation);
        problems.push(ProblemView {
            remedy: "check the file server and the network to it".to_owned(),
            command: Some(format!("ftpctl drain {name}")),
            ..on_node("storage_slow", ProblemSeverity::Critical, text)
        });
    }
    if activity.fsync_max > SLOW_FSYNC && activity.fsync_max > FSYNC_FACTOR * median_fsync {
        let text = format!(
            "fsync takes up to {:.0} ms, the median of the nodes is {:.0} ms",
            activity.fsync_max * 1000.0,
            median_fsync * 1000.0
        );
        problems.push(ProblemView {
            remedy: "compare the mount and the network of this node with those of the others".to_owned(),
            command: Some("ftpctl nodes".to_owned()),
            ..on_node("fsync_slow", ProblemSeverity::Warning, text)
        });
    }
    let now = u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX);
    let (ahead, behind) = (activity.clock.saturating_sub(now), now.saturating_sub(activity.clock));
    let is_wrong = ahead > CLOCK_DIFFERENCE || behind > RECORD_AGE + CLOCK_DIFFERENCE;
    if activity.clock > 0 && is_wrong {
        let difference = if ahead > 0 { "ahead of" } else { "behind" };
        let seconds = ahead.max(behind) / 1000;
        let text = format!("the clock is {seconds} s {difference} authd's");
        problems.push(ProblemView {
            remedy: "synchronize the clocks (NTP): hours and session tickets depend on them".to_owned(),
            ..on_node("clock", ProblemSeverity::Warning, text)
        });
    }
    if let Some(expiry) = activity.certificate_expiry {
        let left = expiry.saturating_sub(unix_seconds());
        if left < EXPIRY_WARNING {
            let (severity, state) = match left {
                0 => (ProblemSeverity::Critical, "expired"),
                _ => (ProblemSeverity::Warning, "expires"),
            };
            let text = format!("a TLS certificate {state} at {}", rfc3339(expiry));
            problems.push(ProblemView {
                remedy: "renew the certificate, then reload the node with SIGHUP".to_owned(),
                ..on_node("certificate", severity, text)
            });
        }
    }
    if node.state == NodeState::Draining {
        let text = format!("draining: {} transfers are left", node.transfers);
        problems.push(ProblemView {
            remedy: format!(
                "wait for its end; if it is to stay: ftpctl undrain {name}, or start it again then"
            ),
            command: Some(format!("ftpctl drain {name} --wait")),
            ..on_node("draining", ProblemSeverity::Info, text)
        });
    }
}

#[cfg(test)]
mod tests {
    use common::{
        live::{BalancerActivity, NodeActivity},
        node::NodeRecord,
        registry::NodeOrders,
    };

    use super::*;

    fn node(name: &str, activity: NodeActivity) -> NodeView {
        let slice = "50000-50003".parse().unwrap();
        let mut record = NodeRecord::new(name.parse().unwrap(), 1, slice);
        record.activity = Some(activity);
        nodes::view(record, &NodeOrders::default())
    }

    #[test]
    fn slow_storage_wrong_clocks_and_old_certificates_are_problems() {
        let fine = NodeActivity { fsync_max: 0.004, ..NodeActivity::default() };
        let nodes = [
            node("a", fine.clone()),
            node("b", NodeActivity { fsync_max: 0.9, oldest_operation: 25.0, ..fine.clone() }),
            node("c", NodeActivity { certificate_expiry: Some(1), clock: u64::MAX, ..fine }),
        ];
        let problems = of_nodes(&nodes);
        let kinds: Vec<&str> = problems.iter().map(|problem| problem.kind.as_str()).collect();
        assert_eq!(kinds, ["storage_slow", "fsync_slow", "clock", "certificate"]);
        assert_eq!(of_nodes(&nodes[..1]), []);
        assert_eq!(of_nodes(&[])[0].kind, "no_nodes");
    }

    #[test]
    fn balancers_are_summed_over_the_nodes() {
        let activity = |connections, seconds| {
            let address = [192, 0, 2, 1].into();
            let balancers = vec![BalancerActivity { address, connections, seconds }];
            NodeActivity { balancers, ..NodeActivity::default() }
        };
        let nodes = [node("a", activity(2, 30.0)), node("b", activity(3, 7.0))];
        let found = balancers(&nodes);
        assert_eq!((found.len(), found[0].connections, found[0].nodes.len()), (1, 5, 2));
        assert!((found[0].seconds - 7.0).abs() < f64::EPSILON);
    }
}
