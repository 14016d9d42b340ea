//! What the doctor asks authd: the nodes and the sessions of its user.

use std::time::{Duration, Instant};

use common::{admin_api::NodeView, clock::since_epoch, live::NodeActivity, node::NodeState};

use super::{Doctor, findings::Finding, report::Report};
use crate::{api::Api, error::ConsoleError};

/// authd's answer took longer than this: a warning.
const SLOW_ANSWER: Duration = Duration::from_secs(1);

/// Redis or authd answered a node more slowly than this: a warning.
const SLOW_PART: f64 = 0.1;

/// A file operation that runs for longer hangs.
const HANGING: f64 = 5.0;

/// Clocks that differ by more are reported.
const CLOCK_TOLERANCE: f64 = 2.0;

/// Every node refreshes its record within this time.
const CLOCK_WATCH: Duration = Duration::from_secs(6);

/// Returns true if the node owns the passive port.
pub(crate) fn owns(node: &NodeView, port: u16) -> bool {
    node.passive_ports.iter().any(|ports| ports.contains(port))
}

pub(crate) fn takes_sessions(node: &NodeView) -> bool {
    node.state != NodeState::Draining
}

/// The control port, from the node's listening addresses.
pub(crate) fn control_port(node: &NodeView) -> Option<u16> {
    node.control.split(' ').next()?.rsplit(':').next()?.parse().ok()
}

async fn live_nodes(doctor: &Doctor, api: &Api) -> Result<Vec<NodeView>, ConsoleError> {
    doctor.ask(api, &["nodes"], &vec![]).await
}

/// Asks authd for the nodes, and judges what they say of themselves. Empty: nothing is known of the nodes.
pub(crate) async fn check(doctor: &Doctor, report: &mut Report<'_>) -> Vec<NodeView> {
    let Some(api) = &doctor.api else {
        report.skipped("authd", "no URL or no token: the nodes are not known (--url, --token-file)");
        return Vec::new();
    };
    let start = Instant::now();
    let url = api.url.as_str().trim_end_matches('/');
    let name = format!("authd {}", url.split("://").last().unwrap_or(url));
    let mut asked = live_nodes(doctor, api).await;
    let took = start.elapsed();
    if asked.as_ref().is_ok_and(|nodes| nodes.iter().any(|node| node.passive_ports.is_empty())) {
        // A node that has just started shows its blocks with its next refresh.
        tokio::time::sleep(CLOCK_WATCH).await;
        asked = live_nodes(doctor, api).await;
    }
    let nodes = match asked {
        Ok(nodes) => nodes,
        Err(ConsoleError::Refused { status: status @ (401 | 403), message }) => {
            report.fail(&name, Finding::TokenRefused, format!("answers {status}: {message}"));
            return Vec::new();
        }
        Err(ConsoleError::Refused { status, message }) => {
            report.fail(&name, Finding::RedisAway, format!("answers {status}: {message}"));
            return Vec::new();
        }
        Err(error) => {
            report.fail(&name, Finding::AuthdUnreachable, error.to_string());
            return Vec::new();
        }
    };
    let answered = format!("answers in {}", milliseconds(took));
    if took > SLOW_ANSWER {
        report.warn(&name, Finding::AuthdSlow, answered);
    } else {
        report.ok(&name, answered);
    }
    if nodes.is_empty() {
        report.fail("nodes", Finding::NoNodes, "authd knows no live node");
        return nodes;
    }
    let wanted: Vec<&NodeView> = nodes.iter().filter(|node| doctor.wants(&node.name)).collect();
    if let (Some(only), true) = (&doctor.only, wanted.is_empty()) {
        let known: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let text = format!("authd knows no such live node; it knows {}", known.join(", "));
        report.fail(&format!("node {only}"), Finding::NoNodes, text);
        return Vec::new();
    }
    judge(&wanted, report);
    nodes
}

