//! HTTP/1.1 to one authd: its URL, connections that are kept for the next request, answers of a
//! bounded size.
//!
//! No task belongs to a connection. Whoever has a request on it does its work too, which spares
//! two changes of task a request, and nobody does while it is kept: that authd has closed it shows
//! when it is taken out again.

use std::{
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    pin::{Pin, pin},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use common::secret::Secret;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    body::{Body, Incoming},
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT},
    http::uri::{PathAndQuery, Scheme},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};

/// The largest answer, in bytes. A folder with the longest paths takes 2 KiB, most folders and rules
/// 100 bytes: an account may have thousands.
const MAX_ANSWER: usize = 1024 * 1024;

/// The largest head of an answer, in bytes: as authd's own bound for requests.
const MAX_HEAD: usize = 64 * 1024;

/// Connections that are kept, of each instance: as many as logins are under way at once on a busy
/// node. A wave of more makes those it needs.
const KEPT: usize = 64;

/// How long a connection is kept: less than authd's `header_timeout`, after which authd closes it.
const KEEP: Duration = Duration::from_secs(90);

/// Where an authd is: `http://HOST[:PORT][/PREFIX]`.
#[derive(Clone, Debug)]
pub struct AuthdUrl {
    text: String,
    /// A name or an address; that of IPv6 without its brackets.
    host: String,
    port: u16,
    authority: HeaderValue,
    /// Of [`Instance::post`].
    target: Uri,
    /// Of [`Instance::post_authorized`].
    authorized: Uri,
}

/// The text is no URL of an authd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    #[error("not a URL of the form http://HOST[:PORT][/PREFIX]")]
    Syntax,
    #[error(
        "nodes ask authd without TLS: use http:// on a private network, or through a tunnel between the hosts \
         (WireGuard, stunnel)"
    )]
    Https,
}

impl AuthdUrl {
    /// Its address and port; `None` where the URL has a name.
    pub fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }
}

impl FromStr for AuthdUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let text = text.trim_end_matches('/');
        let uri: Uri = text.parse().map_err(|_| InvalidUrl::Syntax)?;
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => return Err(InvalidUrl::Https),
            _ => return Err(InvalidUrl::Syntax),
        }
        let authority = uri.authority().ok_or(InvalidUrl::Syntax)?;
        // A port that is no number is not taken for the default one.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("" | ":") => 80,
            _ => authority.port_u16().ok_or(InvalidUrl::Syntax)?,
        };
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let has_user = authority.as_str().contains('@');
        if host.is_empty() || has_user || uri.query().is_some() || text.contains('#') {
            return Err(InvalidUrl::Syntax);
        }
        let prefix = uri.path().trim_end_matches('/');
        let route = |name: &str| {
            let path = PathAndQuery::try_from(format!("{prefix}/v1/{name}"));
            path.map(Uri::from).map_err(|_| InvalidUrl::Syntax)
        };
        Ok(Self {
            text: text.to_owned(),
            host: host.to_owned(),
            port,
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| InvalidUrl::Syntax)?,
            target: route("authenticate")?,
            authorized: route("authorized")?,
        })
    }
}

