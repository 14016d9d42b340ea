//! The problems that the audit trail shows: refused uploads, a storage that refuses, refused logins.

use common::{
    admin_api::{ProblemPart, ProblemSeverity, ProblemView},
    clock::rfc3339,
    node::NodeName,
};

use crate::audit_window::{FailureCause, FailureGroup};

/// Maximum number of users or addresses that a problem names.
const NAMED: usize = 5;

/// Refused logins of a cause up to this number are no warning: people mistype passwords.
const FEW_LOGINS: u64 = 10;

/// A cause in words, and what an operator does.
struct Remedy {
    cause: &'static str,
    remedy: &'static str,
    /// A command of `ftpctl`; `USER` stands for the user with the most failures.
    command: &'static str,
}

const FAILED_UPLOADS: &str = "ftpctl audit --event upload,append --result failed";
const FAILED_LOGINS: &str = "ftpctl audit --event login --result failed";

/// The problem of a cause. `minutes` is the time that was looked at.
pub(super) fn problem(cause: &FailureCause, group: &FailureGroup, minutes: u64) -> ProblemView {
    let mut parts: Vec<ProblemPart> =
        group.parts.iter().map(|(name, count)| ProblemPart { name: name.clone(), count: *count }).collect();
    parts.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
    let number = parts.len();
    parts.truncate(NAMED);
    let names: Vec<String> = parts.iter().map(|part| format!("{} {}", part.name, part.count)).collect();
    let more = if number > NAMED { format!(" and {} more", number - NAMED) } else { String::new() };
    let (count, names) = (group.count, format!("{}{more}", names.join(", ")));
    let (kind, severity, reason, text, known) = match cause {
        FailureCause::Upload { reason } => {
            let known = upload(reason);
            let text = format!("{count} uploads refused: {} (users: {names})", known.cause);
            ("uploads_refused", ProblemSeverity::Warning, reason, text, known)
        }
        FailureCause::Storage { reason, errno, directory } => {
            let known = storage(reason);
            let errno = if errno.is_empty() { reason } else { errno };
            let nodes: Vec<&str> = group.nodes.iter().map(NodeName::as_str).collect();
            let nodes = nodes.join(", ");
            let text = format!(
                "{count} operations refused by the storage: {errno} in {directory} on {nodes}: {} \
                 (users: {names})",
                known.cause
            );
            ("storage_refused", ProblemSeverity::Critical, reason, text, known)
        }
        FailureCause::Login { reason } => {
            let known = login(reason);
            let severity = if count > FEW_LOGINS { ProblemSeverity::Warning } else { ProblemSeverity::Info };
            let text = format!("{count} logins refused: {} ({names})", known.cause);
            ("logins_refused", severity, reason, text, known)
        }
    };
    let first = parts.first().map_or("", |part| part.name.as_str());
    let user = first.rsplit_once(" as ").map_or(first, |(_, user)| user);
    // Only a name that a shell takes as one word is put into a command.
    let is_plain = !user.is_empty() && user.chars().all(|c| c.is_ascii_alphanumeric() || "._@-".contains(c));
    let command = match known.command {
        FAILED_UPLOADS | FAILED_LOGINS => Some(format!("{} --since {minutes}m", known.command)),
        command if command.contains("USER") => is_plain.then(|| command.replace("USER", user)),
        command => Some(command.to_owned()),
    };
    ProblemView {
        kind: kind.to_owned(),
        severity,
        node: match group.nodes.iter().collect::<Vec<_>>()[..] {
            [node] if kind == "storage_refused" => Some(node.clone()),
            _ => None,
        },
        since: Some(rfc3339(group.first)),
        count,
        text,
        remedy: known.remedy.to_owned(),
        command,
        reason: Some(reason.clone()),
        parts,
    }
}

