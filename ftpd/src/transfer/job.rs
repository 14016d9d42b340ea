//! The work of a transfer: what it does with its data connection.

use common::registry::WriteLease;

use super::TransferFailure;
use crate::{
    data::{copy::CopyJob, stream::DataStream},
    jail::PublicationRecorder,
    work::{OffRuntime, Workers},
};

/// The work of a transfer on its data connection.
pub(crate) enum TransferWork {
    /// Runs on a worker once the data connection is open.
    OnWorker(OffRuntime<WorkerJob<()>>),
    /// Runs on a worker once the first bytes have arrived. If it returns a lease, the release of the lease
    /// ends the transfer.
    Receive(OffRuntime<WorkerJob<Option<LeaseToRelease>>>),
    /// Sends these few bytes without a worker.
    Send(Vec<u8>),
}

/// A closure that moves the data of a transfer, on a worker.
pub(crate) type WorkerJob<T> =
    Box<dyn FnOnce(&mut DataStream, CopyJob<'_>) -> Result<T, TransferFailure> + Send>;

impl TransferWork {
    /// [`TransferWork::OnWorker`].
    pub(crate) fn on_worker(
        workers: &Workers,
        work: impl FnOnce(&mut DataStream, CopyJob<'_>) -> Result<(), TransferFailure> + Send + 'static,
    ) -> Self {
        Self::OnWorker(workers.off_runtime(Box::new(work)))
    }

    /// [`TransferWork::Receive`].
    pub(crate) fn receive(
        workers: &Workers,
        work: impl FnOnce(&mut DataStream, CopyJob<'_>) -> Result<Option<LeaseToRelease>, TransferFailure>
        + Send
        + 'static,
    ) -> Self {
        Self::Receive(workers.off_runtime(Box::new(work)))
    }
}

/// The write lease of a complete upload. It is released before the reply.
pub(crate) struct LeaseToRelease {
    pub lease: WriteLease,
    /// True if the upload is complete only if the lease was held until now. False if a lock on the storage
    /// that holds on all nodes proves that no other session wrote the path.
    pub must_be_held: bool,
    /// Is told whether the upload is complete. `None`: it knows, or there is no event.
    pub recorder: Option<OffRuntime<Box<dyn PublicationRecorder>>>,
}

impl LeaseToRelease {
    /// Releases the lease.
    ///
    /// # Errors
    /// [`TransferFailure::LeaseLost`] if the lease must be held, and was lost.
    pub(super) async fn release(self, workers: &Workers) -> Result<(), TransferFailure> {
        let was_held = self.lease.give_back().await;
        let is_complete = was_held || !self.must_be_held;
        if let Some(recorder) = self.recorder {
            let record = move || {
                let mut recorder = recorder.into_inner();
                if is_complete { recorder.complete() } else { recorder.fail() }
            };
            workers.run_without_slot(record).await;
        }
        if is_complete { Ok(()) } else { Err(TransferFailure::LeaseLost) }
    }
}
