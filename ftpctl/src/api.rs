//! The client of authd's API for administrators.

use std::{error::Error, fs, time::Duration};

use reqwest::{Certificate, Client, Method, Response, Url, header::HeaderMap};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{config::Connection, error::ConsoleError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Names and values of a query.
pub(crate) type Query = Vec<(&'static str, String)>;

pub(crate) struct Api {
    pub(crate) url: Url,
    token: String,
    client: Client,
}

impl Api {
    /// # Errors
    /// The URL is malformed, or a file cannot be read.
    pub(crate) fn new(connection: &Connection) -> Result<Self, ConsoleError> {
        let usage = |text: String| ConsoleError::Usage(text);
        let url = &connection.url;
        let url = Url::parse(url).map_err(|error| usage(format!("the URL {url:?}: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(usage(format!("the URL {url}: expected http://HOST:PORT or https://HOST:PORT")));
        }
        // A redirect could carry the token to another host; authd sends none.
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &connection.ca_file {
            let failed = |error| ConsoleError::File { path: path.clone(), error };
            let pem = fs::read(path).map_err(failed)?;
            let authorities = Certificate::from_pem_bundle(&pem)
                .map_err(|error| usage(format!("{}: {error}", path.display())))?;
            builder = builder.tls_certs_only(authorities);
        } else if url.scheme() == "http" {
            // A host without the files of the usual authorities, as in a small container, needs none.
            builder = builder.tls_certs_only([]);
        }
        let client = builder
            .build()
            .map_err(|error| usage(format!("{}; name the authority with --ca-file", reason(&error))))?;
        Ok(Self { url, token: connection.token()?, client })
    }

    /// Sends a request. `path` holds the segments below the URL, without encoding.
    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &Query,
        body: Option<&Value>,
    ) -> Result<Response, ConsoleError> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.map_err(|error| self.unreachable(&error))?;
        // authd answers with a message; something else that listens there does not.
        let Some(message) = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|body| body["message"].as_str().map(str::to_owned))
        else {
            return Err(self.strange(format!("HTTP status {status}")));
        };
        Err(ConsoleError::Refused { status: status.as_u16(), message })
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &Query,
    ) -> Result<T, ConsoleError> {
        Ok(self.get_with_headers(path, query).await?.0)
    }

    pub(crate) async fn get_with_headers<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &Query,
    ) -> Result<(T, HeaderMap), ConsoleError> {
        let response = self.send(Method::GET, path, query, None).await?;
        let headers = response.headers().clone();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let answer = serde_json::from_slice(&bytes).map_err(|error| self.strange(error.to_string()))?;
        Ok((answer, headers))
    }

    /// Sends a change. `Value::Null` if the answer has no body.
    pub(crate) async fn change(
        &self,
        method: Method,
        path: &[&str],
        query: &Query,
        body: Option<&Value>,
    ) -> Result<Value, ConsoleError> {
        let response = self.send(method, path, query, body).await?;
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| self.strange(error.to_string()))
    }

    fn unreachable(&self, error: &reqwest::Error) -> ConsoleError {
        ConsoleError::Unreachable { url: self.url.to_string(), reason: reason(error) }
    }

    fn strange(&self, reason: String) -> ConsoleError {
        ConsoleError::Strange { url: self.url.to_string(), reason }
    }
}

/// The last cause, which names what happened: "Connection refused", "unknown certificate authority".
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut last: &dyn Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
