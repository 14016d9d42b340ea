//! Transfers over real sockets.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{CopyError, copy::*};
use crate::work::progress::Progress;

/// No test should take a second, but the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// Sizes around those of the pieces.
const SIZES: [usize; 8] =
    [0, 1, 65_535, 262_144, 262_145, 1_048_577, 2 * 1024 * 1024 + 1, 5 * 1024 * 1024 + 17];

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    limit_stalls(&server, DEADLINE).unwrap();
    limit_stalls(&client, DEADLINE).unwrap();
    (server, client)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn file(content: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

/// Compared instead of the bytes, which would flood the output of a failed test.
fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Returns the bytes that the peer receives from `send`.
fn downloaded(send: impl FnOnce(&TcpStream, &CopyJob<'_>) -> u64 + Send) -> Vec<u8> {
    let (server, mut client) = connection();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let progress = Progress::default();
            let sent = send(&server, &CopyJob::new(&progress));
            assert_eq!(sent, progress.transferred());
            server.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        received
    })
}

/// Lets the peer send `data` while `receive` runs.
fn uploaded<T: Send>(data: &[u8], receive: impl FnOnce(&TcpStream, &CopyJob<'_>) -> T + Send) -> T {
    let (server, mut client) = connection();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&server, &CopyJob::new(&Progress::default())));
        // A receiver that ends early closes the connection.
        let _ = client.write_all(data);
        let _ = client.shutdown(Shutdown::Write);
        receiver.join().unwrap()
    })
}

#[test]
fn downloads_of_all_sizes_arrive_unchanged() {
    for size in SIZES {
        let data = bytes(size);
        let source = file(&data);
        let range = 0..size as u64;
        let by_kernel = downloaded(|socket, job| send_file(&source, range.clone(), socket, job).unwrap());
        assert_eq!(hash(&by_kernel), hash(&data), "sendfile {size}");
        let mut by_memory = Vec::new();
        send_from(&source, range.clone(), &mut by_memory, &CopyJob::new(&Progress::default())).unwrap();
        assert_eq!(hash(&by_memory), hash(&data), "write {size}");
    }
}

#[test]
fn uploads_of_all_sizes_are_stored_unchanged() {
    for size in SIZES {
        let data = bytes(size);
        let target = file(b"before");
        let received = uploaded(&data, |socket, job| {
            let received = receive_file(socket, &target, 3, job).unwrap();
            assert_eq!(received, job.progress.transferred());
            received
        });
        assert_eq!(received, size as u64);
        let expected = [&b"before"[..3], &data].concat();
        let stored = content(&target);
        let kept = expected.len().max(6);
        assert_eq!(stored.len(), kept, "splice {size}");
        assert_eq!(hash(&stored[..expected.len()]), hash(&expected), "splice {size}");

        let target = file(b"");
        uploaded(&data, |mut socket, job| receive_into(&mut socket, &target, 0, job).unwrap());
        assert_eq!(hash(&content(&target)), hash(&data), "write {size}");
    }
}

#[test]
fn a_range_ends_at_the_end_of_the_file() {
    let data = bytes(100_000);
    let source = file(&data);
    for (range, expected) in [
        (99_990..100_000, &data[99_990..]),
        (99_990..200_000, &data[99_990..]),
        (200_000..300_000, &[]),
        (7..7, &[]),
    ] {
        let got = downloaded(|socket, job| send_file(&source, range.clone(), socket, job).unwrap());
        assert_eq!(got, expected, "{range:?}");
    }
}

#[test]
fn a_file_that_refuses_splice_still_gets_every_byte() {
    let data = bytes(3_000_001);
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("append-only");
    // splice refuses O_APPEND with EINVAL.
    let target = File::options().create(true).append(true).read(true).open(name).unwrap();
    let received = uploaded(&data, |socket, job| receive_file(socket, &target, 0, job).unwrap());
    assert_eq!(received, data.len() as u64);
    assert_eq!(hash(&content(&target)), hash(&data));
}

#[test]
fn a_full_disk_is_a_storage_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let data = bytes(100_000);
    for receive in [receive_file, |mut socket: &TcpStream, file: &File, offset, job: &CopyJob<'_>| {
        receive_ascii(&mut socket, file, offset, job)
    }] as [fn(&TcpStream, &File, u64, &CopyJob<'_>) -> Result<u64, CopyError>; 2]
    {
        let ended = uploaded(&data, |socket, job| receive(socket, &full, 0, job));
        let is_full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        assert!(matches!(&ended, Err(CopyError::Storage(error)) if is_full(error)), "{ended:?}");
    }
}

#[test]
fn ascii_transfers_convert_line_ends() {
    let (text, wire) = ("one\ntwo\n".repeat(100_000), "one\r\ntwo\r\n".repeat(100_000));
    let source = file(text.as_bytes());
    let sent =
        downloaded(|mut socket, job| send_ascii(&source, 0..text.len() as u64, &mut socket, job).unwrap());
    assert_eq!(hash(&sent), hash(wire.as_bytes()));
    let target = file(b"x");
    let received = uploaded(&sent, |mut socket, job| receive_ascii(&mut socket, &target, 1, job).unwrap());
    assert_eq!(received, wire.len() as u64);
    assert_eq!(hash(&content(&target)[1..]), hash(text.as_bytes()));
}

#[test]
fn a_listing_is_sent_in_order_and_in_large_pieces() {
    struct Pieces(Vec<Vec<u8>>);
    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (progress, mut pieces) = (Progress::default(), Pieces(Vec::new()));
    let job = CopyJob::new(&progress);
    let mut writer = ListingWriter::new(&mut pieces, &job);
    let mut expected = Vec::new();
    for line in 0..20_000 {
        let line = format!("line {line}\r\n");
        expected.extend_from_slice(line.as_bytes());
        writer.write(line.as_bytes()).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), expected.len() as u64);
    assert_eq!(progress.transferred(), expected.len() as u64);
    assert_eq!(pieces.0.concat(), expected);
    assert!(pieces.0.len() <= expected.len() / 60_000 + 1, "{} pieces", pieces.0.len());
    progress.cancel();
    let mut writer = ListingWriter::new(&mut pieces, &job);
    writer.write(b"line").unwrap();
    assert!(matches!(writer.finish(), Err(CopyError::Cancelled)));
}

