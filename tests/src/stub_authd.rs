//! An authd that says what a test wants: any account, any refusal, garbage, or nothing.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::Value;

/// What one request gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Status line without version, further header lines each with CRLF, body; then the end.
    Http(&'static str, String, String),
    /// 200 with this body; the connection is kept for the next request.
    Kept(String),
    /// These bytes, then the end.
    Bytes(&'static [u8]),
    /// Nothing, for as long as the asker waits.
    Silence,
}

/// A listening stub. Its threads end with the test's process.
pub struct StubAuthd {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Value>>>,
    connections: Arc<AtomicUsize>,
}

impl StubAuthd {
    /// Answers every request to authenticate with what `answer` makes of its body.
    ///
    /// # Panics
    /// No port of the loopback address is free.
    pub fn start(answer: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listening socket has an address");
        let requests = Arc::<Mutex<Vec<Value>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || while serve(&stream, &seen, &*answer) {});
            }
        });
        Self { address, requests, connections }
    }

    /// Its address as the setting `authd_urls` takes it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bodies of the requests so far.
    pub fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Answer {
    /// 200 with an account, as JSON.
    pub fn account(account: &Value) -> Self {
        Self::Http("200 OK", String::new(), account.to_string())
    }

    /// An error answer with its code for programs.
    pub fn refusal(status: &'static str, code: &str) -> Self {
        let body = serde_json::json!({ "error": code, "message": "of the tests" });
        Self::Http(status, String::new(), body.to_string())
    }
}

/// One request; whether the connection is kept. A peer that speaks badly or leaves is not answered.
fn serve(mut stream: &TcpStream, seen: &Mutex<Vec<Value>>, answer: &dyn Fn(&Value) -> Answer) -> bool {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return false,
            Ok(_) if line == "\r\n" => break,
            Ok(_) => {}
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    let Ok(()) = reader.read_exact(&mut body) else { return false };
    let Ok(request) = serde_json::from_slice(&body) else { return false };
    let answer = answer(&request);
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    let is_kept = matches!(answer, Answer::Kept(_));
    let bytes = match answer {
        Answer::Http(status, head, body) => format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{head}\r\n{body}",
            body.len()
        )
        .into_bytes(),
        Answer::Kept(body) => {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
        }
        Answer::Bytes(bytes) => bytes.to_vec(),
        Answer::Silence => {
            // Returns when the asker has given up.
            let _ = reader.read(&mut [0; 1]);
            return false;
        }
    };
    // The asker may have given up. It sends nothing before it has the answer, so that the reader
    // holds nothing of its next request.
    stream.write_all(&bytes).is_ok() && is_kept
}
