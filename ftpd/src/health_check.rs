//! Connections that a balancer makes for itself, such as HAProxy's check of the banner.
//!
//! Their PROXY header says LOCAL, UNSPEC, or UNKNOWN in version 1. They must be accepted (PROXY protocol
//! specification section 2.2), but they have no client: there is no session, no login, no log line and no
//! use of a limit. Only trusted balancers can make them.

use common::session::SessionId;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    commands::system_type,
    control::{Control, Received},
    metrics,
    node::Node,
    protocol::{
        self, AnyTimeCommand, Code, Command, Reply,
        command::Algorithm,
        facts::Facts,
        line::{Line, LineBuffer},
        verbs::{self, Features},
    },
};

/// Greets the balancer and answers it, for no longer than a login may take. `implicit`: TLS begins at once.
pub async fn serve(stream: TcpStream, node: &Node, implicit: bool) {
    let mut control = Control::new(stream, node.timeouts.reply);
    // Late or not, the connection ends.
    let _ = timeout(node.timeouts.login, converse(&mut control, node, implicit)).await;
    control.close().await;
}

async fn converse(control: &mut Control, node: &Node, implicit: bool) {
    if implicit {
        let Some(tls) = &node.tls else { return };
        // No session has this id, so the tickets prove nothing.
        if Box::pin(control.encrypt(tls, SessionId::random())).await.is_err() {
            return;
        }
    }
    if node.connections.is_draining() {
        control.push(&Reply::new(Code::SERVICE_UNAVAILABLE, "This node goes down for maintenance"));
        return;
    }
    control.push(&Reply::new(Code::READY, node.greeting.clone()));
    let mut lines = LineBuffer::new();
    let mut commands_left = node.limits.unauthenticated_commands;
    loop {
        while let Some(line) = lines.next_line() {
            if commands_left == 0 {
                control.push(&Reply::new(Code::SERVICE_UNAVAILABLE, "Too many commands without a login"));
                return;
            }
            commands_left -= 1;
            let request = match line {
                Line::TooLong => Err(protocol::ParseError::TooLong),
                Line::Command(line) => protocol::parse(&line),
            };
            let reply = match &request {
                Ok(request) => answer(node, &request.command),
                Err(error) => match error.reply() {
                    Some(reply) => reply,
                    // Another protocol.
                    None => return,
                },
            };
            control.push(&reply);
            if request.is_ok_and(|request| matches!(request.command, Command::AnyTime(AnyTimeCommand::Quit)))
            {
                return;
            }
        }
        if control.flush().await.is_err() || control.fill(&mut lines).await != Received::Bytes {
            return;
        }
    }
}

fn answer(node: &Node, command: &Command) -> Reply {
    match command {
        Command::AnyTime(AnyTimeCommand::Noop) => Reply::new(Code::OK, "OK"),
        Command::AnyTime(AnyTimeCommand::Syst) => system_type(),
        Command::AnyTime(AnyTimeCommand::Feat) => verbs::feat(Features {
            facts: Facts::default(),
            hash: Algorithm::Sha256,
            tls: node.tls.is_some(),
        }),
        Command::AnyTime(AnyTimeCommand::Help(topic)) => verbs::help(topic.as_deref()),
        Command::AnyTime(AnyTimeCommand::Quit) => Reply::new(Code::CLOSING, "Goodbye"),
        command => {
            if matches!(command, Command::AnyTime(AnyTimeCommand::User(_))) {
                metrics::connection_refused("no_client_address");
                log::debug!("login refused: the balancer's PROXY header names no client");
            }
            Reply::new(Code::NOT_LOGGED_IN, "No login: the balancer did not send the client's address")
        }
    }
}
