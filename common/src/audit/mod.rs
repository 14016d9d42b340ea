//! The audit trail: one record for every login, transfer, change, refusal and administrative action.
//!
//! A daemon has one [`AuditTrail`]. [`AuditTrail::record`] queues a record and never waits. One thread makes
//! JSON lines of the records and writes them to the sink of `audit_log`. A task appends the same lines to a
//! stream in Redis, which keeps the newest `audit_records` for searches.

mod losses;
mod options;
pub mod record;
mod sink;
mod stream;
mod trail;

pub use self::{
    options::{AUDIT_LOG, AUDIT_RECORDS, AuditOptions, AuditSink},
    record::{AuditEvent, AuditPath, AuditRecord, AuditResult, InvalidAuditEvent, SCHEMA_VERSION},
    sink::AuditLogError,
    stream::{AuditRange, InvalidStreamId, StreamId},
    trail::AuditTrail,
};
