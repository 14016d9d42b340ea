//! The whole HTTP API: path, method, token, body → handler.
//!
//! In warp a rejection means "try another route". Here a path that is known answers whatever is
//! asked of it, with 405 where it does not take the method, so that a refusal of one route is
//! never taken for another's, and what is left for the end is 404.

use std::{future::poll_fn, pin::pin, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use warp::{
    Buf, Filter, Rejection, Reply, Stream,
    filters::BoxedFilter,
    http::{HeaderMap, Method, StatusCode, header},
    path::FullPath,
    reply::{self, Response},
};

use crate::{
    Service,
    error::ApiError,
    handlers::{
        authorized, bans, groups, login,
        sessions::{self, SessionEnd, SessionFilter},
        users,
    },
    metrics,
    server::Peer,
};

/// The largest body that any route takes, in bytes.
pub const MAX_BODY: usize = 16 * 1024;

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The description of the API; a test holds the API to it.
pub const OPENAPI: &str = include_str!("openapi.json");

type ApiResult = Result<Response, ApiError>;
type ApiRoute = BoxedFilter<(Response,)>;

/// Everything that authd serves. `operations` are the routes that all daemons have.
pub fn routes<R: Reply + 'static>(
    service: Arc<Service>,
    operations: impl Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
) -> ApiRoute {
    let v1 = warp::path("v1");
    let none = String::new;
    let routes = [
        route("/v1/authenticate", &service, v1.and(warp::path!("authenticate")).map(none), authenticate),
        route("/v1/authorized", &service, v1.and(warp::path!("authorized")).map(none), authorized),
        route("/v1/users", &service, v1.and(warp::path!("users")).map(none), all_users),
        route("/v1/users/{name}", &service, v1.and(warp::path!("users" / String)), one_user),
        route("/v1/groups", &service, v1.and(warp::path!("groups")).map(none), all_groups),
        route("/v1/groups/{name}", &service, v1.and(warp::path!("groups" / String)), one_group),
        route("/v1/bans", &service, v1.and(warp::path!("bans")).map(none), all_bans),
        route("/v1/bans/user/{name}", &service, v1.and(warp::path!("bans" / "user" / String)), user_ban),
        route(
            "/v1/bans/address/{address}",
            &service,
            v1.and(warp::path!("bans" / "address" / String)),
            address_ban,
        ),
        route("/v1/sessions", &service, v1.and(warp::path!("sessions")).map(none), all_sessions),
        route("/v1/sessions/{id}", &service, v1.and(warp::path!("sessions" / String)), one_session),
        route("/v1/nodes", &service, v1.and(warp::path!("nodes")).map(none), all_nodes),
        route("/v1/nodes/{name}/drain", &service, v1.and(warp::path!("nodes" / String / "drain")), drain),
        route("/openapi.json", &service, warp::path!("openapi.json").map(none), describe),
        operational(operations),
    ];
    let unknown = warp::any().map(|| answer("unknown", Err(ApiError::NotFound("path"))));
    let all = routes.into_iter().reduce(|routes, route| routes.or(route).unify().boxed());
    // The list above is not empty.
    all.expect("routes").or(unknown).unify().boxed()
}

async fn authenticate(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::POST => {
            service.tokens.node(&call.headers, call.peer)?;
            let account = login::authenticate(&service, parse(call.body)?).await?;
            Ok(json(StatusCode::OK, &account))
        }
        // Whether a login of this node would be decided, for its readiness.
        Method::GET => {
            service.tokens.node(&call.headers, call.peer)?;
            if service.decides_logins() {
                Ok(StatusCode::NO_CONTENT.into_response())
            } else {
                Err(ApiError::NoLogins)
            }
        }
        _ => Err(ApiError::MethodNotAllowed("GET, POST")),
    }
}

async fn authorized(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::POST => {
            service.tokens.node(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &authorized::authorized(&service, parse(call.body)?).await?))
        }
        _ => Err(ApiError::MethodNotAllowed("POST")),
    }
}

