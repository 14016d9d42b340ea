//! The settings of the audit trail, which ftpd and authd share.

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use crate::settings::{Form, NUMBER, Setting, SettingsError, Values};

/// `audit_log`, in ftpd and authd.
pub const AUDIT_LOG: Setting = Setting::one(
    "audit_log",
    Form::new("FILE", "path of a file, stderr or journald"),
    "",
    "Where the audit trail goes: a file, `stderr` (beside the log), or `journald` (with the identifier \
     `ftpd-audit` or `authd-audit`). One line of JSON for each login, transfer, change, refusal and \
     administrative action; docs/audit.md describes it. SIGHUP opens the file again, for logrotate. If not \
     set, records go to Redis only.",
);

/// `audit_records`, in ftpd and authd.
pub const AUDIT_RECORDS: Setting = Setting::one(
    "audit_records",
    NUMBER,
    "20000",
    "The number of newest records of the cluster that Redis keeps for `ftpctl audit` and `ftpctl problems`, \
     with `redis_url`. A record takes about 600 bytes there. The same on all nodes and authd instances: the \
     smallest number counts. 0: this process writes no record to Redis.",
);

/// The destination of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditSink {
    Stderr,
    Journald,
    File(PathBuf),
}

impl FromStr for AuditSink {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "stderr" => Self::Stderr,
            "journald" => Self::Journald,
            path => Self::File(path.into()),
        })
    }
}

impl fmt::Display for AuditSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stderr => f.write_str("stderr"),
            Self::Journald => f.write_str("journald"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The settings of the audit trail, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditOptions {
    /// `None`: no file, neither standard error nor journald.
    pub sink: Option<AuditSink>,
    /// The number of records that Redis keeps.
    pub records: u32,
}

impl AuditOptions {
    /// # Errors
    /// A value cannot be used.
    pub fn new(values: &Values) -> Result<Self, SettingsError> {
        Ok(Self { sink: values.optional("audit_log")?, records: values.required("audit_records")? })
    }
}
