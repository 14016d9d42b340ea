//! The details of the node's sessions: what each one does, as administrators see it while they watch.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use common::{
    live::{Direction, SessionDetails, TransferDetails},
    session::SessionId,
    sync::lock,
};

use crate::{virtual_path::VirtualPath, work::activity::ActivityHandle};

/// Maximum number of characters of a client program's name.
const CLIENT_LENGTH: usize = 64;

/// What a session does. The session notes it; nothing reads it unless an administrator watches, or the node
/// publishes its activity.
#[derive(Default)]
pub struct SessionActivity(Mutex<ActivityInner>);

#[derive(Default)]
struct ActivityInner {
    client: Option<Box<str>>,
    tls: Option<&'static str>,
    verb: Option<&'static str>,
    path: Option<VirtualPath>,
    last_command: Option<Instant>,
    transfer: Option<LiveTransfer>,
    /// Bytes of the transfers that have ended.
    total: Traffic,
}

struct LiveTransfer {
    direction: Direction,
    handle: Arc<ActivityHandle>,
    /// The time and the bytes of the previous look, from which the rate follows.
    previous: (Instant, u64),
}

/// Bytes that were moved in each direction. Listings do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub uploaded: u64,
    pub downloaded: u64,
}

impl Traffic {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            uploaded: self.uploaded.saturating_add(other.uploaded),
            downloaded: self.downloaded.saturating_add(other.downloaded),
        }
    }

    fn of(transfer: &LiveTransfer) -> Self {
        let bytes = transfer.handle.progress.transferred();
        match transfer.direction {
            Direction::Upload => Self { uploaded: bytes, downloaded: 0 },
            Direction::Download => Self { uploaded: 0, downloaded: bytes },
            Direction::Listing => Self::default(),
        }
    }
}

impl SessionActivity {
    fn inner(&self) -> MutexGuard<'_, ActivityInner> {
        lock(&self.0)
    }

    /// Notes the client program's name from CLNT.
    pub fn note_client(&self, name: &[u8]) {
        let name = String::from_utf8_lossy(name);
        let name: String = name.chars().filter(|c| !c.is_control()).take(CLIENT_LENGTH).collect();
        self.inner().client = Some(name.into());
    }

    /// Notes the TLS version of the control connection.
    pub fn note_tls(&self, version: &'static str) {
        self.inner().tls = Some(version);
    }

    /// Notes the start of a command.
    pub fn note_command(&self, verb: &'static str) {
        let mut inner = self.inner();
        inner.verb = Some(verb);
        inner.path = None;
        inner.last_command = Some(Instant::now());
    }

    /// Notes the path that the command's argument names.
    pub fn note_path(&self, path: Option<&VirtualPath>) {
        self.inner().path = path.cloned();
    }

    /// Notes a transfer that starts. Other activities than transfers are ignored.
    pub fn start_transfer(&self, handle: &Arc<ActivityHandle>) {
        let Some(direction) = direction_of(handle.verb) else { return };
        let previous = (handle.started, 0);
        self.inner().transfer = Some(LiveTransfer { direction, handle: Arc::clone(handle), previous });
    }

    /// Notes the end of the transfer, if one runs.
    pub fn end_activity(&self) {
        let mut inner = self.inner();
        if let Some(transfer) = inner.transfer.take() {
            inner.total = inner.total.plus(Traffic::of(&transfer));
        }
        inner.last_command = Some(Instant::now());
    }

    /// The bytes of all transfers of the session, the running one included.
    pub fn traffic(&self) -> Traffic {
        let inner = self.inner();
        inner.transfer.as_ref().map_or(inner.total, |running| inner.total.plus(Traffic::of(running)))
    }

    /// The session's details. The rate is that since the previous call.
    pub fn details(&self, id: SessionId) -> SessionDetails {
        let mut inner = self.inner();
        let now = Instant::now();
        let mut traffic = inner.total;
        let transfer = inner.transfer.as_mut().map(|transfer| {
            traffic = traffic.plus(Traffic::of(transfer));
            let bytes = transfer.handle.progress.transferred();
            let (before, moved) = mem::replace(&mut transfer.previous, (now, bytes));
            let elapsed = now.saturating_duration_since(before).as_secs_f64();
            TransferDetails {
                direction: transfer.direction,
                bytes,
                size: transfer.handle.size,
                rate: if elapsed > 0.0 { bytes.saturating_sub(moved) as f64 / elapsed } else { 0.0 },
                seconds: transfer.handle.started.elapsed().as_secs_f64(),
            }
        });
        let idle = match (&transfer, inner.last_command) {
            (None, Some(last)) => now.saturating_duration_since(last).as_secs_f64(),
            (Some(_), _) | (None, None) => 0.0,
        };
        SessionDetails {
            id,
            client: inner.client.as_deref().map(str::to_owned),
            tls: inner.tls.map(str::to_owned),
            command: inner.verb.map(str::to_owned),
            path: inner.path.as_ref().map(ToString::to_string),
            idle,
            transfer,
            uploaded: traffic.uploaded,
            downloaded: traffic.downloaded,
        }
    }
}

/// The direction of the transfer that a verb starts. `None`: the verb starts none.
fn direction_of(verb: &str) -> Option<Direction> {
    match verb {
        "STOR" | "STOU" | "APPE" => Some(Direction::Upload),
        "RETR" => Some(Direction::Download),
        "LIST" | "NLST" | "MLSD" => Some(Direction::Listing),
        _ => None,
    }
}
