//! HTTP/1.1 client for one authd instance: its URL, a pool of idle connections, and responses of
//! bounded size.
//!
//! A connection has no task of its own. The task with a request on it also polls the connection, which saves
//! two task switches per request. An idle connection is not polled; a close by authd is noticed when the
//! connection is taken from the pool.

use std::{
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    pin::{Pin, pin},
    str::FromStr,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use common::{secret::Secret, sync};
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

/// Largest response body in bytes. An account may have thousands of folders and rules; most take 100 bytes,
/// a folder with the longest paths 2 KiB.
const MAX_BODY: usize = 1024 * 1024;

/// Largest response head in bytes; the same as authd's limit for requests.
const MAX_HEAD: usize = 64 * 1024;

/// Most idle connections of an instance: the number of concurrent logins on a busy node. A
/// burst opens additional connections.
const MAX_IDLE: usize = 64;

/// Time for which an idle connection is kept. Must be less than authd's `header_timeout`, after which authd
/// closes it.
const IDLE_TIME: Duration = Duration::from_secs(90);

/// URL of an authd instance: `http://HOST[:PORT][/PREFIX]`.
#[derive(Clone, Debug)]
pub struct AuthdUrl {
    text: String,
    /// A name or an address; an IPv6 address without its brackets.
    host: String,
    port: u16,
    authority: HeaderValue,
    /// The request target of `/v1/authenticate`.
    authenticate: Uri,
    /// The request target of `/v1/authorized`.
    authorized: Uri,
}

/// The text is not the URL of an authd instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    #[error("not a URL of the form http://HOST[:PORT][/PREFIX]")]
    Syntax,
    #[error(
        "nodes connect to authd without TLS: use http:// on a private network or through a tunnel between \
         the hosts (WireGuard, stunnel)"
    )]
    Https,
}

impl AuthdUrl {
    /// The address and port; `None` if the URL contains a host name.
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
        // Without this check, a malformed port would be treated as the default port.
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
            authenticate: route("authenticate")?,
            authorized: route("authorized")?,
        })
    }
}