async fn all_users(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &users::list(&service).await?))
        }
        Method::POST => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::CREATED, &users::create(&service, parse(call.body)?).await?))
        }
        _ => Err(ApiError::MethodNotAllowed("GET, POST")),
    }
}

async fn one_user(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &users::show(&service, &call.parameter?).await?))
        }
        Method::PATCH => {
            service.tokens.admin(&call.headers, call.peer)?;
            let user = users::update(&service, &call.parameter?, parse(call.body)?, call.peer).await?;
            Ok(json(StatusCode::OK, &user))
        }
        Method::DELETE => {
            service.tokens.admin(&call.headers, call.peer)?;
            users::remove(&service, &call.parameter?).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(ApiError::MethodNotAllowed("GET, PATCH, DELETE")),
    }
}

async fn all_groups(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &groups::list(&service).await?))
        }
        Method::POST => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::CREATED, &groups::create(&service, parse(call.body)?).await?))
        }
        _ => Err(ApiError::MethodNotAllowed("GET, POST")),
    }
}

async fn one_group(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &groups::show(&service, &call.parameter?).await?))
        }
        Method::PATCH => {
            service.tokens.admin(&call.headers, call.peer)?;
            let group = groups::update(&service, &call.parameter?, parse(call.body)?).await?;
            Ok(json(StatusCode::OK, &group))
        }
        Method::DELETE => {
            service.tokens.admin(&call.headers, call.peer)?;
            groups::remove(&service, &call.parameter?).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(ApiError::MethodNotAllowed("GET, PATCH, DELETE")),
    }
}

async fn all_bans(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &bans::list(&service).await?))
        }
        _ => Err(ApiError::MethodNotAllowed("GET")),
    }
}

async fn user_ban(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::DELETE => {
            service.tokens.admin(&call.headers, call.peer)?;
            bans::lift_user(&service, &call.parameter?).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(ApiError::MethodNotAllowed("DELETE")),
    }
}

async fn address_ban(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::DELETE => {
            service.tokens.admin(&call.headers, call.peer)?;
            bans::lift_address(&service, &call.parameter?).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(ApiError::MethodNotAllowed("DELETE")),
    }
}

async fn all_sessions(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &sessions::list(&service, call.filter?).await?))
        }
        _ => Err(ApiError::MethodNotAllowed("GET")),
    }
}

async fn one_session(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &sessions::show(&service, &call.parameter?).await?))
        }
        Method::DELETE => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(match sessions::end(&service, &call.parameter?, call.peer).await? {
                SessionEnd::Gone => StatusCode::NO_CONTENT.into_response(),
                SessionEnd::Asked(session) => json(StatusCode::ACCEPTED, &session),
            })
        }
        _ => Err(ApiError::MethodNotAllowed("GET, DELETE")),
    }
}

async fn all_nodes(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &sessions::nodes(&service).await?))
        }
        _ => Err(ApiError::MethodNotAllowed("GET")),
    }
}

async fn drain(service: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            service.tokens.admin(&call.headers, call.peer)?;
            Ok(json(StatusCode::OK, &sessions::drain_state(&service, &call.parameter?).await?))
        }
        Method::POST => {
            service.tokens.admin(&call.headers, call.peer)?;
            sessions::drain(&service, &call.parameter?, call.peer).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        _ => Err(ApiError::MethodNotAllowed("GET, POST")),
    }
}

async fn describe(_: Arc<Service>, call: ApiRequest) -> ApiResult {
    match call.method {
        Method::GET => {
            Ok(reply::with_header(OPENAPI, header::CONTENT_TYPE, "application/json").into_response())
        }
        _ => Err(ApiError::MethodNotAllowed("GET")),
    }
}

/// What a handler may want of a request.
struct ApiRequest {
    method: Method,
    headers: HeaderMap,
    peer: Option<Peer>,
    /// The part of the path that names something.
    parameter: Result<String, ApiError>,
    filter: Result<SessionFilter, ApiError>,
    body: Result<Vec<u8>, ApiError>,
}

