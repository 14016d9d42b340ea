//! The subcommand `health` of all daemons: asks the running daemon's own `/readyz`, for the health checks of
//! container engines, whose images hold no other program.

use std::{
    future::poll_fn,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    process::ExitCode,
    time::Duration,
};

use clap::ArgMatches;
use hyper::{Request, StatusCode, body::Body as _, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    process::logging::chain,
    settings::{Manual, Schema, Subcommand, Values},
};

/// Name of the subcommand.
pub const HEALTH: &str = "health";

/// Time limit of the whole request. Docker's and Kubernetes' own limits are as long or longer.
const TIME_LIMIT: Duration = Duration::from_secs(3);

/// A report of `/readyz` has a few hundred bytes for each dependency.
const LONGEST_REPORT: usize = 64 * 1024;

type Lines = &'static [(&'static str, &'static str)];

/// The row of this subcommand in a daemon's table. `synopsis`, `examples` and `see_also` name the daemon.
pub const fn subcommand(synopsis: Lines, examples: Lines, see_also: &'static [&'static str]) -> Subcommand {
    Subcommand {
        name: HEALTH,
        about: "ask the running daemon whether it is ready: exit status 0 or 1",
        manual: Manual {
            synopsis,
            description: &[
                "Asks `/readyz` of the daemon that runs with the same settings, and prints one line: that \
                 the daemon is ready, or why not. It is the health check of the container images, which \
                 hold no other program.",
                "Give it the settings of the daemon: the same variables, or the same `--config`. It needs \
                 only the address, so it reads no secret. Flags stand before the subcommand. An address such \
                 as 0.0.0.0 is asked through loopback. The time limit is 3 seconds.",
            ],
            examples,
            files: &[],
            environment: &[],
            signals: &[],
            exit_status: &[
                ("0", "The daemon is ready."),
                ("1", "It starts, drains, lacks a dependency that it requires, or does not answer."),
            ],
            see_also,
        },
    }
}

/// Runs the subcommand: asks the address that the setting `key` holds, and prints one line.
pub fn run(schema: &'static Schema, flags: &ArgMatches, key: &'static str) -> ExitCode {
    let (line, status) = match ask(schema, flags, key) {
        Ok(address) => (format!("ready, says http://{address}/readyz"), ExitCode::SUCCESS),
        Err(reason) => (reason, ExitCode::FAILURE),
    };
    // If the output is closed, the exit status still reports the result.
    let _ = writeln!(io::stdout(), "{}: {line}", schema.program);
    status
}

fn ask(schema: &'static Schema, flags: &ArgMatches, key: &'static str) -> Result<SocketAddr, String> {
    let listen = Values::collect(schema, flags, std::env::vars_os())
        .and_then(|values| values.optional::<SocketAddr>(key))
        .map_err(|error| error.to_string())?;
    let listen = listen.ok_or_else(|| format!("{key} is empty, so no address answers health checks"))?;
    if listen.port() == 0 {
        return Err(format!("{key} = {listen} takes any free port: set a port for health checks"));
    }
    let address = reachable(listen);
    let unanswered = |reason: String| format!("no answer from http://{address}/readyz ({key}): {reason}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
    let answer = runtime.block_on(async { timeout(TIME_LIMIT, readyz(address)).await });
    match answer {
        Err(_) => Err(unanswered(format!("nothing came within {} s", TIME_LIMIT.as_secs()))),
        Ok(Err(error)) => Err(unanswered(error)),
        Ok(Ok((StatusCode::OK, _))) => Ok(address),
        Ok(Ok((status, body))) => Err(not_ready(status, &body)),
    }
}

/// The address under which this host reaches a socket that listens on `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn readyz(address: SocketAddr) -> Result<(StatusCode, Vec<u8>), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let failed = |error: hyper::Error| chain(&error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection);
    let request = Request::get("/readyz").header(HOST, address.to_string()).body(String::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let mut body = response.into_body();
    let mut report = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame.map_err(failed)?.into_data() {
            report.extend_from_slice(&data);
        }
        if report.len() > LONGEST_REPORT {
            return Err(format!("the answer is longer than {LONGEST_REPORT} bytes"));
        }
    }
    Ok((status, report))
}

/// The reason in a report of `/readyz`: the state, and each failing dependency that is required.
fn not_ready(status: StatusCode, body: &[u8]) -> String {
    let Ok(report) = serde_json::from_slice::<Value>(body) else {
        return format!("not ready: HTTP status {status}");
    };
    let mut reasons = vec![format!("not ready: {}", report["state"].as_str().unwrap_or("unknown state"))];
    for (name, dependency) in report["dependencies"].as_object().into_iter().flatten() {
        if dependency["required"] == true && dependency["state"] != "ok" {
            let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
            let (state, setting) = (text(&dependency["state"]), text(&dependency["setting"]));
            let error = text(&dependency["last_error"]["message"]).replace('\n', " ");
            let error = if error.is_empty() { error } else { format!(": {error}") };
            reasons.push(format!("{name} is {state} ({setting}){error}"));
        }
    }
    reasons.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reason_names_state_and_required_failing_dependencies_only() {
        let report = json!({
            "ready": false,
            "state": "ready",
            "dependencies": {
                "authd": { "required": false, "state": "failed", "setting": "authd_urls" },
                "registry": { "required": true, "state": "failed", "setting": "redis_url",
                    "last_error": { "message": "refused\nagain", "at": "2026-11-28T12:00:00Z" } },
                "storage": { "required": true, "state": "ok", "setting": "root" },
            },
        });
        let line = not_ready(StatusCode::SERVICE_UNAVAILABLE, report.to_string().as_bytes());
        assert_eq!(line, "not ready: ready; registry is failed (redis_url): refused again");
        let line = not_ready(StatusCode::NOT_FOUND, b"<html>");
        assert_eq!(line, "not ready: HTTP status 404 Not Found");
    }

    #[test]
    fn wildcard_addresses_are_asked_through_loopback() {
        for (listen, asked) in
            [("0.0.0.0:9121", "127.0.0.1:9121"), ("[::]:9121", "[::1]:9121"), ("10.0.0.1:80", "10.0.0.1:80")]
        {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
