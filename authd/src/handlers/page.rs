//! The page's sessions: `/page/session`, and the administrator of a request with the page's cookie.

use std::net::IpAddr;

use common::{admin_api::AdminRole, clock::rfc3339, process::http};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use warp::http::{HeaderMap, HeaderValue, Method, header};

use super::shortened;
use crate::{
    administrators::Administrator,
    error::ApiError,
    page::{Page, PageRefusal, PageSession},
    service::Service,
};

/// The cookie of a session.
const COOKIE: &str = "ftp_console";

/// The header that holds [`PageSessionView::csrf`].
const CSRF_HEADER: &str = "x-csrf-token";

/// The body of `POST /page/session`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageLogin {
    pub name: String,
    pub token: String,
}

/// The answer to `GET` and `POST /page/session`.
#[derive(Debug, Serialize)]
pub struct PageSessionView {
    name: String,
    role: AdminRole,
    /// The value of the header [`CSRF_HEADER`] for requests that change something.
    csrf: String,
    /// End of the session.
    until: String,
    /// authd's version.
    version: &'static str,
}

impl From<PageSession> for PageSessionView {
    fn from(session: PageSession) -> Self {
        let PageSession { administrator: Administrator { name, role }, csrf, until } = session;
        Self { name, role, csrf, until: rfc3339(until), version: env!("CARGO_PKG_VERSION") }
    }
}

/// The page, unless it is switched off.
fn page(service: &Service) -> Result<&Page, ApiError> {
    service.page.as_ref().ok_or(ApiError::NotFound("path"))
}

/// Begins a session. Returns the answer and the cookie.
///
/// # Errors
/// The page is switched off, the request comes from another site, the name or the token is wrong, or the
/// address has to wait after failures.
pub fn log_in(
    service: &Service,
    headers: &HeaderMap,
    address: Option<IpAddr>,
    login: &PageLogin,
) -> Result<(PageSessionView, HeaderValue), ApiError> {
    let page = page(service)?;
    // A form of another site cannot send JSON without asking this one first, which never allows it.
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|kind| kind.split(';').next() == Some("application/json"));
    if !is_json || is_of_another_site(headers) {
        return Err(ApiError::ForeignRequest);
    }
    let administrators = service.tokens.administrators();
    match page.log_in(administrators, &login.name, login.token.trim().as_bytes(), address) {
        Ok((secret, session)) => {
            http::trust_connection();
            let cookie = cookie(headers, &secret, page.lifetime().as_secs());
            Ok((session.into(), cookie))
        }
        Err(PageRefusal::Wrong) => Err(ApiError::WrongToken),
        Err(PageRefusal::Throttled(wait)) => Err(ApiError::Throttled { wait }),
    }
}

/// The session of the request's cookie.
///
/// # Errors
/// The page is switched off, or there is no such session.
pub fn session(service: &Service, headers: &HeaderMap) -> Result<PageSessionView, ApiError> {
    let page = page(service)?;
    let session = secret(headers).and_then(|secret| page.session(service.tokens.administrators(), secret));
    Ok(session.ok_or(ApiError::NoSession)?.into())
}

/// Ends the session of the request's cookie. Returns its administrator, if there was one, and the cookie that
/// removes the old one.
///
/// # Errors
/// The page is switched off, or the request lacks the session's CSRF token.
pub fn log_out(
    service: &Service,
    headers: &HeaderMap,
) -> Result<(Option<Administrator>, HeaderValue), ApiError> {
    let page = page(service)?;
    let mut ended = None;
    if let Some(secret) = secret(headers)
        && let Some(session) = page.session(service.tokens.administrators(), secret)
    {
        check_csrf(headers, &session)?;
        ended = page.end(secret);
        // The page that has logged out must not be told any more.
        service.feed.end_streams();
    }
    Ok((ended, cookie(headers, "", 0)))
}

/// The administrator of a request that has the page's cookie and no bearer token. `None`: it has no cookie.
///
/// # Errors
/// The session is over, or the request changes something and lacks the session's CSRF token.
pub(crate) fn administrator(
    service: &Service,
    headers: &HeaderMap,
    method: &Method,
) -> Result<Option<Administrator>, ApiError> {
    let (Some(page), Some(secret)) = (&service.page, secret(headers)) else { return Ok(None) };
    if headers.contains_key(header::AUTHORIZATION) {
        return Ok(None);
    }
    let session = page.session(service.tokens.administrators(), secret).ok_or(ApiError::NoSession)?;
    if *method != Method::GET {
        check_csrf(headers, &session)?;
    }
    http::trust_connection();
    Ok(Some(session.administrator))
}

/// The name of a login for the log.
pub(crate) fn claimed(login: &PageLogin) -> String {
    shortened(&login.name)
}

/// The cookie's `SameSite=Strict` keeps requests of other sites out. It does not keep out other services of
/// the same host on other ports, which the token does.
fn check_csrf(headers: &HeaderMap, session: &PageSession) -> Result<(), ApiError> {
    let shown = headers.get(CSRF_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_right: bool = shown.ct_eq(session.csrf.as_bytes()).into();
    if is_right && !is_of_another_site(headers) { Ok(()) } else { Err(ApiError::ForeignRequest) }
}

/// Returns true if the browser says that another origin sent the request (Fetch Metadata).
fn is_of_another_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

/// The secret of the session's cookie, if there is exactly one.
fn secret(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut found = all.flat_map(|value| value.split(';')).filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    });
    match (found.next(), found.next()) {
        (Some(secret), None) => Some(secret),
        _ => None,
    }
}

/// `Secure` only behind a proxy with TLS: authd itself has none, and browsers drop such a cookie without it.
fn cookie(headers: &HeaderMap, secret: &str, seconds: u64) -> HeaderValue {
    let is_encrypted = headers.get("x-forwarded-proto").is_some_and(|protocol| protocol == "https");
    let secure = if is_encrypted { "; Secure" } else { "" };
    let text = format!("{COOKIE}={secret}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::try_from(text).expect("hexadecimal digits and numbers are valid in a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_cookie_of_the_session_counts() {
        let with = |values: &[&'static str]| -> HeaderMap {
            values.iter().map(|value| (header::COOKIE, value.parse().unwrap())).collect()
        };
        for (values, expected) in [
            (&["ftp_console=a"][..], Some("a")),
            (&["x=1; ftp_console=a; y=2"], Some("a")),
            (&["x=1", "ftp_console=a"], Some("a")),
            (&["ftp_console=a; ftp_console=b"], None),
            (&["ftp_console=a", "ftp_console=b"], None),
            (&["ftp_console"], None),
            (&["xftp_console=a"], None),
            (&[], None),
        ] {
            assert_eq!(secret(&with(values)), expected, "{values:?}");
        }
    }

    #[test]
    fn the_cookie_is_secure_behind_a_proxy_with_tls() {
        let mut headers = HeaderMap::new();
        let text = cookie(&headers, "a", 5);
        assert_eq!(text, "ftp_console=a; Path=/; Max-Age=5; HttpOnly; SameSite=Strict");
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        assert!(cookie(&headers, "a", 5).to_str().unwrap().ends_with("; Secure"));
    }
}