fn route<F: Future<Output = ApiResult> + Send + 'static>(
    name: &'static str,
    service: &Arc<Service>,
    path: impl Filter<Extract = (String,), Error = Rejection> + Clone + Send + Sync + 'static,
    handler: fn(Arc<Service>, ApiRequest) -> F,
) -> ApiRoute {
    let service = Arc::clone(service);
    let body = warp::header::headers_cloned().and(warp::body::stream()).then(async |headers, body| {
        let body = read(&headers, body).await;
        (headers, body)
    });
    let filter = warp::query::<SessionFilter>().map(Ok).or_else(async |_| {
        let message = "the query names `user`, `node` and `address` alone".to_owned();
        Ok::<_, Rejection>((Err(ApiError::InvalidRequest(message)),))
    });
    path.and(warp::method())
        .and(filter)
        .and(warp::ext::optional::<Peer>())
        .and(body)
        .then(move |parameter: String, method, filter, peer, (headers, body)| {
            let parameter = decoded(&parameter);
            let call = ApiRequest { method, headers, peer, parameter, filter, body };
            let handled = handler(Arc::clone(&service), call);
            async move { answer(name, handled.await) }
        })
        .boxed()
}

/// The operational routes, which take GET and HEAD alone, and 405 for other methods.
fn operational<R: Reply + 'static>(
    routes: impl Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
) -> ApiRoute {
    let known = warp::path!("metrics").or(warp::path!("healthz")).unify().or(warp::path!("readyz")).unify();
    let refused = known.map(|| Err(ApiError::MethodNotAllowed("GET, HEAD")));
    let served = routes.map(|reply: R| Ok(reply.into_response()));
    warp::path::full()
        .and(served.or(refused).unify())
        .map(|path: FullPath, result| {
            let name = ["/metrics", "/healthz"].into_iter().find(|name| *name == path.as_str());
            answer(name.unwrap_or("/readyz"), result)
        })
        .boxed()
}

fn answer(route: &'static str, result: ApiResult) -> Response {
    let response = result.unwrap_or_else(Reply::into_response);
    metrics::answered(route, response.status().as_u16());
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    reply::with_status(reply::json(body), status).into_response()
}

/// Reads a body up to its limits of size and time.
async fn read<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Vec<u8>, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > MAX_BODY as u64) {
        return Err(ApiError::TooLarge(MAX_BODY));
    }
    let whole = async {
        let mut body = pin!(body);
        let mut bytes = Vec::new();
        while let Some(part) = poll_fn(|context| body.as_mut().poll_next(context)).await {
            let mut part = part.map_err(|_| ApiError::InvalidRequest("the body broke off".to_owned()))?;
            if bytes.len() + part.remaining() > MAX_BODY {
                return Err(ApiError::TooLarge(MAX_BODY));
            }
            while part.has_remaining() {
                let chunk = part.chunk();
                bytes.extend_from_slice(chunk);
                let length = chunk.len();
                part.advance(length);
            }
        }
        Ok(bytes)
    };
    let late = |_| ApiError::InvalidRequest("the body did not come in time".to_owned());
    timeout(BODY_TIMEOUT, whole).await.map_err(late)?
}

/// serde's messages name fields and positions, and quote values only of the wrong type.
fn parse<T: DeserializeOwned>(body: Result<Vec<u8>, ApiError>) -> Result<T, ApiError> {
    serde_json::from_slice(&body?).map_err(|error| ApiError::InvalidRequest(error.to_string()))
}

/// A part of a path without its percent-encoding (RFC 3986 section 2.1).
fn decoded(part: &str) -> Result<String, ApiError> {
    let invalid = || ApiError::InvalidRequest("the path is not UTF-8, percent-encoded".to_owned());
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_first_chunk::<2>().ok_or_else(invalid)?;
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(invalid);
            // Two hexadecimal digits fit a byte.
            bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding() {
        for (part, text) in
            [("demo", "demo"), ("Ann%20Smith", "Ann Smith"), ("m%C3%bcller", "müller"), ("%2F", "/")]
        {
            assert_eq!(decoded(part).unwrap(), text);
        }
        for part in ["%", "%2", "%zz", "%ff", "%+1"] {
            assert!(decoded(part).is_err(), "{part}");
        }
    }
}
