//! Plain uploads that end by a reset at a random moment, beside some that end in order: only the latter may
//! get 226.

use std::{
    fs,
    io::{self, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    content::bytes,
    dialogue::{Dialogue, reset},
    random::Random,
};

/// Uploads of many simultaneous sessions.
pub struct CutUploads<'a> {
    /// Returns a session that is logged in. Called once for each of `sessions`.
    pub session: &'a (dyn Fn() -> Dialogue + Sync),
    /// Returns the address for a data connection whose address EPSV announced.
    pub door: &'a (dyn Fn(SocketAddr) -> SocketAddr + Sync),
    /// The homes in which the files may be: of several, the one on whose node the session is.
    pub homes: Vec<PathBuf>,
    /// Number of simultaneous sessions.
    pub sessions: usize,
    /// Number of uploads that end by a reset. There are a tenth as many orderly ones beside them.
    pub resets: usize,
}

/// The uploads that were cut and whose replies the client has.
#[derive(Debug, Default)]
pub struct CutReplies {
    /// Number of uploads that ended by a reset.
    pub resets: usize,
    /// Description of each upload that was reset and got 226.
    pub confirmed: Vec<String>,
}

/// The moment at which the client resets a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeStor,
    BeforeTheReply,
    WithoutData,
    WithinTheData,
    AfterTheData,
}

impl CutUploads<'_> {
    /// Performs all uploads.
    ///
    /// # Panics
    /// An orderly upload does not get 226, an upload that was reset gets a reply other than 226, 425 and 426,
    /// or a file contains a byte that its client did not send.
    pub fn run(&self) -> CutReplies {
        let (next, replies) = (AtomicUsize::new(0), Mutex::<CutReplies>::default());
        thread::scope(|scope| {
            for _ in 0..self.sessions {
                scope.spawn(|| {
                    let mut session = (self.session)();
                    session.command("TYPE I", 200);
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.resets {
                            break;
                        }
                        let confirmed = self.cut(&mut session, number);
                        let mut replies = replies.lock().unwrap_or_else(PoisonError::into_inner);
                        replies.resets += 1;
                        replies.confirmed.extend(confirmed);
                        drop(replies);
                        if number % 10 == 0 {
                            self.complete(&mut session, number);
                        }
                    }
                    session.quit();
                });
            }
        });
        replies.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Performs an upload that ends by a reset. Describes it if it gets 226.
    fn cut(&self, session: &mut Dialogue, number: usize) -> Option<String> {
        let mut random = Random::new(number as u64);
        let content = content(&mut random);
        let moment = random.weighted(&[
            (1, Moment::BeforeStor),
            (1, Moment::BeforeTheReply),
            (1, Moment::WithoutData),
            (4, Moment::WithinTheData),
            (3, Moment::AfterTheData),
        ]);
        let length = match moment {
            Moment::BeforeStor | Moment::BeforeTheReply | Moment::WithoutData => 0,
            Moment::WithinTheData => random.below(content.len()),
            Moment::AfterTheData => content.len(),
        };
        let name = format!("cut-{number}");
        let command = format!("STOR {name}");
        let address = (self.door)(session.epsv());
        let mut data = session.data_connection(address);
        let reply = match moment {
            Moment::BeforeStor => {
                thread::sleep(Duration::from_micros(random.below(3000) as u64));
                reset(data);
                session.send(&command);
                session.reply()
            }
            Moment::BeforeTheReply => {
                session.send(&command);
                reset(data);
                session.reply()
            }
            _ => {
                session.send(&command);
                let reply = session.reply();
                // If the server has ended the connection already, its reply is judged all the same.
                let _ = send(&mut data, &content[..length], &mut random);
                thread::sleep(Duration::from_micros(random.below(3000) as u64));
                reset(data);
                reply
            }
        };
        let reply = if reply.code == 150 { session.reply() } else { reply };
        self.check_stored(&name, &content[..length]);
        match reply.code {
            425 | 426 => None,
            226 => {
                Some(format!("{name}: reset {moment:?}, {length} of {} bytes sent: {reply:?}", content.len()))
            }
            _ => panic!("{name}: reset {moment:?} after {length} bytes: {reply:?}"),
        }
    }

    /// Performs an upload that ends in order, and checks that the whole file is stored when 226 arrives.
    fn complete(&self, session: &mut Dialogue, number: usize) {
        let mut random = Random::new(u64::MAX - number as u64);
        let content = content(&mut random);
        let name = format!("complete-{number}");
        let address = (self.door)(session.epsv());
        let mut data = session.data_connection(address);
        session.command(&format!("STOR {name}"), 150);
        send(&mut data, &content, &mut random)
            .and_then(|()| data.shutdown(Shutdown::Write))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        session.expect(226);
        let stored = self.stored(&name).unwrap_or_else(|| panic!("{name} got 226 and is not stored"));
        assert!(stored == content, "{name}: {} bytes are stored of {}", stored.len(), content.len());
    }

    fn stored(&self, name: &str) -> Option<Vec<u8>> {
        self.homes.iter().find_map(|home| fs::read(home.join(name)).ok())
    }

    fn check_stored(&self, name: &str, sent: &[u8]) {
        let stored = self.stored(name).unwrap_or_default();
        let (count, length) = (stored.len(), sent.len());
        assert!(
            sent.starts_with(&stored),
            "{name}: {count} bytes are stored, which do not begin the {length} sent"
        );
    }
}

