//! The node's records in the audit trail: logins, ends of sessions, transfers, changes and refusals.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use common::{
    audit::{AuditEvent, AuditPath, AuditRecord, AuditResult, AuditTrail},
    ids::{NodeName, SessionId},
};

use crate::{
    connection_table::SessionHandle,
    identity::SessionIdentity,
    live::Traffic,
    protocol::{Code, LoggedInCommand, site::Site},
    tls::Handshake,
    virtual_path::VirtualPath,
};

/// A command, as the audit trail shows it.
#[derive(Clone, Debug)]
pub(crate) struct AuditedCommand {
    event: AuditEvent,
    /// The verb, with the subcommand of SITE.
    name: &'static str,
    /// Success is recorded, too. Failures are always recorded.
    records_success: bool,
    /// RNTO: the path of RNFR.
    pub from: Option<VirtualPath>,
    /// COMB: the files that are joined.
    pub sources: Vec<VirtualPath>,
    /// The mode or the time that the command has set.
    pub value: Option<String>,
}

impl AuditedCommand {
    pub(crate) fn new(verb: &'static str, command: &LoggedInCommand) -> Self {
        use LoggedInCommand as C;
        let (event, name, records_success) = match command {
            C::Mkd(_) => (AuditEvent::Mkdir, verb, true),
            C::Rmd(_) => (AuditEvent::Rmdir, verb, true),
            C::Rmda(_) => (AuditEvent::RemoveTree, verb, true),
            C::Dele(_) => (AuditEvent::Delete, verb, true),
            C::Rnfr(_) => (AuditEvent::Rename, verb, false),
            C::Rnto(_) => (AuditEvent::Rename, verb, true),
            C::MdtmSet(_) | C::Mfmt(_) => (AuditEvent::SetTime, verb, true),
            C::Site(Site::Utime(_)) => (AuditEvent::SetTime, "SITE UTIME", true),
            C::Site(Site::Chmod { .. }) => (AuditEvent::Chmod, "SITE CHMOD", true),
            C::Site(Site::Quota) => (AuditEvent::Other, "SITE QUOTA", false),
            C::Retr(_) => (AuditEvent::Download, verb, true),
            C::Stor(_) | C::Stou(_) => (AuditEvent::Upload, verb, true),
            C::Appe(_) => (AuditEvent::Append, verb, true),
            C::Comb(_) => (AuditEvent::Combine, verb, true),
            _ => (AuditEvent::Other, verb, false),
        };
        Self { event, name, records_success, from: None, sources: Vec::new(), value: None }
    }

    /// Returns true if a success of the command is recorded.
    pub(crate) fn records_success(&self) -> bool {
        self.records_success
    }

    /// Returns true if the command changes or moves nothing.
    pub(crate) fn only_asks(&self) -> bool {
        self.event == AuditEvent::Other
    }
}

/// An operation that has ended.
pub(crate) struct AuditedEnd<'a> {
    pub command: &'a AuditedCommand,
    /// The path that the argument names.
    pub path: Option<&'a VirtualPath>,
    pub code: Code,
    pub moved: Option<MovedBytes>,
    pub failure: Option<AuditedFailure<'a>>,
}

/// The data of a transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MovedBytes {
    /// Where in the file the transfer began.
    pub offset: u64,
    /// Bytes on the data connection.
    pub bytes: u64,
    pub seconds: f64,
    /// Line ends were converted.
    pub ascii: bool,
    /// SHA-256 of the file of a complete upload.
    pub sha256: Option<[u8; 32]>,
}

/// Why an operation failed.
pub(crate) struct AuditedFailure<'a> {
    pub reason: &'a str,
    pub detail: &'a str,
    pub errno: Option<String>,
    pub stored_at: Option<String>,
    pub holder: Option<SessionId>,
}

