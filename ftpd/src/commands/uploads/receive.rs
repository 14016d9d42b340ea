//! The work of an upload on its worker: receives the bytes, decides whether the upload is complete, and
//! publishes or keeps the file.

use std::{sync::Arc, thread, time::Duration};

use common::registry::WriteLease;

use super::evidence::Evidence;
use crate::{
    data::{Coding, CopyError, copy::CopyJob, stream::DataStream},
    jail::{FileError, Upload},
    limits::quota::QuotaReservation,
    node::Node,
    transfer::{LeaseToRelease, TransferFailure},
    work::{RuntimeBridge, presence::ClientPresence},
};

/// A file that is open for an upload, until the upload is complete. The fields are dropped in this order.
pub(super) struct OpenUpload {
    pub upload: Upload,
    /// Dropped after the upload, which notes changes when it is dropped.
    pub reservation: Option<Arc<QuotaReservation>>,
    /// While the lease is held, no other session writes this path.
    pub lease: WriteLease,
}

/// Returns a function that checks by the age of the lease whether the upload may still write. It protects
/// files on storage whose locks do not hold on all nodes.
pub(super) fn lease_guard(lease: &WriteLease) -> impl Fn() -> bool + Send + Sync + 'static {
    let age = lease.age();
    move || !age.is_expired()
}

/// The settings and conditions of one upload.
pub(super) struct UploadTerms {
    /// The size that ALLO announced. `None` in TYPE A.
    pub announced: Option<u64>,
    pub coding: Coding,
    /// Compute SHA-256 of the file, which this upload writes from its beginning.
    pub digest: bool,
    /// `sync_uploads`.
    pub sync: bool,
    /// `settle_time`.
    pub settle_time: Duration,
    pub bridge: RuntimeBridge,
    pub node: Arc<Node>,
}

impl OpenUpload {
    /// Receives the upload, and publishes or keeps the file. Returns the lease of a direct upload: its
    /// release shows whether it was held until now. The lease of a partial file is checked before the rename.
    pub(super) fn receive(
        mut self,
        terms: &UploadTerms,
        stream: &mut DataStream,
        job: CopyJob<'_>,
    ) -> Result<Option<LeaseToRelease>, TransferFailure> {
        let reservation = self.reservation.take();
        let may_store = lease_guard(&self.lease);
        let is_guarded = !self.upload.is_fenced();
        let job = job.guarded_by(is_guarded.then_some(&may_store as &dyn Fn() -> bool));
        let job = if terms.digest { job.with_digest() } else { job };
        let result = self.receive_and_end(terms, stream, &job);
        if let Some(reservation) = reservation {
            reservation.settle();
        }
        result
    }

    fn receive_and_end(
        mut self,
        terms: &UploadTerms,
        stream: &mut DataStream,
        job: &CopyJob<'_>,
    ) -> Result<Option<LeaseToRelease>, TransferFailure> {
        let start = self.upload.begin()?;
        job.progress.set_start(start);
        let received = match self.receive_data(terms, stream, start, job) {
            // The stream ended without close_notify. ALLO may still prove that the upload is complete.
            Err(TransferFailure::Copy(CopyError::NoCloseNotify)) => {
                job.note_end();
                Ok(job.progress.transferred())
            }
            received => received,
        };
        match received.and_then(|got| self.check_end(terms, stream, start, got, job)) {
            Ok(()) => {
                if let Some(digest) = job.digest() {
                    job.progress.set_digest(digest);
                    self.upload.set_digest(digest);
                }
                self.publish(terms, stream, start + job.stored())
            }
            Err(failure) => {
                match failure {
                    TransferFailure::LeaseLost | TransferFailure::LeaseExpired => {
                        self.upload.leave_untouched()
                    }
                    TransferFailure::Storage(_) => self.upload.keep_if_durable(),
                    _ => self.upload.abandon(),
                }
                Err(failure)
            }
        }
    }

    /// Gives the complete file, which has `length` bytes, its final name.
    fn publish(
        self,
        terms: &UploadTerms,
        stream: &mut DataStream,
        length: u64,
    ) -> Result<Option<LeaseToRelease>, TransferFailure> {
        let (is_atomic, is_fenced) = (self.upload.is_atomic(), self.upload.is_fenced());
        let recorder = self.upload.finish(terms.sync, length).map_err(|error| match error {
            FileError::WriteRightLost => TransferFailure::LeaseLost,
            error => error.into(),
        })?;
        stream.finish_receiving();
        // `check_end` has checked the lease of a partial file.
        Ok((!is_atomic).then_some(LeaseToRelease {
            lease: self.lease,
            must_be_held: !is_fenced,
            recorder: recorder.map(|recorder| terms.node.workers.off_runtime(recorder)),
        }))
    }

    /// Stores the bytes that arrive, and returns their number. Truncates the file only once the first bytes
    /// have arrived.
    fn receive_data(
        &mut self,
        terms: &UploadTerms,
        stream: &mut DataStream,
        start: u64,
        job: &CopyJob<'_>,
    ) -> Result<u64, TransferFailure> {
        let first = stream.await_first(job);
        if first > 0 && !job.progress.is_cancelled() {
            self.upload.prepare_write(first as u64).map_err(|error| match error {
                FileError::WriteRightLost => TransferFailure::LeaseExpired,
                error => error.into(),
            })?;
        }
        Ok(stream.receive_file(self.upload.file(), start, terms.coding, job)?)
    }

    /// Checks that the upload is complete. For a partial file, also checks that this session still holds the
    /// lease, unless a lock on the storage proves it. The lease of a direct upload is checked when it is
    /// released ([`LeaseToRelease`]).
    ///
    /// A client that is killed closes both connections, and a balancer may deliver the two ends in either
    /// order. A partial file is published only if the control connection is still open `settle_time` after
    /// the end of the data, unless ALLO proves that the upload is complete.
    fn check_end(
        &self,
        terms: &UploadTerms,
        stream: &DataStream,
        start: u64,
        got: u64,
        job: &CopyJob<'_>,
    ) -> Result<(), TransferFailure> {
        let is_atomic = self.upload.is_atomic();
        let mut evidence = Evidence {
            end: stream.data_end(),
            client_is_present: job.client.is_some_and(ClientPresence::was_present_at_end),
            close_notify_required: stream.close_notify_required(),
            announced: terms.announced,
            start,
            got,
        };
        if is_atomic && evidence.client_is_present && !evidence.meets_announcement() {
            thread::sleep(terms.settle_time);
            evidence.client_is_present = !job.client.is_some_and(ClientPresence::has_left);
        }
        if job.progress.is_cancelled() {
            return Err(CopyError::of_cancellation(job.progress).into());
        }
        evidence.check()?;
        if is_atomic && !self.upload.is_fenced() && !terms.bridge.wait(self.lease.is_held()) {
            return Err(TransferFailure::LeaseLost);
        }
        Ok(())
    }
}