fn judge(nodes: &[&NodeView], report: &mut Report<'_>) {
    let mut is_well = true;
    for node in nodes {
        let name = format!("node {}", node.name);
        let activity = node.activity.clone().unwrap_or_default();
        for part in &node.failing {
            let text = format!("{}: {} (since {})", part.dependency, part.error, part.since);
            if part.required {
                report.fail(&name, Finding::DependencyFailing, text);
            } else {
                report.warn(&name, Finding::DependencyFailing, text);
            }
            is_well = false;
        }
        if !takes_sessions(node) {
            report.warn(&name, Finding::NodeDraining, "drains: it takes no new sessions");
            is_well = false;
        }
        if node.passive_ports.is_empty() {
            report.fail(&name, Finding::NoPassivePorts, "owns no passive ports: PASV and EPSV get 425");
            is_well = false;
        }
        if activity.oldest_operation > HANGING {
            let text = format!(
                "a file operation runs for {:.0} s: {}",
                activity.oldest_operation, activity.oldest_operation_name
            );
            report.fail(&name, Finding::StorageHangs, text);
            is_well = false;
        }
        for (part, seconds) in [("Redis", activity.redis_seconds), ("authd", activity.authd_seconds)] {
            if let Some(seconds) = seconds.filter(|seconds| *seconds > SLOW_PART) {
                report.warn(
                    &name,
                    Finding::RedisSlow,
                    format!("{part} answers in {:.0} ms", seconds * 1000.0),
                );
                is_well = false;
            }
        }
    }
    let mut versions: Vec<&str> = nodes.iter().map(|node| node.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        report.warn("versions", Finding::VersionsDiffer, versions.join(", "));
    }
    if is_well {
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let latency = |part: fn(&NodeActivity) -> Option<f64>| {
            let seconds = nodes.iter().filter_map(|node| part(node.activity.as_ref()?));
            seconds.fold(None, |most: Option<f64>, next| Some(most.map_or(next, |most| most.max(next))))
        };
        let mut text = format!("{}: all dependencies work", names.join(", "));
        for (part, seconds) in
            [("Redis", latency(|a| a.redis_seconds)), ("authd", latency(|a| a.authd_seconds))]
        {
            if let Some(seconds) = seconds {
                text.push_str(&format!("; {part} in {:.1} ms", seconds * 1000.0));
            }
        }
        report.ok("nodes", text);
    }
}

/// Compares the nodes' clocks with this host's. A node's record is a few seconds old, so the doctor watches
/// until the node has written it again, and takes the youngest.
pub(crate) async fn check_clocks(doctor: &Doctor, report: &mut Report<'_>) {
    let Some(api) = &doctor.api else { return };
    let mut youngest: Vec<(String, f64)> = Vec::new();
    let start = Instant::now();
    while start.elapsed() < CLOCK_WATCH {
        let Ok(nodes) = live_nodes(doctor, api).await else { return };
        let now = since_epoch().as_secs_f64();
        for node in nodes.into_iter().filter(|node| doctor.wants(&node.name)) {
            let Some(clock) = node.activity.map(|activity| activity.clock).filter(|clock| *clock > 0) else {
                continue;
            };
            // Milliseconds since 1970 are exact in a double.
            let ahead = clock as f64 / 1000.0 - now;
            match youngest.iter_mut().find(|(name, _)| name == node.name.as_str()) {
                Some((_, most)) => *most = most.max(ahead),
                None => youngest.push((node.name.to_string(), ahead)),
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // A node that has just started has not written its clock at the first looks.
    if youngest.is_empty() {
        report.skipped("clocks", "the nodes do not publish their clocks");
    } else {
        judge_clocks(&youngest, report);
    }
}

fn judge_clocks(youngest: &[(String, f64)], report: &mut Report<'_>) {
    let mut is_well = true;
    for (name, ahead) in youngest {
        if ahead.abs() > CLOCK_TOLERANCE {
            let side = if *ahead > 0.0 { "ahead of" } else { "behind" };
            let text = format!("is {:.0} s {side} this host's", ahead.abs());
            report.fail(&format!("clock of {name}"), Finding::ClockApart, text);
            is_well = false;
        }
    }
    if is_well {
        let agree = match youngest {
            [(only, _)] => format!("{only} agrees"),
            several => format!("{} nodes agree", several.len()),
        };
        report.ok("clocks", format!("{agree} with this host within 2 s"));
    }
}

/// `3 ms`, `1.2 s`.
pub(crate) fn milliseconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis().max(1))
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_apart_is_named() {
        let mut show = |_: &super::super::report::CheckLine| {};
        let mut report = Report::new(&mut show);
        judge_clocks(&[("ftp1".to_owned(), -0.3), ("ftp3".to_owned(), -41.0)], &mut report);
        let lines = report.into_lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].finding, Some(Finding::ClockApart));
        assert_eq!(lines[0].text, "is 41 s behind this host's");
    }
}
