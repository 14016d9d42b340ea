//! Checks at start: the limit of open files, and warnings about risky settings.

use common::process::{capabilities, descriptors};

use crate::{accounts::declared::DeclaredUsers, config::Config};

/// Descriptors other than HTTP connections: Redis, users file and token files, the listener.
const OTHER_DESCRIPTORS: u64 = 64;

/// Raises the limit of open files. Lowers `max_connections` if the limit is still too low for it.
pub(crate) fn fit_descriptors(config: &mut Config) {
    let available = match descriptors::raise() {
        Ok(limit) => limit,
        Err(error) => {
            log::warn!("cannot raise the limit of open files (RLIMIT_NOFILE): {error}");
            return;
        }
    };
    let most = usize::try_from(available.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX).max(1);
    if config.connections.connections > most {
        log::warn!(
            max_connections = config.connections.connections, lowered_to = most, open_files = available;
            "max_connections is lowered because the limit of open files is too low for it; raise \
             RLIMIT_NOFILE (LimitNOFILE= of the service) or lower max_connections"
        );
        config.connections.connections = most;
    }
}

/// Logs warnings about settings that are risky or disable a feature.
pub(crate) fn warn_about(config: &Config) {
    if config.users == DeclaredUsers::Demo {
        log::warn!("DEMO: the users demo, admin and test log in with ANY password, and nodes need no token");
    } else if config.node_tokens.is_empty() {
        log::warn!("no node_token_file: every login is refused with 401");
    }
    if let Some(anonymous) = &config.anonymous {
        log::info!(home = anonymous.home.as_str(); "anonymous access is on");
    }
    if config.redis.is_none() {
        log::warn!(
            "no redis_url: authd has no API users, sessions or nodes, and counts failed logins in this \
             process only"
        );
    }
    if capabilities::is_root() {
        log::warn!("authd runs as root, which is not needed; run it as a user of its own");
    }
}
