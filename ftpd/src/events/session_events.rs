//! The events of one session: what its commands note in the journal.

use std::sync::Arc;

use common::registry::{LeaseAge, WriteLease};

use super::{
    EventsInner,
    actor::EventActor,
    begun::{BegunEvent, note, now_in_ns},
    filter::FilteredEvent,
    record::{ChangeEvidence, Event, EventKind, EventOrder, path_fields},
    recorder::{RecordedUpload, UploadRecorder},
};
use crate::{
    jail::{FileError, Jail, NamedEntry, PublicationRecorder},
    virtual_path::VirtualPath,
};

/// The events of one session, or their absence. The methods block, except where it is said.
#[derive(Clone)]
pub(crate) struct SessionEvents(pub(super) Option<(Arc<EventsInner>, EventActor)>);

/// A rename or removal that is about to be made. Dropping it notes that it was not made.
#[must_use]
pub(crate) struct ChangeRecorder(Option<BegunEvent>);

impl ChangeRecorder {
    /// Notes whether the change was made, which `result` tells. Blocks.
    pub(crate) fn end<T, E>(self, result: Result<T, E>) -> Result<T, E> {
        if let (Some(begun), true) = (self.0, result.is_ok()) {
            begun.commit();
        }
        result
    }
}

impl SessionEvents {
    /// Who did it, if a receiver wants the event.
    fn wanted(
        &self,
        kind: EventKind,
        path: &VirtualPath,
        old_path: Option<&VirtualPath>,
    ) -> Option<(&Arc<EventsInner>, &EventActor)> {
        let (events, actor) = self.0.as_ref()?;
        let event = FilteredEvent { kind, user: &actor.user, groups: &actor.groups, path, old_path };
        events.receivers.load().want(&event).then_some((events, actor))
    }

    /// The recorder of an upload under this lease; `None` if no receiver wants its event. Does not block.
    pub(crate) fn upload_recorder(
        &self,
        kind: EventKind,
        path: &VirtualPath,
        lease: LeaseAge,
    ) -> Option<Box<dyn PublicationRecorder>> {
        let (events, actor) = self.wanted(kind, path, None)?;
        let upload = RecordedUpload { kind, actor: actor.clone(), path: path.clone(), lease };
        Some(Box::new(UploadRecorder { events: Arc::clone(events), upload, digest: None, begun: None }))
    }

    /// Notes that `from` is about to be renamed to `to`, under this lease of both names.
    ///
    /// # Errors
    /// There is nothing at `from`; or the note is not on stable storage, so the rename must not be made.
    pub(crate) fn begin_rename(
        &self,
        jail: &Jail,
        from: &VirtualPath,
        to: &VirtualPath,
        lease: &WriteLease,
    ) -> Result<ChangeRecorder, FileError> {
        let Some((events, actor)) = self.wanted(EventKind::Rename, to, Some(from)) else {
            return Ok(ChangeRecorder(None));
        };
        let NamedEntry { key: old_key, inode, size, .. } = jail.named_entry(from)?;
        let mut event = actor.event(events, EventKind::Rename, to, &stored_at(&jail.name_key(to)?));
        let (old_path, old_path_hex) = path_fields(from.as_bytes());
        let (old_storage_path, old_storage_path_hex) = path_fields(&stored_at(&old_key));
        event = Event {
            old_path: Some(old_path),
            old_path_hex,
            old_storage_path: Some(old_storage_path),
            old_storage_path_hex,
            size,
            ..event
        };
        begin(events, event, lease, ChangeEvidence::Rename { inode })
    }

    /// Notes that `path` is about to be removed, under this lease of its name. Nothing is noted if there is
    /// nothing at the name.
    ///
    /// # Errors
    /// The note is not on stable storage, so nothing must be removed.
    pub(crate) fn begin_removal(
        &self,
        jail: &Jail,
        path: &VirtualPath,
        lease: &WriteLease,
    ) -> Result<ChangeRecorder, FileError> {
        let Some((events, actor)) = self.wanted(EventKind::Delete, path, None) else {
            return Ok(ChangeRecorder(None));
        };
        let NamedEntry { key, inode, born, size } = match jail.named_entry(path) {
            Err(FileError::NotFound) => return Ok(ChangeRecorder(None)),
            entry => entry?,
        };
        let mut event = actor.event(events, EventKind::Delete, path, &stored_at(&key));
        event.size = size;
        begin(events, event, lease, ChangeEvidence::Removal { inode, born })
    }

    /// Returns true if a receiver wants the event of a download of `path`. Does not block.
    pub(crate) fn want_download(&self, path: &VirtualPath) -> bool {
        self.wanted(EventKind::Download, path, None).is_some()
    }

    /// Notes a complete download of `bytes` bytes from `offset` on.
    ///
    /// # Errors
    /// The note is not on stable storage, so the client must not be told that the download is complete.
    pub(crate) fn note_download(
        &self,
        path: &VirtualPath,
        stored_at: &[u8],
        offset: u64,
        bytes: u64,
    ) -> Result<(), FileError> {
        let Some((events, actor)) = self.wanted(EventKind::Download, path, None) else { return Ok(()) };
        let mut event = actor.event(events, EventKind::Download, path, stored_at);
        (event.size, event.offset) = (Some(bytes), (offset > 0).then_some(offset));
        note(events, event)
    }

    /// Returns true if a receiver wants the event of a login. Does not block.
    pub(crate) fn want_login(&self) -> bool {
        self.wanted(EventKind::Login, &VirtualPath::root(), None).is_some()
    }

    /// Notes a login into the home `stored_at`.
    ///
    /// # Errors
    /// The note is not on stable storage, so the client must not be told that it is logged in.
    pub(crate) fn note_login(&self, stored_at: &[u8]) -> Result<(), FileError> {
        let home = VirtualPath::root();
        let Some((events, actor)) = self.wanted(EventKind::Login, &home, None) else { return Ok(()) };
        let stored_at = match stored_at {
            [path @ .., b'/'] if !path.is_empty() => path,
            path => path,
        };
        note(events, actor.event(events, EventKind::Login, &home, stored_at))
    }
}

fn begin(
    events: &Arc<EventsInner>,
    event: Event,
    lease: &WriteLease,
    evidence: ChangeEvidence,
) -> Result<ChangeRecorder, FileError> {
    let (epoch, lease) = lease.age().granted();
    let order = EventOrder { epoch, lease, changed: now_in_ns() };
    BegunEvent::begin(events, event, order, evidence).map(|begun| ChangeRecorder(Some(begun)))
}

/// The path below the root of the storage, with the leading slash that keys do not have.
fn stored_at(key: &[u8]) -> Vec<u8> {
    [b"/", key].concat()
}