#[test]
fn a_transfer_with_a_silent_peer_ends_at_the_stall_limit() {
    let limit = Duration::from_millis(100);
    let (server, client) = connection();
    limit_stalls(&server, limit).unwrap();
    let target = file(b"");
    (&client).write_all(b"some").unwrap();
    let ended = receive_file(&server, &target, 0, &CopyJob::new(&Progress::default()));
    assert!(matches!(ended, Err(CopyError::Stalled)), "{ended:?}");
    assert_eq!(content(&target), b"some", "what arrived is kept");

    (&client).write_all(b"more").unwrap();
    let ended = receive_into(&mut &server, &target, 4, &CopyJob::new(&Progress::default()));
    assert!(matches!(ended, Err(CopyError::Stalled)), "{ended:?}");
    assert_eq!(content(&target), b"somemore");

    let source = file(b"");
    let size = 256 * 1024 * 1024;
    source.set_len(size).unwrap();
    let progress = Progress::default();
    let ended = send_file(&source, 0..size, &server, &CopyJob::new(&progress));
    assert!(matches!(ended, Err(CopyError::Stalled)), "{ended:?}");
    assert!((1..size).contains(&progress.transferred()));
    drop(client);
}

#[test]
fn a_reset_is_not_an_end_of_file() {
    let (server, client) = connection();
    let target = file(b"");
    (&client).write_all(b"some").unwrap();
    let client = socket2::Socket::from(client);
    client.set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let ended = receive_file(&server, &target, 0, &CopyJob::new(&Progress::default()));
    assert!(matches!(ended, Err(CopyError::ConnectionLost(_))), "{ended:?}");
    let ended = send_file(&file(b"data"), 0..4, &server, &CopyJob::new(&Progress::default()));
    assert!(matches!(ended, Err(CopyError::ConnectionLost(_))), "{ended:?}");
}

/// Runs `transfer` on a thread, cancels it once `begun` bytes have moved, and expects its end.
fn cancelled(
    begun: u64,
    transfer: impl FnOnce(&TcpStream, &CopyJob<'_>) -> Result<u64, CopyError> + Send + 'static,
) {
    let (server, client) = connection();
    limit_stalls(&server, Duration::ZERO).unwrap();
    (&client).write_all(b"some").unwrap();
    let control = server.try_clone().unwrap();
    let progress = Arc::new(Progress::default());
    let (sender, ended) = mpsc::channel();
    let thread = std::thread::spawn({
        let progress = Arc::clone(&progress);
        move || sender.send(transfer(&server, &CopyJob::new(&progress))).unwrap()
    });
    let end = std::time::Instant::now() + DEADLINE;
    while progress.transferred() < begun {
        assert!(std::time::Instant::now() < end, "nothing moves");
        std::thread::yield_now();
    }
    progress.cancel();
    control.shutdown(Shutdown::Both).unwrap();
    let result = ended.recv_timeout(DEADLINE).expect("the transfer ends");
    assert!(matches!(result, Err(CopyError::Cancelled)), "{result:?}");
    thread.join().unwrap();
    drop(client);
}

#[test]
fn a_cancelled_transfer_ends_even_if_its_peer_is_silent() {
    cancelled(4, |socket, job| receive_file(socket, &file(b""), 0, job));
    cancelled(4, |mut socket, job| receive_into(&mut socket, &file(b""), 0, job));
    cancelled(4, |mut socket, job| receive_ascii(&mut socket, &file(b""), 0, job));
    let sparse = || {
        let file = file(b"");
        file.set_len(1 << 30).unwrap();
        file
    };
    cancelled(1, move |socket, job| send_file(&sparse(), 0..1 << 30, socket, job));
    cancelled(1, move |mut socket, job| send_from(&sparse(), 0..1 << 30, &mut socket, job));
}

#[test]
fn a_thread_stores_an_upload_correctly_after_a_failed_one() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (server, client) = connection();
    (&client).write_all(&bytes(500_000)).unwrap();
    drop(client);
    assert!(receive_file(&server, &full, 0, &CopyJob::new(&Progress::default())).is_err());
    for size in [10, 2_000_000] {
        let (server, client) = connection();
        let data = bytes(size);
        std::thread::scope(|scope| {
            let data = &data;
            scope.spawn(move || (&client).write_all(data).unwrap());
            let target = file(b"");
            let received = receive_file(&server, &target, 0, &CopyJob::new(&Progress::default())).unwrap();
            assert_eq!(received, size as u64);
            assert_eq!(hash(&content(&target)), hash(data));
        });
    }
}
