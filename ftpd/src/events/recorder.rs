//! Notes an upload in the journal: an intent before the file is complete at its name, and the end after it.

use std::{net::IpAddr, os::unix::ffi::OsStrExt, sync::Arc};

use common::{registry::LeaseAge, session::SessionId};

use super::{
    EventsInner, fault,
    record::{EVENT_VERSION, Event, EventKind, EventOrder, Intent, JournalEntry, now, path_fields},
};
use crate::{
    jail::{FileError, FileToPublish, PublicationRecorder},
    virtual_path::VirtualPath,
};

/// An upload, as its event tells of it.
pub(crate) struct RecordedUpload {
    pub kind: EventKind,
    pub session: SessionId,
    pub user: String,
    pub groups: Vec<String>,
    pub address: IpAddr,
    pub path: VirtualPath,
    /// The upload's write lease.
    pub lease: LeaseAge,
}

/// The [`PublicationRecorder`] of an upload.
pub(super) struct UploadRecorder {
    pub events: Arc<EventsInner>,
    pub upload: RecordedUpload,
    /// SHA-256 of the file, if the node computes it.
    pub digest: Option<[u8; 32]>,
    pub state: RecorderState,
}

/// Progress of the event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RecorderState {
    Idle,
    /// The event with this number is in the journal, and its end is not.
    Begun(u64),
    Ended,
}

impl UploadRecorder {
    fn intent(&self, n: u64, file: &FileToPublish<'_>) -> Intent {
        let root = self.events.directory.root().as_os_str().as_bytes();
        let below = file.directory.strip_prefix(root).unwrap_or(file.directory);
        let directory = below.strip_prefix(b"/").unwrap_or(below);
        let mut stored_at = Vec::new();
        for name in [directory, file.name].into_iter().filter(|name| !name.is_empty()) {
            stored_at.push(b'/');
            stored_at.extend_from_slice(name);
        }
        let (path, path_hex) = path_fields(self.upload.path.as_bytes());
        let (storage_path, storage_path_hex) = path_fields(&stored_at);
        let (epoch, lease) = self.upload.lease.granted();
        Intent {
            n,
            event: Event {
                v: EVENT_VERSION,
                id: self.events.journal.event_id(n),
                event: self.upload.kind,
                time: now(),
                node: self.events.node.clone(),
                session: self.upload.session,
                user: self.upload.user.clone(),
                groups: self.upload.groups.clone(),
                address: self.upload.address,
                path,
                path_hex,
                storage_path,
                storage_path_hex,
                size: file.size,
                sha256: self.digest.map(hex::encode),
            },
            directory: directory.into(),
            name: file.name.into(),
            hidden: file.hidden.map(|names| names.map(Into::into)),
            inode: file.inode,
            order: EventOrder { epoch, lease, changed: u64::try_from(file.changed).unwrap_or(0) },
            proven: file.is_proven,
        }
    }

    fn end(&mut self, entry: impl FnOnce(u64) -> JournalEntry) {
        if let RecorderState::Begun(n) = self.state {
            self.state = RecorderState::Ended;
            self.events.journal.settle(entry(n));
            self.events.wake();
        }
    }
}

impl PublicationRecorder for UploadRecorder {
    fn begin(&mut self, file: &FileToPublish<'_>) -> Result<(), FileError> {
        fault::pass("before_intent");
        let n = self.events.journal.next_number();
        // Even if this fails, the line may be in the journal.
        self.state = RecorderState::Begun(n);
        self.events.journal.begin(self.intent(n, file))?;
        fault::pass("after_intent");
        Ok(())
    }

    fn set_digest(&mut self, sha256: [u8; 32]) {
        self.digest = Some(sha256);
    }

    fn complete(&mut self) {
        fault::pass("before_commit");
        self.end(JournalEntry::Commit);
        fault::pass("after_commit");
    }

    fn fail(&mut self) {
        self.end(JournalEntry::Abort);
    }
}

impl Drop for UploadRecorder {
    fn drop(&mut self) {
        self.end(JournalEntry::Abort);
    }
}
