//! Moves bytes between a client and a server, and keeps the meaning of each end.
//!
//! An orderly end of one side's stream reaches the other side as an orderly end, after all bytes; the
//! opposite direction goes on. Everything else reaches it as a reset: a reset, an error, a stall, the drop of
//! the future, the death of the process. An upload that was cut must never look complete.

use std::{io, time::Duration};

use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    select,
    task::yield_now,
    time::sleep,
};

use super::{
    ends::{self, StreamEnd},
    flow::{Broken, Flow, Want},
    stall::StallWatch,
};

/// Limits and hooks of [`pump`].
#[derive(Clone, Copy)]
pub struct PumpLimits {
    /// The connection is reset when no byte has moved in either direction for this time. `None`: no limit.
    pub stall: Option<Duration>,
    /// Moves bytes with splice(2). It does not pass urgent data, so control connections cannot use it.
    pub splice: bool,
    /// Called with numbers of bytes that moved to the server.
    pub to_server: fn(u64),
    /// Called with numbers of bytes that moved to the client.
    pub to_client: fn(u64),
}

/// The result of [`pump`].
#[derive(Debug)]
pub struct PumpResult {
    /// Bytes that the server's socket has taken.
    pub to_server: u64,
    /// Bytes that the client's socket has taken.
    pub to_client: u64,
    pub end: PumpEnd,
    /// The error of the socket that broke.
    pub error: Option<io::Error>,
}

/// The end of a relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PumpEnd {
    /// Both sides ended their streams.
    Orderly,
    /// One side ended its stream and then reset the connection, as when a TLS client or server does not wait
    /// for the other's close_notify. The stream was delivered, and then the other side was reset.
    ResetAfterEnd,
    ClientReset,
    ServerReset,
    Stalled,
    /// The program ends.
    Cancelled,
    /// A socket refuses its options.
    Unusable,
}

impl PumpEnd {
    /// The label `end` of `ftp_relay_ended_total`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Orderly => "orderly",
            Self::ResetAfterEnd => "reset_after_end",
            Self::ClientReset => "client_reset",
            Self::ServerReset => "node_reset",
            Self::Stalled => "stalled",
            Self::Cancelled => "cancelled",
            Self::Unusable => "unusable",
        }
    }
}

/// Moves bytes in both directions until both have ended, or the connection breaks. Returns after it has
/// closed both sockets: in an orderly way only if both directions ended in an orderly way.
///
/// Both sockets must already reset their connection when they are closed, see [`ends::reset_on_close`].
/// Dropping the future therefore resets both.
pub async fn pump(client: TcpStream, server: TcpStream, limits: PumpLimits) -> PumpResult {
    let options = ends::set_options(&client).and_then(|()| ends::set_options(&server));
    if let Err(error) = options {
        return PumpResult { to_server: 0, to_client: 0, end: PumpEnd::Unusable, error: Some(error) };
    }
    let mut pump = Pump {
        up: Flow::new(limits.splice, limits.to_server),
        down: Flow::new(limits.splice, limits.to_client),
        client,
        server,
        error: None,
    };
    let mut end = pump.run(limits.stall).await;
    if end == PumpEnd::Orderly
        && let Err(error) = ends::end_on_close(&pump.client).and_then(|()| ends::end_on_close(&pump.server))
    {
        (end, pump.error) = (PumpEnd::Unusable, Some(error));
    }
    PumpResult { to_server: pump.up.moved(), to_client: pump.down.moved(), end, error: pump.error }
}

struct Pump {
    client: TcpStream,
    server: TcpStream,
    /// From the client to the server.
    up: Flow,
    /// From the server to the client.
    down: Flow,
    error: Option<io::Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// The reason why [`Pump::wait`] returned.
enum Woken {
    Ready,
    /// The socket of this side has an error.
    Error(Side),
    /// The stall limit may have been reached.
    Timer,
    /// The runtime ends.
    Shutdown,
}

impl Pump {
    async fn run(&mut self, stall: Option<Duration>) -> PumpEnd {
        let mut watch = StallWatch::new(stall);
        loop {
            let before = self.moved();
            let (up, down) = match self.step() {
                Ok(wants) => wants,
                Err((side, error)) => {
                    self.error = Some(error);
                    return self.broken(side, self.from(side).is_read_to_end(), stall).await;
                }
            };
            if self.moved() != before {
                watch.note_move();
            }
            if self.up.has_ended() && self.down.has_ended() {
                return PumpEnd::Orderly;
            }
            if up == Want::Turn || down == Want::Turn {
                yield_now().await;
                continue;
            }
            match self.wait(up, down, watch.timer()).await {
                Woken::Ready => {}
                Woken::Error(side) => {
                    let has_ended = self.from(side).is_read_to_end()
                        || ends::reset_after_end(self.socket(side)) == StreamEnd::OrderlyThenReset;
                    return self.broken(side, has_ended, stall).await;
                }
                Woken::Timer => {
                    if watch.is_stalled(|| self.unacknowledged()) {
                        return PumpEnd::Stalled;
                    }
                }
                Woken::Shutdown => return PumpEnd::Cancelled,
            }
        }
    }

