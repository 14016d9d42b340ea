//! A receiver of events, as an operator would write one: it checks the signature and notes what arrives.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use tempfile::TempDir;

const SECRET: &str = "the receiver's secret";

/// An event that arrived with a correct signature.
#[derive(Clone, Debug)]
pub struct ReceivedEvent {
    /// `Idempotency-Key`.
    pub id: String,
    pub event: Value,
    /// The status of the response.
    pub status: u16,
}

/// A receiver that listens on a loopback address. Its threads end with the test's process.
pub struct WebhookReceiver {
    pub address: SocketAddr,
    events: Arc<Mutex<Vec<ReceivedEvent>>>,
    status: Arc<AtomicU16>,
    files: TempDir,
}

impl WebhookReceiver {
    /// Starts a receiver, which responds with 204.
    ///
    /// # Panics
    /// No port of the loopback address is free.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listening socket has an address");
        let events = Arc::<Mutex<Vec<ReceivedEvent>>>::default();
        let status = Arc::new(AtomicU16::new(204));
        let (seen, answer) = (Arc::clone(&events), Arc::clone(&status));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                // The client closes the connection, or sends something that is not a request.
                thread::spawn(move || while serve(&stream, &seen, &answer).is_some() {});
            }
        });
        let files = tempfile::tempdir().expect("a temporary directory");
        fs::write(files.path().join("secret"), SECRET).expect("a temporary directory takes files");
        Self { address, events, status, files }
    }

    /// From now on, responds with this status. 0: closes the connection without a response.
    pub fn respond(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The events that were accepted, in the order of their arrival.
    pub fn accepted(&self) -> Vec<ReceivedEvent> {
        self.all().into_iter().filter(|event| event.status / 100 == 2).collect()
    }

    /// All attempts.
    pub fn all(&self) -> Vec<ReceivedEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An `events_file` that names this receiver `receiver`, with further lines for it.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn events_file(&self, lines: &str) -> PathBuf {
        let path = self.files.path().join("events.toml");
        let text = format!(
            "[[webhook]]\nname = \"receiver\"\nurl = \"http://{}/events\"\nsecret_file = \"{}\"\n{lines}\n",
            self.address,
            self.files.path().join("secret").display()
        );
        fs::write(&path, text).expect("a temporary directory takes files");
        path
    }
}

/// Serves one request. `None`: the connection is over.
fn serve(mut stream: &TcpStream, seen: &Mutex<Vec<ReceivedEvent>>, answer: &AtomicU16) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line);
    }
    let header = |name: &str| {
        head.iter()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(key, value)| key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned()))
    };
    let mut body = vec![0; header("Content-Length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let status = answer.load(Ordering::SeqCst);
    let time = header("X-Ftp-Timestamp")?;
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).ok()?;
    mac.update(format!("{time}.").as_bytes());
    mac.update(&body);
    let signature = header("X-Ftp-Signature")?;
    let is_signed = hex::decode(signature.strip_prefix("sha256=")?)
        .is_ok_and(|signature| mac.verify_slice(&signature).is_ok());
    if !is_signed {
        let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
        return Some(());
    }
    let event = serde_json::from_slice(&body).ok()?;
    let received = ReceivedEvent { id: header("Idempotency-Key")?, event, status };
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(received);
    if status == 0 {
        return None;
    }
    write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: 0\r\n\r\n").ok()
}
