//! The page for operators: its files, the headers that protect them, and the sessions of its users.
//!
//! The page is HTML, CSS and JavaScript modules without a build step, embedded in the program. It uses the
//! same API as `ftpctl`. Instead of the bearer token, a browser shows the cookie of a session.

#[cfg(test)]
mod contrast;
mod limiter;
mod sessions;

use std::{net::IpAddr, time::Duration};

use common::sync::lock;
use warp::{
    Reply,
    http::{HeaderValue, header},
    reply::Response,
};

pub(crate) use self::sessions::PageSession;
use self::{limiter::LoginLimiter, sessions::PageSessions};
use crate::administrators::{Administrator, Administrators};

/// A file of the page: name, content type, content.
type PageFile = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! script {
    ($name:literal) => {
        ($name, SCRIPT, include_str!(concat!("assets/", $name)))
    };
}

/// The files below `/page/`. The first one is also served at `/`.
const FILES: &[PageFile] = &[
    ("index.html", HTML, include_str!("assets/index.html")),
    ("style.css", CSS, include_str!("assets/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    script!("api.js"),
    script!("app.js"),
    script!("audit.js"),
    script!("charts.js"),
    script!("cluster.js"),
    script!("dialogs.js"),
    script!("dom.js"),
    script!("events.js"),
    script!("feed.js"),
    script!("format.js"),
    script!("groups.js"),
    script!("live.js"),
    script!("overview.js"),
    script!("policy.js"),
    script!("refused.js"),
    script!("users.js"),
];

/// Only files of this origin, no inline scripts and styles, no frames, no forms that a browser sends itself.
/// Texts become nodes only through `textContent`: `require-trusted-types-for` forbids `innerHTML`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// The headers of every file of the page.
const HEADERS: [(&str, &str); 8] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    // The files change with the program.
    ("cache-control", "no-cache"),
];

/// The file of this name, as a response; an empty name is the page itself. `None`: there is no such file.
pub(crate) fn file(name: &str) -> Option<Response> {
    let (_, kind, text) = FILES.iter().find(|(known, ..)| *known == name || name.is_empty())?;
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

/// The logins to the page.
pub(crate) struct Page {
    lifetime: Duration,
    sessions: std::sync::Mutex<PageSessions>,
    limiter: std::sync::Mutex<LoginLimiter>,
}

/// A login to the page that was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PageRefusal {
    /// Too many failures from this address. Holds the time to wait.
    Throttled(Duration),
    /// No administrator has this name and this token.
    Wrong,
}

impl Page {
    /// Sessions end after `lifetime`.
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime, sessions: std::sync::Mutex::default(), limiter: std::sync::Mutex::default() }
    }

    pub(crate) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Begins a session for the administrator with this name and token. Returns the secret of its cookie.
    pub(crate) fn log_in(
        &self,
        administrators: &Administrators,
        name: &str,
        token: &[u8],
        address: Option<IpAddr>,
    ) -> Result<(String, PageSession), PageRefusal> {
        // Held for the whole attempt, so that simultaneous attempts are counted one after another.
        let mut limiter = lock(&self.limiter);
        limiter.check(address).map_err(PageRefusal::Throttled)?;
        let found = administrators.with_token(token).filter(|found| found.name == name);
        let Some(administrator) = found else {
            limiter.failed(address);
            return Err(PageRefusal::Wrong);
        };
        limiter.succeeded(address);
        drop(limiter);
        Ok(lock(&self.sessions).begin(administrator, token, self.lifetime))
    }

    /// The session of this cookie; `None` if the cookie is unknown, if the session is over, or if the
    /// token or the role of its administrator has changed.
    pub(crate) fn session(&self, administrators: &Administrators, secret: &str) -> Option<PageSession> {
        lock(&self.sessions).find(administrators, secret)
    }

    /// Ends the session of this cookie.
    pub(crate) fn end(&self, secret: &str) -> Option<Administrator> {
        lock(&self.sessions).end(secret)
    }
}