impl fmt::Display for AuthdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The Authorization header for a token. Its `Debug` does not show the token. `None` if a header cannot
/// contain the token.
pub fn authorization(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Reason why a request has no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("no response")]
    Unanswered(#[source] hyper::Error),
    #[error("the response is incomplete")]
    Incomplete(#[source] hyper::Error),
    #[error("the response is larger than {MAX_BODY} bytes")]
    TooLarge,
}

/// A response of authd.
#[derive(Debug)]
pub struct HttpResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Client of one authd instance.
pub struct AuthdInstance {
    pub url: AuthdUrl,
    headers: HeaderMap,
    connect_timeout: Duration,
    /// Idle connections and the time since when they are idle; the most recently used is last.
    idle: Mutex<VecDeque<(Instant, Box<AuthdConnection>)>>,
}

/// A connection to authd.
struct AuthdConnection {
    sender: http1::SendRequest<String>,
    /// The future that drives the connection; `None` once it has ended.
    driver: Option<ConnectionDriver>,
}

type ConnectionDriver = http1::Connection<TokioIo<TcpStream>, String>;

impl AuthdInstance {
    /// `connect_timeout` covers all addresses of the host together.
    pub fn new(url: AuthdUrl, authorization: Option<HeaderValue>, connect_timeout: Duration) -> Self {
        const AGENT: &str = concat!("ftpd/", env!("CARGO_PKG_VERSION"));
        let mut headers = HeaderMap::new();
        headers.insert(HOST, url.authority.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        Self { url, headers, connect_timeout, idle: Mutex::default() }
    }

    /// Posts the JSON that `body` creates to `/v1/authenticate`.
    ///
    /// authd may close an idle connection just when it is used, for example at a restart. The request is
    /// then repeated once over a new connection, so authd may decide the login twice. That may also happen
    /// when the next instance is asked. A wrong password may then count twice in the throttle; a correct one
    /// has no further effect.
    ///
    /// # Errors
    /// There is no complete response. authd may have decided the login nevertheless.
    pub async fn post_authenticate(&self, body: impl Fn() -> String) -> Result<HttpResponse, RequestError> {
        self.request(Method::POST, &self.url.authenticate, body).await
    }

    /// Posts the JSON that `body` creates to `/v1/authorized`, which changes nothing in authd.
    ///
    /// # Errors
    /// There is no complete response.
    pub async fn post_authorized(&self, body: impl Fn() -> String) -> Result<HttpResponse, RequestError> {
        self.request(Method::POST, &self.url.authorized, body).await
    }

    /// Sends `GET /v1/authenticate`, which tells whether authd would decide a login.
    ///
    /// # Errors
    /// There is no complete response.
    pub async fn get_authenticate(&self) -> Result<HttpResponse, RequestError> {
        self.request(Method::GET, &self.url.authenticate, String::new).await
    }

    async fn request(
        &self,
        method: Method,
        target: &Uri,
        body: impl Fn() -> String,
    ) -> Result<HttpResponse, RequestError> {
        if let Some(connection) = self.take_idle().await {
            match self.send(connection, method.clone(), target, body()).await {
                Err(RequestError::Unanswered(error)) if !error.is_parse() => {}
                result => return result,
            }
        }
        self.send(self.connect().await?, method, target, body()).await
    }

    async fn send(
        &self,
        mut connection: Box<AuthdConnection>,
        method: Method,
        target: &Uri,
        body: String,
    ) -> Result<HttpResponse, RequestError> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = target.clone();
        *request.headers_mut() = self.headers.clone();
        let AuthdConnection { sender, driver } = &mut *connection;
        let response = drive(driver, sender.send_request(request)).await.map_err(RequestError::Unanswered)?;
        let (head, body) = response.into_parts();
        let body = read(driver, body).await?;
        self.put_back(connection);
        Ok(HttpResponse { status: head.status, headers: head.headers, body })
    }

    async fn connect(&self) -> Result<Box<AuthdConnection>, RequestError> {
        let deadline = Instant::now() + self.connect_timeout;
        // Unless the host is an address, tokio resolves it on a thread that may block.
        let addresses = match timeout_at(deadline, lookup_host((self.url.host.as_str(), self.url.port))).await
        {
            Ok(found) => found.map_err(RequestError::Connect)?.collect(),
            Err(_) => Vec::new(),
        };
        let mut failure = io::Error::from(io::ErrorKind::TimedOut);
        for (i, address) in addresses.iter().enumerate() {
            // The remaining time is divided among the remaining addresses, because one may not respond.
            let share = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - i) as u32;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return AuthdConnection::new(stream).await,
                Ok(Err(error)) => failure = error,
                Err(elapsed) => failure = elapsed.into(),
            }
        }
        Err(RequestError::Connect(failure))
    }

    /// Takes an idle connection that authd has not closed.
    async fn take_idle(&self) -> Option<Box<AuthdConnection>> {
        loop {
            let mut connection = {
                let mut idle = self.idle();
                let (since, connection) = idle.pop_back()?;
                if since.elapsed() >= IDLE_TIME {
                    // The others have been idle even longer.
                    idle.clear();
                    return None;
                }
                connection
            };
            if std::future::poll_fn(|context| Poll::Ready(connection.is_open(context))).await {
                return Some(connection);
            }
        }
    }

    fn put_back(&self, connection: Box<AuthdConnection>) {
        let mut idle = self.idle();
        idle.push_back((Instant::now(), connection));
        if idle.len() > MAX_IDLE {
            idle.pop_front();
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<(Instant, Box<AuthdConnection>)>> {
        sync::lock(&self.idle)
    }
}

impl AuthdConnection {
    async fn new(stream: TcpStream) -> Result<Box<Self>, RequestError> {
        stream.set_nodelay(true).map_err(RequestError::Connect)?;
        let mut http = http1::Builder::new();
        let (sender, driver) = http
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(RequestError::Unanswered)?;
        Ok(Box::new(Self { sender, driver: Some(driver) }))
    }

    /// Returns true if the connection accepts a request; authd may still have closed it.
    fn is_open(&mut self, context: &mut Context<'_>) -> bool {
        self.driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(context).is_pending())
            && self.sender.is_ready()
    }
}

/// Polls a connection's driver until `wanted` is ready.
async fn drive<T>(driver: &mut Option<ConnectionDriver>, wanted: impl Future<Output = T>) -> T {
    let mut wanted = pin!(wanted);
    std::future::poll_fn(|context| {
        // Polled first, because it hands the request to the driver.
        if let Poll::Ready(result) = wanted.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        if let Some(running) = driver
            && Pin::new(running).poll(context).is_ready()
        {
            // If the driver failed, `wanted` fails too.
            *driver = None;
        }
        wanted.as_mut().poll(context)
    })
    .await
}

async fn read(driver: &mut Option<ConnectionDriver>, mut body: Incoming) -> Result<Vec<u8>, RequestError> {
    let mut bytes = Vec::new();
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let Some(frame) = drive(driver, frame).await else { return Ok(bytes) };
        // Trailers are ignored.
        let Ok(data) = frame.map_err(RequestError::Incomplete)?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(RequestError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_host_port_and_prefix() {
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
            assert_eq!(
                (url.authority.to_str().unwrap(), url.authenticate.path()),
                (authority, target),
                "{text}"
            );
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
    }

    #[test]
    fn an_invalid_authd_url_is_refused() {
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
    fn debug_output_does_not_show_the_token() {
        let value = authorization(&Secret::new("t0ken")).unwrap();
        assert_eq!(value.as_bytes(), b"Bearer t0ken");
        assert!(!format!("{value:?}").contains("t0ken"));
        assert_eq!(authorization(&Secret::new("two\nlines")), None);
    }
}