impl fmt::Display for AuthdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The header that shows authd a token; its `Debug` does not show it. `None` for a token that no
/// header can hold.
pub fn authorization(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("no answer")]
    Unanswered(#[source] hyper::Error),
    #[error("the answer is cut")]
    Cut(#[source] hyper::Error),
    #[error("the answer is larger than {MAX_ANSWER} bytes")]
    TooLarge,
}

/// What authd said.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// One authd.
pub struct Instance {
    pub url: AuthdUrl,
    headers: HeaderMap,
    connect_timeout: Duration,
    /// With the time at which each became idle; the one that was used last at the end.
    kept: Mutex<VecDeque<(Instant, Box<Connection>)>>,
}

/// A connection and what happens on it.
struct Connection {
    sender: http1::SendRequest<String>,
    /// `None`: it has ended.
    work: Option<Work>,
}

type Work = http1::Connection<TokioIo<TcpStream>, String>;

impl Instance {
    /// `connect_timeout` is for all addresses of its host together.
    pub fn new(url: AuthdUrl, authorization: Option<HeaderValue>, connect_timeout: Duration) -> Self {
        const AGENT: &str = concat!("ftpd/", env!("CARGO_PKG_VERSION"));
        let mut headers = HeaderMap::new();
        headers.insert(HOST, url.authority.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        Self { url, headers, connect_timeout, kept: Mutex::default() }
    }

    /// Posts the JSON that `body` makes to the route `/v1/authenticate`.
    ///
    /// A kept connection may end in the moment in which it is used: authd was started again. Then
    /// the request goes over a new one, once. That it may thereby be decided twice is as with the
    /// next instance, which is asked whenever one gives no answer: a wrong password could count
    /// twice in the throttle, and a right one changes nothing the second time.
    ///
    /// # Errors
    /// There is no whole answer. What came may have been decided.
    pub async fn post(&self, body: impl Fn() -> String) -> Result<Answer, AskError> {
        self.request(Method::POST, &self.url.target, body).await
    }

    /// Posts the JSON that `body` makes to the route `/v1/authorized`, which changes nothing.
    ///
    /// # Errors
    /// There is no whole answer.
    pub async fn post_authorized(&self, body: impl Fn() -> String) -> Result<Answer, AskError> {
        self.request(Method::POST, &self.url.authorized, body).await
    }

    /// Asks the same route whether authd would decide a login.
    ///
    /// # Errors
    /// There is no whole answer.
    pub async fn get(&self) -> Result<Answer, AskError> {
        self.request(Method::GET, &self.url.target, String::new).await
    }

    async fn request(
        &self,
        method: Method,
        target: &Uri,
        body: impl Fn() -> String,
    ) -> Result<Answer, AskError> {
        if let Some(connection) = self.take().await {
            match self.ask(connection, method.clone(), target, body()).await {
                Err(AskError::Unanswered(error)) if !error.is_parse() => {}
                result => return result,
            }
        }
        self.ask(self.connect().await?, method, target, body()).await
    }

    async fn ask(
        &self,
        mut connection: Box<Connection>,
        method: Method,
        target: &Uri,
        body: String,
    ) -> Result<Answer, AskError> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = target.clone();
        *request.headers_mut() = self.headers.clone();
        let Connection { sender, work } = &mut *connection;
        let response = drive(work, sender.send_request(request)).await.map_err(AskError::Unanswered)?;
        let (head, body) = response.into_parts();
        let body = read(work, body).await?;
        self.keep(connection);
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn connect(&self) -> Result<Box<Connection>, AskError> {
        let deadline = Instant::now() + self.connect_timeout;
        // On a thread that may wait, unless the host is an address.
        let addresses = match timeout_at(deadline, lookup_host((self.url.host.as_str(), self.url.port))).await
        {
            Ok(found) => found.map_err(AskError::Connect)?.collect(),
            Err(_) => Vec::new(),
        };
        let mut failure = io::Error::from(io::ErrorKind::TimedOut);
        for (i, address) in addresses.iter().enumerate() {
            // Each gets its share of what is left: a host may have one that does not answer.
            let share = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - i) as u32;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Connection::new(stream).await,
                Ok(Err(error)) => failure = error,
                Err(elapsed) => failure = elapsed.into(),
            }
        }
        Err(AskError::Connect(failure))
    }

    /// A kept connection that authd has not closed.
    async fn take(&self) -> Option<Box<Connection>> {
        loop {
            let mut connection = {
                let mut kept = self.kept();
                let (since, connection) = kept.pop_back()?;
                if since.elapsed() >= KEEP {
                    // The others are older.
                    kept.clear();
                    return None;
                }
                connection
            };
            if std::future::poll_fn(|context| Poll::Ready(connection.is_open(context))).await {
                return Some(connection);
            }
        }
    }

    fn keep(&self, connection: Box<Connection>) {
        let mut kept = self.kept();
        kept.push_back((Instant::now(), connection));
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Instant, Box<Connection>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    async fn new(stream: TcpStream) -> Result<Box<Self>, AskError> {
        stream.set_nodelay(true).map_err(AskError::Connect)?;
        let mut http = http1::Builder::new();
        let (sender, work) = http
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(AskError::Unanswered)?;
        Ok(Box::new(Self { sender, work: Some(work) }))
    }

    /// Whether it takes a request, as far as is known here.
    fn is_open(&mut self, context: &mut Context<'_>) -> bool {
        self.work.as_mut().is_some_and(|work| Pin::new(work).poll(context).is_pending())
            && self.sender.is_ready()
    }
}

/// Does a connection's work until what is wanted from it has come.
async fn drive<T>(work: &mut Option<Work>, wanted: impl Future<Output = T>) -> T {
    let mut wanted = pin!(wanted);
    std::future::poll_fn(|context| {
        // It says what it wants before there is work.
        if let Poll::Ready(result) = wanted.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        if let Some(running) = work
            && Pin::new(running).poll(context).is_ready()
        {
            // If it failed, `wanted` does so too.
            *work = None;
        }
        wanted.as_mut().poll(context)
    })
    .await
}

async fn read(work: &mut Option<Work>, mut body: Incoming) -> Result<Vec<u8>, AskError> {
    let mut bytes = Vec::new();
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let Some(frame) = drive(work, frame).await else { return Ok(bytes) };
        // Trailers say nothing that is wanted.
        let Ok(data) = frame.map_err(AskError::Cut)?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_ANSWER {
            return Err(AskError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_port_and_prefix() {
        let table = [
            ("http://10.0.0.4:5160", "10.0.0.4", 5160, "10.0.0.4:5160", "/v1/authenticate"),
            ("http://authd.internal", "authd.internal", 80, "authd.internal", "/v1/authenticate"),
            ("HTTP://authd:/", "authd", 80, "authd:", "/v1/authenticate"),
            ("http://[::1]:5160/", "::1", 5160, "[::1]:5160", "/v1/authenticate"),
            ("http://[fd00::1]", "fd00::1", 80, "[fd00::1]", "/v1/authenticate"),
            ("http://a:1/users/of//", "a", 1, "a:1", "/users/of/v1/authenticate"),
        ];
        for (text, host, port, authority, target) in table {
            let url: AuthdUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.host.as_str(), url.port), (host, port), "{text}");
            assert_eq!((url.authority.to_str().unwrap(), url.target.path()), (authority, target), "{text}");
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
    }

    #[test]
    fn what_is_no_url_of_an_authd_is_refused() {
        let table = [
            ("", InvalidUrl::Syntax),
            ("10.0.0.4:5160", InvalidUrl::Syntax),
            ("/v1", InvalidUrl::Syntax),
            ("http://", InvalidUrl::Syntax),
            ("http://:5160", InvalidUrl::Syntax),
            ("http://a:70000", InvalidUrl::Syntax),
            ("http://a:x", InvalidUrl::Syntax),
            ("http://a/?user=b", InvalidUrl::Syntax),
            ("http://a/#b", InvalidUrl::Syntax),
            ("http://a b", InvalidUrl::Syntax),
            ("ftp://a", InvalidUrl::Syntax),
            ("https://a:5160", InvalidUrl::Https),
            ("http://anna:secret@a", InvalidUrl::Syntax),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<AuthdUrl>().err(), Some(error), "{text:?}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let value = authorization(&Secret::new("t0ken")).unwrap();
        assert_eq!(value.as_bytes(), b"Bearer t0ken");
        assert!(!format!("{value:?}").contains("t0ken"));
        assert_eq!(authorization(&Secret::new("two\nlines")), None);
    }
}
