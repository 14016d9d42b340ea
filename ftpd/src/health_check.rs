//! Health checks: connections that a balancer makes on its own behalf, such as HAProxy's check of the banner.
//!
//! Their PROXY header has the command LOCAL or the family UNSPEC, or UNKNOWN in version 1. The node must
//! accept them (PROXY protocol specification section 2.2). They have no client: there is no session and no
//! login, and they neither appear in the log nor count to a limit. Only trusted balancers can make them.

use common::session::SessionId;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    commands::system_type,
    control::{ControlStream, Received},
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

/// Greets the balancer and answers its commands for at most `login_timeout`. With `implicit_tls` the
/// connection begins with a TLS handshake.
pub(crate) async fn serve(stream: TcpStream, node: &Node, implicit_tls: bool) {
    let mut control = ControlStream::new(stream, node.timeouts.reply);
    // The connection ends in either case.
    let _ = timeout(node.timeouts.login, converse(&mut control, node, implicit_tls)).await;
    control.close().await;
}

async fn converse(control: &mut ControlStream, node: &Node, implicit_tls: bool) {
    if implicit_tls {
        let Some(tls) = &node.tls else { return };
        // The id belongs to no session, so that the tickets prove nothing.
        if Box::pin(control.encrypt(tls, SessionId::random())).await.is_err() {
            return;
        }
    }
    if node.connections.is_draining() {
        control.push(&Reply::new(Code::SERVICE_UNAVAILABLE, "Server is shutting down for maintenance"));
        return;
    }
    control.push(&Reply::new(Code::READY, node.greeting.clone()));
    let mut lines = LineBuffer::new();
    let mut commands_left = node.limits.unauthenticated_commands;
    loop {
        while let Some(line) = lines.next_line() {
            if commands_left == 0 {
                control.push(&Reply::new(Code::SERVICE_UNAVAILABLE, "Too many commands before login"));
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
                    // The peer speaks another protocol.
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
        Command::AnyTime(AnyTimeCommand::Noop) => Reply::ok(),
        Command::AnyTime(AnyTimeCommand::Syst) => system_type(),
        Command::AnyTime(AnyTimeCommand::Feat) => verbs::feat(Features {
            facts: Facts::default(),
            hash: Algorithm::Sha256,
            tls: node.tls.is_some(),
        }),
        Command::AnyTime(AnyTimeCommand::Help(topic)) => verbs::help(topic.as_deref()),
        Command::AnyTime(AnyTimeCommand::Quit) => Reply::goodbye(),
        command => {
            if matches!(command, Command::AnyTime(AnyTimeCommand::User(_))) {
                metrics::connection_refused("no_client_address");
                log::debug!("login refused: the balancer's PROXY header has no client address");
            }
            Reply::new(
                Code::NOT_LOGGED_IN,
                "Login not possible: the balancer did not send the client's address",
            )
        }
    }
}
