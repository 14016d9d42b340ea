//! `status`, `problems`, `nodes`.

use common::{
    admin_api::{BalancerView, NodeView, ProblemSeverity, ProblemsView, StatusView},
    node::NodeState,
};

use crate::{
    api::Query,
    console::Console,
    error::{ConsoleError, FOUND},
    render::{
        human::{clock_time, count, counted, latency, printable, rate, seconds_since, span},
        table::Table,
    },
};

/// A file operation that runs longer than this is shown, in seconds.
const SLOW_OPERATION: f64 = 2.0;

pub(crate) async fn status(console: &Console) -> Result<u8, ConsoleError> {
    let status: StatusView = console.api.get(&["status"], &vec![]).await?;
    let host = console.api.url.host_str().unwrap_or_default().to_owned();
    console.output.show(&status, || status_text(&status, &host, console.output.bytes))?;
    Ok(if status.problems > 0 { FOUND } else { 0 })
}

fn status_text(status: &StatusView, host: &str, bytes: bool) -> String {
    let mut text = format!(
        "{host}   {}   {}   {}   ↑ {}   ↓ {}   {}\n",
        counted(status.nodes.len() as u64, "node"),
        counted(status.sessions, "session"),
        counted(status.transfers, "transfer"),
        rate(status.upload_rate, bytes),
        rate(status.download_rate, bytes),
        printable(&status.time),
    );
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        ">SESS",
        ">XFER",
        ">↑",
        ">↓",
        ">LOAD",
        ">FSYNC MAX",
        "AUTHD",
        "REDIS",
        "STORAGE",
        "VERSION",
        "UP",
    ]);
    for node in &status.nodes {
        let activity = node.activity.as_ref();
        let shown = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        table.row([
            node.name.to_string(),
            state(node),
            count(node.sessions.into()),
            count(node.transfers.into()),
            shown(activity.map(|activity| rate(activity.upload_rate, bytes))),
            shown(activity.map(|activity| rate(activity.download_rate, bytes))),
            shown(activity.map(|activity| format!("{:.0} %", activity.load * 100.0))),
            shown(activity.map(|activity| latency(activity.fsync_max))),
            dependency(node, "authd", activity.and_then(|activity| activity.authd_seconds)),
            dependency(node, "registry", activity.and_then(|activity| activity.redis_seconds)),
            storage(node),
            node.version.clone(),
            shown(seconds_since(&node.since).map(span)),
        ]);
    }
    text.push_str(&table.render());
    let redis = status.redis_seconds.map_or_else(|| "away or not used".to_owned(), latency);
    let authds = match status.authds.len() {
        0 => String::new(),
        number => format!(" × {number}"),
    };
    text.push_str(&format!("authd {}{authds}   Redis {redis}", printable(&status.version)));
    if let Some(expiry) = &status.certificate_expiry {
        match seconds_since(expiry).map(|seconds| -seconds) {
            Some(left) if left > 0.0 => text.push_str(&format!("   TLS expires in {}", span(left))),
            _ => text.push_str(&format!("   TLS EXPIRED {}", printable(expiry))),
        }
    }
    text.push('\n');
    if !status.balancers.is_empty() {
        let shown: Vec<String> = status.balancers.iter().map(balancer).collect();
        text.push_str(&format!("balancers {}\n", shown.join(", ")));
    }
    match status.problems {
        0 => text.push_str("no problems\n"),
        problems => text.push_str(&format!("PROBLEMS {problems}   (ftpctl problems)\n")),
    }
    text
}

/// A balancer with its connections, and the nodes that it reaches.
fn balancer(balancer: &BalancerView) -> String {
    let nodes: Vec<&str> = balancer.nodes.iter().map(|node| node.as_str()).collect();
    let connections = counted(balancer.connections, "connection");
    format!("{} ({connections}; reaches {})", balancer.address, nodes.join(", "))
}