fn upload(reason: &str) -> Remedy {
    let (cause, remedy, command) = match reason {
        "quota" => ("the quota is used up", "raise the quota, or remove files", "ftpctl quota USER"),
        "quota_unknown" | "quota_counting" => (
            "the quota cannot be checked",
            "bring Redis back; a home that is counted for the first time takes a while",
            "ftpctl quota USER",
        ),
        "permission" => (
            "the account, or a rule for the path, does not allow it",
            "change permissions or directories of the user or of a group, or tell the user",
            "ftpctl users show USER",
        ),
        "denied_name" | "reserved_name" => {
            ("the name is not allowed", "change denied_names, or tell the user", "ftpctl users show USER")
        }
        "registry_away" => ("Redis is away or has just lost its data", "bring Redis back", "ftpctl status"),
        "write_lease" | "lease_lost" | "being_written" => (
            "another session or program writes the path",
            "see who writes it; a dead client's session ends after its timeouts",
            "ftpctl who",
        ),
        "no_connection" | "no_data_port" | "no_passive_port" => (
            "no data connection came",
            "check the firewalls between clients and balancers for the passive range; widen it if no port is \
             free",
            "ftpctl doctor",
        ),
        "not_encrypted" | "not_resumed" | "tls_failed" => (
            "the data connection was not protected as required",
            "see docs/ftps.md: tls_data, tls_data_reuse",
            FAILED_UPLOADS,
        ),
        "stalled" | "too_slow" | "connection_lost" => {
            ("the data connection broke off or stood still", "check the clients' network", FAILED_UPLOADS)
        }
        "short" | "no_close_notify" => (
            "the client sent less than it announced",
            "check the clients' network; see docs/uploads.md",
            FAILED_UPLOADS,
        ),
        "no_slot" | "too_many_open_files" | "busy" => (
            "the node has no room for the transfer",
            "raise the limit that the node's log names, or add a node",
            "ftpctl nodes",
        ),
        "node_stop" => ("a drain or a stop cut them", "raise drain_timeout", FAILED_UPLOADS),
        "ended_by_administrator" => ("an administrator ended the sessions", "none", FAILED_UPLOADS),
        "not_found" => ("the directory does not exist", "tell the user, or create it", FAILED_UPLOADS),
        _ => ("see the reason in docs/logs.md", "see the reason in docs/logs.md", FAILED_UPLOADS),
    };
    Remedy { cause, remedy, command }
}

fn storage(reason: &str) -> Remedy {
    let (cause, remedy, command) = match reason {
        "storage_access" => (
            "the kernel refuses the node",
            "give the directory to the node's user (chown, chmod), or correct root_squash of the export",
            "ftpctl doctor",
        ),
        "storage_read_only" => {
            ("it is mounted read-only", "mount it writable; see the kernel's log", "ftpctl nodes")
        }
        "storage_hangs" => {
            ("operations do not end", "check the file server and the network to it", "ftpctl nodes")
        }
        "no_space" | "storage_quota" => ("it is full", "free space", "ftpctl quota"),
        "too_large" => (
            "the file exceeds a limit of the file system or of the service",
            "raise LimitFSIZE",
            "ftpctl nodes",
        ),
        _ => ("the kernel reports an error", "see the logs of the host and the file server", "ftpctl nodes"),
    };
    Remedy { cause, remedy, command }
}

fn login(reason: &str) -> Remedy {
    let (cause, remedy, command) = match reason {
        "wrong_password" => (
            "wrong password",
            "addresses and users with many failures are banned by themselves; block an address that guesses",
            "ftpctl bans list",
        ),
        "unknown_user" => ("unknown user", "block an address that guesses names", "ftpctl bans list"),
        "disabled" => ("the user is disabled", "enable the user, or tell its owner", "ftpctl explain USER"),
        "address_not_allowed" => {
            ("the address is not allowed", "change access.allow_from of the user", "ftpctl explain USER")
        }
        "time_not_allowed" => {
            ("the hour is not allowed", "change access.hours of the user", "ftpctl explain USER")
        }
        "blocked" => {
            ("an administrator's block", "remove the block when it is not needed", "ftpctl explain USER")
        }
        "throttled" => ("banned after failed logins", "lift the ban of a known user", "ftpctl bans list"),
        "unavailable" | "authd_away" => ("no authd could decide", "check authd and Redis", "ftpctl status"),
        _ => ("see the reason in docs/logs.md", "see the reason in docs/logs.md", FAILED_LOGINS),
    };
    Remedy { cause, remedy, command }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(parts: &[(&str, u64)]) -> FailureGroup {
        let mut group = FailureGroup { first: 1, ..FailureGroup::default() };
        group.parts = parts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        group.count = group.parts.values().sum();
        group.nodes.insert("ftp1".parse().unwrap());
        group
    }

    #[test]
    fn a_problem_names_cause_users_and_remedy() {
        let quota = FailureCause::Upload { reason: "quota".to_owned() };
        let found = problem(&quota, &group(&[("carl", 2), ("acme", 141)]), 15);
        assert_eq!(found.text, "143 uploads refused: the quota is used up (users: acme 141, carl 2)");
        assert_eq!(found.command.as_deref(), Some("ftpctl quota acme"));
        assert_eq!(problem(&quota, &group(&[("a; reboot", 2)]), 15).command, None);
        let login = FailureCause::Login { reason: "address_not_allowed".to_owned() };
        let found = problem(&login, &group(&[("192.0.2.1 as acme", 3)]), 15);
        assert_eq!(found.command.as_deref(), Some("ftpctl explain acme"));
        assert_eq!(found.severity, ProblemSeverity::Info);
        let reason = "storage_access".to_owned();
        let (errno, directory) = ("EACCES".to_owned(), "/srv/ftp/scans".to_owned());
        let found = problem(&FailureCause::Storage { reason, errno, directory }, &group(&[("acme", 6)]), 15);
        assert!(found.text.contains("6 operations refused by the storage: EACCES in /srv/ftp/scans on ftp1"));
        assert_eq!((found.node, found.severity), ("ftp1".parse().ok(), ProblemSeverity::Critical));
    }
}
