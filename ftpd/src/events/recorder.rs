//! Notes an upload in the journal: an intent before the file is complete at its name, and the end after it.

use std::{os::unix::ffi::OsStrExt, sync::Arc};

use common::registry::LeaseAge;

use super::{
    EventsInner,
    actor::EventActor,
    begun::BegunEvent,
    record::{ChangeEvidence, EventKind, EventOrder},
};
use crate::{
    jail::{FileError, FileToPublish, PublicationRecorder},
    virtual_path::VirtualPath,
};

/// An upload, as its event tells of it.
pub(crate) struct RecordedUpload {
    pub kind: EventKind,
    pub actor: EventActor,
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
    /// The event, once it is in the journal.
    pub begun: Option<BegunEvent>,
}

impl UploadRecorder {
    fn begun(&self, file: &FileToPublish<'_>) -> Result<BegunEvent, FileError> {
        let root = self.events.directory.root().as_os_str().as_bytes();
        let below = file.directory.strip_prefix(root).unwrap_or(file.directory);
        let directory = below.strip_prefix(b"/").unwrap_or(below);
        let mut stored_at = Vec::new();
        for name in [directory, file.name].into_iter().filter(|name| !name.is_empty()) {
            stored_at.push(b'/');
            stored_at.extend_from_slice(name);
        }
        let RecordedUpload { kind, actor, path, lease } = &self.upload;
        let mut event = actor.event(&self.events, *kind, path, &stored_at);
        event.size = Some(file.size);
        event.sha256 = self.digest.map(hex::encode);
        let (epoch, lease) = lease.granted();
        let order = EventOrder { epoch, lease, changed: u64::try_from(file.changed).unwrap_or(0) };
        let evidence = ChangeEvidence::Publication {
            directory: directory.into(),
            name: file.name.into(),
            hidden: file.hidden.map(|names| names.map(Into::into)),
            inode: file.inode,
            proven: file.is_proven,
        };
        BegunEvent::begin(&self.events, event, order, evidence)
    }
}

impl PublicationRecorder for UploadRecorder {
    fn begin(&mut self, file: &FileToPublish<'_>) -> Result<(), FileError> {
        self.begun = Some(self.begun(file)?);
        Ok(())
    }

    fn set_digest(&mut self, sha256: [u8; 32]) {
        self.digest = Some(sha256);
    }

    fn complete(&mut self) {
        if let Some(begun) = self.begun.take() {
            begun.commit();
        }
    }

    fn fail(&mut self) {
        // Dropping it notes that nothing happened.
        self.begun = None;
    }
}