/// Mostly small, so that many uploads fit in a second; some are larger than the buffers on their way.
fn content(random: &mut Random) -> Vec<u8> {
    let largest = random.weighted(&[(5, 2_000), (10, 60_000), (4, 400_000), (1, 4_000_000)]);
    bytes(random.number(), 1 + random.below(largest))
}

/// Sends in pieces, with some pauses.
fn send(data: &mut TcpStream, content: &[u8], random: &mut Random) -> io::Result<()> {
    for piece in content.chunks(1 + random.below(100_000)) {
        data.write_all(piece)?;
        if random.chance(20) {
            thread::sleep(Duration::from_micros(random.below(2000) as u64));
        }
    }
    Ok(())
}

/// Sends a file slowly over the data connection of an upload that has begun, ends it in order, and waits
/// for the reply. Returns true if the reply is 226. Any part between client and node may end meanwhile.
///
/// # Panics
/// The reply is 226 although the client could not send everything and end in order, or although the stored
/// file is not the content; or the reply is not 226, 425 or 426.
pub fn upload_slowly(session: &mut Dialogue, mut data: TcpStream, stored: &Path, content: &[u8]) -> bool {
    let mut sending = || {
        for piece in content.chunks(8 << 10) {
            data.write_all(piece)?;
            thread::sleep(Duration::from_millis(1));
        }
        data.shutdown(Shutdown::Write)
    };
    let sent: io::Result<()> = sending();
    let reply = session.reply();
    match reply.code {
        226 => {
            sent.unwrap_or_else(|error| panic!("{}: {reply:?} after {error}", stored.display()));
            let stored = fs::read(stored).unwrap_or_default();
            assert!(stored == content, "{} bytes are stored of {}: {reply:?}", stored.len(), content.len());
            true
        }
        // 425: the connection has not reached the node.
        425 | 426 => false,
        _ => panic!("{}: {reply:?}", stored.display()),
    }
}

/// Sends for this long, then resets the connection. Returns the number of bytes sent.
///
/// # Panics
/// The server ends the connection before.
pub fn send_and_reset(mut data: TcpStream, time: Duration) -> usize {
    let (chunk, end) = (bytes(1, 64 << 10), Instant::now() + time);
    let mut sent = 0;
    while Instant::now() < end {
        data.write_all(&chunk).expect("the server reads");
        sent += chunk.len();
    }
    reset(data);
    sent
}
