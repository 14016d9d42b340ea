//! A stub in place of authd. The test chooses its responses: any account, any refusal, garbage, or no
//! response.

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

/// The response to a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Status line without version, further header lines each with CRLF, and body. Then the connection ends.
    Http(&'static str, String, String),
    /// 200 with this body. The connection stays open for the next request.
    Kept(String),
    /// These bytes. Then the connection ends.
    Bytes(&'static [u8]),
    /// No response, as long as the client waits.
    Silence,
}

/// A listening stub. Its threads end with the test's process.
pub struct StubAuthd {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Value>>>,
    connections: Arc<AtomicUsize>,
}

impl StubAuthd {
    /// Responds to every login request with the result of `answer` for its body.
    ///
    /// # Panics
    /// No port of the loopback address is free.
    pub fn start(answer: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with_probe(answer, || Answer::Http("204 No Content", String::new(), String::new()))
    }

    /// As [`Self::start`]. `probe` responds to the readiness probe (`GET /v1/authenticate`), which is not
    /// counted as a login request.
    ///
    /// # Panics
    /// No port of the loopback address is free.
    pub fn start_with_probe(
        answer: impl Fn(&Value) -> Answer + Send + Sync + 'static,
        probe: impl Fn() -> Answer + Send + Sync + 'static,
    ) -> Self {
        // The response of an authd of an earlier version.
        Self::start_with_all(answer, probe, |_| Answer::refusal("404 Not Found", "not_found"))
    }

    /// As [`Self::start`]. `authorized` responds to `POST /v1/authorized`, which is not counted as a
    /// login request.
    ///
    /// # Panics
    /// No port of the loopback address is free.
    pub fn start_with_authorized(
        answer: impl Fn(&Value) -> Answer + Send + Sync + 'static,
        authorized: impl Fn(&Value) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let probe = || Answer::Http("204 No Content", String::new(), String::new());
        Self::start_with_all(answer, probe, authorized)
    }

    fn start_with_all(
        answer: impl Fn(&Value) -> Answer + Send + Sync + 'static,
        probe: impl Fn() -> Answer + Send + Sync + 'static,
        authorized: impl Fn(&Value) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listening socket has an address");
        let requests = Arc::<Mutex<Vec<Value>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (seen, answer, probe) = (Arc::clone(&requests), Arc::new(answer), Arc::new(probe));
        let authorized = Arc::new(authorized);
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer, probe) = (Arc::clone(&seen), Arc::clone(&answer), Arc::clone(&probe));
                let (counted, authorized) = (Arc::clone(&counted), Arc::clone(&authorized));
                thread::spawn(move || {
                    let mut is_counted = false;
                    let mut count = || {
                        if !std::mem::replace(&mut is_counted, true) {
                            counted.fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    while serve(&stream, &seen, &*answer, &*probe, &*authorized, &mut count) {}
                });
            }
        });
        Self { address, requests, connections }
    }

    /// The address in the form of the setting `authd_urls`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bodies of all requests so far.
    pub fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of connections with login requests so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Answer {
    /// 200 with an account in JSON.
    pub fn account(account: &Value) -> Self {
        Self::Http("200 OK", String::new(), account.to_string())
    }

    /// An error response with its code.
    pub fn refusal(status: &'static str, code: &str) -> Self {
        let body = serde_json::json!({ "error": code, "message": "of the tests" });
        Self::Http(status, String::new(), body.to_string())
    }
}

/// Handles one request. Returns true if the connection stays open. An invalid request gets no response.
fn serve(
    mut stream: &TcpStream,
    seen: &Mutex<Vec<Value>>,
    answer: &dyn Fn(&Value) -> Answer,
    probe: &dyn Fn() -> Answer,
    authorized: &dyn Fn(&Value) -> Answer,
    count: &mut dyn FnMut(),
) -> bool {
    let mut reader = BufReader::new(stream);
    let (mut length, mut is_probe, mut is_authorized) = (0, false, false);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return false,
            Ok(_) if line == "\r\n" => break,
            Ok(_) => {
                is_probe |= line.starts_with("GET ");
                is_authorized |= line.starts_with("POST ") && line.contains("/v1/authorized ");
            }
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    let Ok(()) = reader.read_exact(&mut body) else { return false };
    let answer = if is_probe {
        probe()
    } else if is_authorized {
        let Ok(request) = serde_json::from_slice(&body) else { return false };
        authorized(&request)
    } else {
        let Ok(request) = serde_json::from_slice(&body) else { return false };
        count();
        let answer = answer(&request);
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        answer
    };
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
            // Returns when the client has closed the connection.
            let _ = reader.read(&mut [0; 1]);
            return false;
        }
    };
    // The client may have given up. It sends its next request only after the response, so the reader's buffer
    // contains nothing of it.
    stream.write_all(&bytes).is_ok() && is_kept
}