fn state(node: &NodeView) -> String {
    let state = match node.state {
        NodeState::Draining => "draining".to_owned(),
        state => serde_json::to_value(state)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default(),
    };
    match &node.drain_until {
        Some(until) => format!("{state}, ends by {}", clock_time(until)),
        None => state,
    }
}

fn dependency(node: &NodeView, name: &str, seconds: Option<f64>) -> String {
    if node.failing.iter().any(|failing| failing.dependency == name) {
        return "FAILS".to_owned();
    }
    seconds.map_or_else(|| "ok".to_owned(), latency)
}

fn storage(node: &NodeView) -> String {
    if let Some(failing) = node.failing.iter().find(|failing| failing.dependency == "storage") {
        return failing.error.clone();
    }
    match &node.activity {
        Some(activity) if activity.oldest_operation > SLOW_OPERATION => {
            format!("slow: {} for {}", activity.oldest_operation_name, span(activity.oldest_operation))
        }
        _ => "ok".to_owned(),
    }
}

pub(crate) async fn problems(console: &Console, minutes: Option<u64>) -> Result<u8, ConsoleError> {
    let query: Query = minutes.map(|minutes| ("minutes", minutes.to_string())).into_iter().collect();
    let answer: ProblemsView = console.api.get(&["problems"], &query).await?;
    let is_fine = answer.problems.is_empty() && answer.unknown.is_empty();
    console.output.show(&answer, || {
        let mut text = String::new();
        for (index, problem) in answer.problems.iter().enumerate() {
            let node = problem.node.as_ref().map(|node| format!("{node}: ")).unwrap_or_default();
            let since = problem.since.as_deref().map(|since| format!(" Since {}.", printable(since)));
            let mut line = format!("{}. {node}{}", index + 1, printable(&problem.text));
            line.push_str(&since.unwrap_or_default());
            let colour = match problem.severity {
                ProblemSeverity::Critical => "31",
                ProblemSeverity::Warning => "33",
                ProblemSeverity::Info => "0",
            };
            text.push_str(&console.output.coloured(colour, &line));
            text.push_str(&format!("\n   → {}", printable(&problem.remedy)));
            if let Some(command) = &problem.command {
                text.push_str(&format!(": {}", printable(command)));
            }
            text.push('\n');
        }
        for source in &answer.unknown {
            text.push_str(&format!("could not be asked: {}\n", printable(source)));
        }
        if is_fine {
            text.push_str("no problems\n");
        }
        text
    })?;
    Ok(if is_fine { 0 } else { FOUND })
}

pub(crate) async fn nodes(console: &Console) -> Result<u8, ConsoleError> {
    let nodes: Vec<NodeView> = console.api.get(&["nodes"], &vec![]).await?;
    console.output.show(&serde_json::json!({ "nodes": nodes }), || {
        let mut table = Table::new(&[
            "NODE",
            "STATE",
            ">SESS",
            ">XFER",
            "CONTROL",
            "ADDRESS",
            "PASSIVE PORTS",
            "HOST",
            "VERSION",
            "UP",
        ]);
        for node in &nodes {
            let ports: Vec<_> = node.passive_ports.iter().map(ToString::to_string).collect();
            let ports = match ports.len() {
                0..=3 => ports.join(" "),
                more => format!("{} … ({more} blocks)", ports[..2].join(" ")),
            };
            table.row([
                node.name.to_string(),
                state(node),
                count(node.sessions.into()),
                count(node.transfers.into()),
                node.control.clone(),
                node.address.map_or_else(|| "–".to_owned(), |address| address.to_string()),
                ports,
                node.host.clone(),
                node.version.clone(),
                seconds_since(&node.since).map_or_else(|| "–".to_owned(), span),
            ]);
        }
        let mut text = table.render();
        for node in &nodes {
            for failing in &node.failing {
                text.push_str(&format!(
                    "{}: {} fails since {}: {}\n",
                    node.name,
                    printable(&failing.dependency),
                    printable(&failing.since),
                    printable(&failing.error),
                ));
            }
        }
        text
    })?;
    Ok(0)
}
