//! The copy loops of data connections: any bytes, in any pieces, in both codings and directions.

use std::{
    cell::Cell,
    env,
    error::Error,
    fs::{self, File},
    io::{self, Read, Write},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use ftpd::{
    data::{
        Coding,
        copy::{CopyJob, CopyPace, receive_ascii, receive_into, send_ascii, send_from},
    },
    work::progress::Progress,
};

/// Property of the copy loops. The first byte chooses the coding, the next four the sizes of the pieces in
/// which the connection and the pace let bytes pass; the rest is the data.
///
/// * An upload stores exactly the data, as a simple implementation of the coding converts it, and a download
///   of the same file sends exactly its content in the coding, whatever the sizes of the pieces are.
/// * The numbers of bytes that the loops return, count as progress and report to the pace are right.
pub fn copy(input: &[u8]) {
    let Some(([choice, schedule @ ..], data)) = input.split_first_chunk::<5>() else { return };
    let coding = if choice % 2 == 0 { Coding::Image } else { Coding::Ascii };
    let file = temporary_file();
    let stored = match coding {
        Coding::Image => data.to_vec(),
        Coding::Ascii => stored_lines(data),
    };

    let pace = SlowPace::new(schedule);
    let progress = Progress::default();
    let mut job = CopyJob::new(&progress);
    job.pace = Some(&pace);
    let mut reader = Pieces::new(data, schedule);
    let received = match coding {
        Coding::Image => receive_into(&mut reader, &file, 0, &job),
        Coding::Ascii => receive_ascii(&mut reader, &file, 0, &job),
    };
    assert_eq!(received.expect("neither the reader nor the file fails"), data.len() as u64);
    assert_eq!(job.stored(), stored.len() as u64);
    assert_eq!((progress.transferred(), pace.moved()), (data.len() as u64, data.len() as u64));
    assert_eq!(content(&file), stored);

    let sent = match coding {
        Coding::Image => stored.clone(),
        Coding::Ascii => sent_lines(&stored),
    };
    let (pace, progress) = (SlowPace::new(schedule), Progress::default());
    let mut job = CopyJob::new(&progress);
    job.pace = Some(&pace);
    let mut writer = Pieces::new(Vec::new(), schedule);
    let range = 0..stored.len() as u64;
    let count = match coding {
        Coding::Image => send_from(&file, range, &mut writer, &job),
        Coding::Ascii => send_ascii(&file, range, &mut writer, &job),
    };
    assert_eq!(count.expect("neither the writer nor the file fails"), sent.len() as u64);
    assert_eq!((progress.transferred(), pace.moved()), (sent.len() as u64, sent.len() as u64));
    assert_eq!(writer.data, sent);
}

/// TYPE A, client to file: a CR before LF goes.
fn stored_lines(data: &[u8]) -> Vec<u8> {
    let is_kept = |at: usize| data[at] != b'\r' || data.get(at + 1) != Some(&b'\n');
    (0..data.len()).filter(|at| is_kept(*at)).map(|at| data[at]).collect()
}

/// TYPE A, file to client: a LF without a CR before it gets one.
fn sent_lines(data: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    for byte in data {
        if *byte == b'\n' && lines.last() != Some(&b'\r') {
            lines.push(b'\r');
        }
        lines.push(*byte);
    }
    lines
}

/// A connection that takes or gives at most as many bytes at a time as its schedule says, and is interrupted
/// where the schedule says 0.
struct Pieces<'s, D> {
    data: D,
    schedule: &'s [u8],
    calls: usize,
    /// Bytes that were read.
    position: usize,
}

impl<'s, D> Pieces<'s, D> {
    fn new(data: D, schedule: &'s [u8]) -> Self {
        Self { data, schedule, calls: 0, position: 0 }
    }

    fn next(&mut self) -> io::Result<usize> {
        self.calls += 1;
        // Not interrupted for ever if the whole schedule is 0.
        match usize::from(self.schedule[self.calls % self.schedule.len()]) {
            0 if self.calls.is_multiple_of(3) => Err(io::ErrorKind::Interrupted.into()),
            piece => Ok(piece.max(1)),
        }
    }
}

impl Read for Pieces<'_, &[u8]> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.data[self.position..];
        let count = self.next()?.min(buffer.len()).min(rest.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }
}

impl Write for Pieces<'_, Vec<u8>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.next()?.min(bytes.len());
        self.data.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pace that permits few bytes at a time.
struct SlowPace {
    schedule: Vec<u8>,
    calls: AtomicU64,
    moved: AtomicU64,
}

impl SlowPace {
    fn new(schedule: &[u8]) -> Self {
        Self { schedule: schedule.to_vec(), calls: AtomicU64::new(0), moved: AtomicU64::new(0) }
    }

    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

impl CopyPace for SlowPace {
    fn piece(&self, max: usize, _progress: &Progress) -> Result<usize, Box<dyn Error + Send + Sync>> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) as usize;
        let permitted = usize::from(self.schedule[call % self.schedule.len()]) + 1;
        Ok(permitted.min(max))
    }

    fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    fn arrived(&self, _bytes: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// A file that is gone when it is closed.
fn temporary_file() -> File {
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    let number = NUMBER.replace(NUMBER.get() + 1);
    let name = format!("ftpd-copy.{}.{:?}.{number}", process::id(), std::thread::current().id());
    let path = env::temp_dir().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file
}

fn content(mut file: &File) -> Vec<u8> {
    // The copy loops write at positions, so the file's own position is still its beginning.
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    content
}