    /// The connection of `side` broke. `has_ended`: that side had ended its stream before, so what it sent is
    /// complete, and reaches the other side together with its end before the other side is reset.
    async fn broken(&mut self, side: Side, has_ended: bool, stall: Option<Duration>) -> PumpEnd {
        let reset = |side| match side {
            Side::Client => PumpEnd::ClientReset,
            Side::Server => PumpEnd::ServerReset,
        };
        if !has_ended {
            return reset(side);
        }
        let other = match side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let mut watch = StallWatch::new(stall);
        let mut pause = Duration::from_millis(1);
        loop {
            let (flow, from, to) = match side {
                Side::Client => (&mut self.up, &self.client, &self.server),
                Side::Server => (&mut self.down, &self.server, &self.client),
            };
            let before = flow.moved();
            let want = match flow.step(from, to, true) {
                Ok(want) => want,
                Err(Broken::Source(_)) => return reset(side),
                Err(Broken::Destination(_)) => return reset(other),
            };
            if flow.moved() != before {
                watch.note_move();
            }
            let ready = |interest| to.ready(interest);
            select! {
                () = yield_now(), if want == Want::Turn => {}
                ready = ready(Interest::ERROR), if want != Want::Turn => {
                    return if ready.is_ok() { reset(other) } else { PumpEnd::Cancelled };
                }
                _ = from.readable(), if want == Want::Source => {}
                _ = to.writable(), if want == Want::Destination => {}
                () = sleep(pause), if want == Want::Nothing => {
                    if matches!(ends::unacknowledged(to), Ok(0) | Err(_)) {
                        return PumpEnd::ResetAfterEnd;
                    }
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
                () = watch.timer() => {
                    if watch.is_stalled(|| ends::unacknowledged(to).unwrap_or(0)) {
                        return PumpEnd::Stalled;
                    }
                }
            }
        }
    }

    /// Moves what can move. The error is that of one side's socket.
    fn step(&mut self) -> Result<(Want, Want), (Side, io::Error)> {
        // After this side has shut down sending to a peer, a read of 0 bytes from it is certainly its end.
        // `up` may end in its own step, so the state is read before each step.
        let is_end_certain = self.down.has_ended();
        let up = self.up.step(&self.client, &self.server, is_end_certain);
        let up = up.map_err(|broken| match broken {
            Broken::Source(error) => (Side::Client, error),
            Broken::Destination(error) => (Side::Server, error),
        })?;
        let is_end_certain = self.up.has_ended();
        let down = self.down.step(&self.server, &self.client, is_end_certain);
        let down = down.map_err(|broken| match broken {
            Broken::Source(error) => (Side::Server, error),
            Broken::Destination(error) => (Side::Client, error),
        })?;
        Ok((up, down))
    }

    /// Waits until one of the flows may go on, or a socket has an error. A socket's error counts even while
    /// nothing is read from it or written to it.
    async fn wait(&self, up: Want, down: Want, timer: impl Future<Output = ()>) -> Woken {
        let interest = |reads, writes| {
            let mut interest = Interest::ERROR;
            if reads {
                interest |= Interest::READABLE;
            }
            if writes {
                interest |= Interest::WRITABLE;
            }
            interest
        };
        let of_client = interest(up == Want::Source, down == Want::Destination);
        let of_server = interest(down == Want::Source, up == Want::Destination);
        let woken = |side, ready: io::Result<Ready>| match ready {
            Ok(ready) if ready.is_error() => Woken::Error(side),
            Ok(_) => Woken::Ready,
            Err(_) => Woken::Shutdown,
        };
        select! {
            ready = self.client.ready(of_client) => woken(Side::Client, ready),
            ready = self.server.ready(of_server) => woken(Side::Server, ready),
            () = timer => Woken::Timer,
        }
    }

    fn moved(&self) -> u64 {
        self.up.moved() + self.down.moved()
    }

    fn unacknowledged(&self) -> usize {
        [&self.client, &self.server].into_iter().map(|socket| ends::unacknowledged(socket).unwrap_or(0)).sum()
    }

    /// The flow from this side.
    fn from(&self, side: Side) -> &Flow {
        match side {
            Side::Client => &self.up,
            Side::Server => &self.down,
        }
    }

    fn socket(&self, side: Side) -> &TcpStream {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}
