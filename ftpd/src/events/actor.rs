//! Who did what an event tells of.

use std::net::IpAddr;

use common::session::SessionId;

use super::{
    EventsInner,
    record::{EVENT_VERSION, Event, EventKind, now, path_fields},
};
use crate::virtual_path::VirtualPath;

/// Who did what an event tells of.
#[derive(Clone, Debug)]
pub(crate) struct EventActor {
    pub session: SessionId,
    pub user: String,
    pub groups: Vec<String>,
    /// The client address.
    pub address: IpAddr,
}

impl EventActor {
    /// An event of this actor that happens now. It has no id yet. `stored_at` is the path below the root of
    /// the storage.
    pub(super) fn event(
        &self,
        events: &EventsInner,
        kind: EventKind,
        path: &VirtualPath,
        stored_at: &[u8],
    ) -> Event {
        let (path, path_hex) = path_fields(path.as_bytes());
        let (storage_path, storage_path_hex) = path_fields(stored_at);
        Event {
            v: EVENT_VERSION,
            id: String::new(),
            event: kind,
            time: now(),
            node: events.node.clone(),
            session: self.session,
            user: self.user.clone(),
            groups: self.groups.clone(),
            address: self.address,
            path,
            path_hex,
            storage_path,
            storage_path_hex,
            old_path: None,
            old_path_hex: None,
            old_storage_path: None,
            old_storage_path_hex: None,
            size: None,
            offset: None,
            sha256: None,
        }
    }
}