/// Makes the records of one login.
pub(crate) struct SessionAudit {
    trail: AuditTrail,
    node: NodeName,
    identity: Arc<SessionIdentity>,
    groups: Vec<String>,
    tls: Option<(&'static str, String)>,
}

impl SessionAudit {
    /// `tls` is the handshake of the control connection.
    pub(crate) fn new(
        trail: &AuditTrail,
        node: &NodeName,
        identity: &Arc<SessionIdentity>,
        groups: &[String],
        tls: Option<&Handshake>,
    ) -> Self {
        Self {
            trail: trail.clone(),
            node: node.clone(),
            identity: Arc::clone(identity),
            groups: groups.to_vec(),
            tls: tls.map(|tls| (tls.version, tls.cipher.clone())),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.trail.is_on()
    }

    /// Records the login. `failure` is the reason why it was refused, and a text for people.
    pub(crate) fn login(&self, code: Code, failure: Option<(&str, String)>) {
        if !self.is_on() {
            return;
        }
        let result = if failure.is_none() { AuditResult::Ok } else { AuditResult::Failed };
        let mut record = self.begin(AuditEvent::Login, result);
        record.command = Some("PASS".to_owned());
        record.code = Some(code.value());
        if let Some((reason, detail)) = failure {
            record.reason = Some(reason.to_owned());
            record.detail = Some(detail);
        }
        self.trail.record(record);
    }

    /// Records the end of an operation.
    pub(crate) fn operation(&self, end: AuditedEnd<'_>) {
        if !self.is_on() {
            return;
        }
        let AuditedEnd { command, path, code, moved, failure } = end;
        let result = if failure.is_none() { AuditResult::Ok } else { AuditResult::Failed };
        let mut record = self.begin(command.event, result);
        record.command = Some(command.name.to_owned());
        record.code = Some(code.value());
        match (&command.from, path) {
            (Some(from), new) => {
                record.set_path(from.as_bytes());
                if let Some(new) = new {
                    record.set_new_path(new.as_bytes());
                }
            }
            (None, Some(path)) => record.set_path(path.as_bytes()),
            (None, None) => {}
        }
        record.sources = command.sources.iter().map(|source| AuditPath::new(source.as_bytes())).collect();
        record.value.clone_from(&command.value);
        if let Some(MovedBytes { offset, bytes, seconds, ascii, sha256 }) = moved {
            (record.bytes, record.offset, record.seconds) = (Some(bytes), Some(offset), Some(seconds));
            record.ascii = ascii;
            record.sha256 = sha256.filter(|_| failure.is_none()).map(hex::encode);
        }
        if let Some(AuditedFailure { reason, detail, errno, stored_at, holder }) = failure {
            record.reason = Some(reason.to_owned());
            record.detail = Some(detail.to_owned());
            (record.errno, record.stored_at, record.holder) = (errno, stored_at, holder);
        }
        self.trail.record(record);
    }

    /// A record with the fields of the session.
    fn begin(&self, event: AuditEvent, result: AuditResult) -> AuditRecord {
        let SessionIdentity { session, user, address, .. } = &*self.identity;
        let address: IpAddr = *address;
        AuditRecord {
            node: Some(self.node.clone()),
            session: Some(*session),
            user: Some(user.clone()),
            groups: self.groups.clone(),
            address: Some(address),
            tls: self.tls.as_ref().map(|(version, _)| (*version).to_owned()),
            cipher: self.tls.as_ref().map(|(_, cipher)| cipher.clone()),
            ..AuditRecord::new(event, result)
        }
    }
}

/// Records the end of a login when it is dropped.
pub(crate) struct SessionEnd {
    audit: Arc<SessionAudit>,
    handle: Arc<SessionHandle>,
    begun: Instant,
    /// What earlier logins of the connection have moved.
    before: Traffic,
    reason: OnceLock<&'static str>,
}

impl SessionEnd {
    pub(crate) fn new(audit: &Arc<SessionAudit>, handle: &Arc<SessionHandle>) -> Self {
        Self {
            audit: Arc::clone(audit),
            handle: Arc::clone(handle),
            begun: Instant::now(),
            before: handle.activity.traffic(),
            reason: OnceLock::new(),
        }
    }

    /// Notes why the login ends. Only the first reason counts.
    pub(crate) fn note(&self, reason: &'static str) {
        let _ = self.reason.set(reason);
    }
}

impl Drop for SessionEnd {
    fn drop(&mut self) {
        if !self.audit.is_on() {
            return;
        }
        let traffic = self.handle.activity.traffic();
        let mut record = self.audit.begin(AuditEvent::SessionEnd, AuditResult::Ok);
        record.uploaded = Some(traffic.uploaded.saturating_sub(self.before.uploaded));
        record.downloaded = Some(traffic.downloaded.saturating_sub(self.before.downloaded));
        record.seconds = Some(self.begun.elapsed().as_millis() as f64 / 1000.0);
        record.reason = Some((*self.reason.get().unwrap_or(&"closed")).to_owned());
        record.detail = match (self.handle.end_reason(), self.handle.revocation()) {
            (Some(given), _) => Some(given.to_owned()),
            (None, Some(revoked)) => Some(revoked.as_str().to_owned()),
            (None, None) => None,
        };
        self.audit.trail.record(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Command, parse};

    #[test]
    fn each_command_that_changes_something_has_an_event_of_its_own() {
        for (line, event, name, records_success) in [
            ("XMKD a", AuditEvent::Mkdir, "MKD", true),
            ("RNFR a", AuditEvent::Rename, "RNFR", false),
            ("RNTO a", AuditEvent::Rename, "RNTO", true),
            ("MDTM 20260101000000 a", AuditEvent::SetTime, "MDTM", true),
            ("MDTM a", AuditEvent::Other, "MDTM", false),
            ("SITE CHMOD 600 a", AuditEvent::Chmod, "SITE CHMOD", true),
            ("SITE UTIME 20260101000000 a", AuditEvent::SetTime, "SITE UTIME", true),
            ("RMDA a", AuditEvent::RemoveTree, "RMDA", true),
            ("COMB a b", AuditEvent::Combine, "COMB", true),
            ("LIST a", AuditEvent::Other, "LIST", false),
        ] {
            let request = parse(line.as_bytes()).unwrap();
            let Command::LoggedIn(command) = request.command else { panic!("{line}") };
            let audited = AuditedCommand::new(request.verb.name, &command);
            assert_eq!((audited.event, audited.name), (event, name), "{line}");
            assert_eq!(audited.records_success(), records_success, "{line}");
        }
    }
}
