//! Revocation: ends the sessions of a user whose logins would no longer be accepted.

use common::node::NodeCommand;

use crate::{accounts::name::UserName, service::Service};

/// Ends the user's sessions and forgets the user's known addresses. Called after the account has changed.
/// Failures are logged, and both happen later, when Redis can be reached.
pub(crate) async fn revoke_logins(service: &Service, name: &UserName) {
    service.revision.advance();
    if let Err(error) = service.throttle.forget_addresses(name).await {
        log::warn!(
            user:% = name, error:%;
            "cannot forget the user's known addresses now; authd does it when Redis can be reached"
        );
        service.revision.forget_addresses_later(name);
    }
    end_sessions(service, name).await;
}

/// Sends all nodes the command to end the user's sessions. A node that does not get the command ends them
/// when it sees the next revision of the accounts.
async fn end_sessions(service: &Service, name: &UserName) {
    const LATER: &str = "cannot end the user's sessions now; the nodes end them when Redis can be reached";
    let Some(registry) = &service.registry else { return };
    let command = NodeCommand::EndUser { user: name.to_string(), reason: None };
    let nodes = match registry.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => return log::warn!(user:% = name, error:%; "{LATER}"),
    };
    for node in nodes {
        if let Err(error) = registry.send(&node.name, &command).await {
            log::warn!(user:% = name, node:% = node.name, error:%; "{LATER}");
        }
    }
}
