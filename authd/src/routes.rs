//! The whole HTTP API: path, method, token → handler.
//!
//! In warp, a rejection means "try the next route". Here, a known path answers every request: with 405 if
//! it does not support the method. So the response of one route is never replaced by that of another, and
//! 404 is left for unknown paths.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use common::process::http::Peer;
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
    error::ApiError,
    handlers::{
        authorized, bans, groups, login, nodes,
        sessions::{self, SessionEnd, SessionFilter},
        users,
    },
    metrics,
    service::Service,
};

/// Maximum size of a request's body, in bytes.
pub(crate) const MAX_BODY: usize = 16 * 1024;

/// Maximum time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The OpenAPI description. A test compares it with the API.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

type ApiResult = Result<Response, ApiError>;
type ApiRoute = BoxedFilter<(Response,)>;
type ApiFuture = Pin<Box<dyn Future<Output = ApiResult> + Send>>;

const OK: StatusCode = StatusCode::OK;

/// The token that an operation needs.
#[derive(Clone, Copy)]
enum RequiredToken {
    None,
    Node,
    Admin,
}

/// One method of a path.
struct Operation {
    method: Method,
    token: RequiredToken,
    handle: Box<dyn Fn(Arc<Service>, ApiRequest) -> ApiFuture + Send + Sync>,
}

fn operation<F: Future<Output = ApiResult> + Send + 'static>(
    method: Method,
    token: RequiredToken,
    handle: impl Fn(Arc<Service>, ApiRequest) -> F + Send + Sync + 'static,
) -> Operation {
    Operation { method, token, handle: Box::new(move |service, request| Box::pin(handle(service, request))) }
}

/// Everything that authd serves. `operational` are the routes that all daemons have.
pub(crate) fn routes<R: Reply + 'static>(
    service: Arc<Service>,
    operational: impl Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
) -> ApiRoute {
    let unknown = warp::any().map(|| respond("unknown", Err(ApiError::NotFound("path"))));
    let all = [login_routes(&service), account_routes(&service), registry_routes(&service)].concat();
    let all = all.into_iter().chain([description_route(&service), operational_routes(operational)]);
    let all = all.reduce(|routes, route| routes.or(route).unify().boxed());
    all.expect("the list of routes is not empty").or(unknown).unify().boxed()
}

/// Logins: for nodes. Bans: for administrators.
fn login_routes(service: &Arc<Service>) -> Vec<ApiRoute> {
    let v1 = warp::path("v1");
    vec![
        route(
            "/v1/authenticate",
            service,
            v1.and(warp::path!("authenticate")).map(String::new),
            vec![
                operation(Method::GET, RequiredToken::Node, |service, _| async move {
                    login::probe(&service)?;
                    no_content()
                }),
                operation(Method::POST, RequiredToken::Node, |service, request| async move {
                    json(OK, &login::authenticate(&service, parse(request.body)?).await?)
                }),
            ],
        ),
        route(
            "/v1/authorized",
            service,
            v1.and(warp::path!("authorized")).map(String::new),
            vec![operation(Method::POST, RequiredToken::Node, |service, request| async move {
                json(OK, &authorized::authorized(&service, parse(request.body)?).await?)
            })],
        ),
        route(
            "/v1/bans",
            service,
            v1.and(warp::path!("bans")).map(String::new),
            vec![operation(Method::GET, RequiredToken::Admin, |service, _| async move {
                json(OK, &bans::list(&service).await?)
            })],
        ),
        route(
            "/v1/bans/user/{name}",
            service,
            v1.and(warp::path!("bans" / "user" / String)),
            vec![operation(Method::DELETE, RequiredToken::Admin, |service, request| async move {
                bans::lift_user(&service, &request.parameter?).await?;
                no_content()
            })],
        ),
        route(
            "/v1/bans/address/{address}",
            service,
            v1.and(warp::path!("bans" / "address" / String)),
            vec![operation(Method::DELETE, RequiredToken::Admin, |service, request| async move {
                bans::lift_address(&service, &request.parameter?).await?;
                no_content()
            })],
        ),
    ]
}

/// Users and groups, for administrators.
fn account_routes(service: &Arc<Service>) -> Vec<ApiRoute> {
    let v1 = warp::path("v1");
    vec![
        route(
            "/v1/users",
            service,
            v1.and(warp::path!("users")).map(String::new),
            vec![
                operation(Method::GET, RequiredToken::Admin, |service, _| async move {
                    json(OK, &users::list(&service).await?)
                }),
                operation(Method::POST, RequiredToken::Admin, |service, request| async move {
                    json(StatusCode::CREATED, &users::create(&service, parse(request.body)?).await?)
                }),
            ],
        ),
        route(
            "/v1/users/{name}",
            service,
            v1.and(warp::path!("users" / String)),
            vec![
                operation(Method::GET, RequiredToken::Admin, |service, request| async move {
                    json(OK, &users::show(&service, &request.parameter?).await?)
                }),
                operation(Method::PATCH, RequiredToken::Admin, |service, request| async move {
                    let ApiRequest { parameter, body, peer, .. } = request;
                    json(OK, &users::update(&service, &parameter?, parse(body)?, peer).await?)
                }),
                operation(Method::DELETE, RequiredToken::Admin, |service, request| async move {
                    users::remove(&service, &request.parameter?).await?;
                    no_content()
                }),
            ],
        ),
        route(
            "/v1/groups",
            service,
            v1.and(warp::path!("groups")).map(String::new),
            vec![
                operation(Method::GET, RequiredToken::Admin, |service, _| async move {
                    json(OK, &groups::list(&service).await?)
                }),
                operation(Method::POST, RequiredToken::Admin, |service, request| async move {
                    json(StatusCode::CREATED, &groups::create(&service, parse(request.body)?).await?)
                }),
            ],
        ),
        route(
            "/v1/groups/{name}",
            service,
            v1.and(warp::path!("groups" / String)),
            vec![
                operation(Method::GET, RequiredToken::Admin, |service, request| async move {
                    json(OK, &groups::show(&service, &request.parameter?).await?)
                }),
                operation(Method::PATCH, RequiredToken::Admin, |service, request| async move {
                    json(OK, &groups::update(&service, &request.parameter?, parse(request.body)?).await?)
                }),
                operation(Method::DELETE, RequiredToken::Admin, |service, request| async move {
                    groups::remove(&service, &request.parameter?).await?;
                    no_content()
                }),
            ],
        ),
    ]
}

/// Sessions and nodes, for administrators.
fn registry_routes(service: &Arc<Service>) -> Vec<ApiRoute> {
    let v1 = warp::path("v1");
    vec![
        route(
            "/v1/sessions",
            service,
            v1.and(warp::path!("sessions")).map(String::new),
            vec![operation(Method::GET, RequiredToken::Admin, |service, request| async move {
                json(OK, &sessions::list(&service, request.filter?).await?)
            })],
        ),
        route(
            "/v1/sessions/{id}",
            service,
            v1.and(warp::path!("sessions" / String)),
            vec![
                operation(Method::GET, RequiredToken::Admin, |service, request| async move {
                    json(OK, &sessions::show(&service, &request.parameter?).await?)
                }),
                operation(Method::DELETE, RequiredToken::Admin, |service, request| async move {
                    match sessions::end(&service, &request.parameter?, request.peer).await? {
                        SessionEnd::Gone => no_content(),
                        SessionEnd::Asked(session) => json(StatusCode::ACCEPTED, &session),
                    }
                }),
            ],
        ),
        route(
            "/v1/nodes",
            service,
            v1.and(warp::path!("nodes")).map(String::new),
            vec![operation(Method::GET, RequiredToken::Admin, |service, _| async move {
                json(OK, &nodes::list(&service).await?)
            })],
        ),
        route(
            "/v1/nodes/{name}/drain",
            service,
            v1.and(warp::path!("nodes" / String / "drain")),
            vec![
                operation(Method::GET, RequiredToken::Admin, |service, request| async move {
                    json(OK, &nodes::drain_state(&service, &request.parameter?).await?)
                }),
                operation(Method::POST, RequiredToken::Admin, |service, request| async move {
                    nodes::drain(&service, &request.parameter?, request.peer).await?;
                    Ok(StatusCode::ACCEPTED.into_response())
                }),
            ],
        ),
    ]
}

/// The OpenAPI description, for everyone.
fn description_route(service: &Arc<Service>) -> ApiRoute {
    route(
        "/openapi.json",
        service,
        warp::path!("openapi.json").map(String::new),
        vec![operation(Method::GET, RequiredToken::None, |_, _| async move {
            let response = reply::with_header(OPENAPI, header::CONTENT_TYPE, "application/json");
            Ok(response.into_response())
        })],
    )
}

/// The parts of a request that a handler may need.
struct ApiRequest {
    peer: Option<Peer>,
    /// The variable part of the path, decoded.
    parameter: Result<String, ApiError>,
    filter: Result<SessionFilter, ApiError>,
    body: Result<Vec<u8>, ApiError>,
}

/// Serves the operations of one path. `path` extracts its variable part, or an empty text.
fn route(
    name: &'static str,
    service: &Arc<Service>,
    path: impl Filter<Extract = (String,), Error = Rejection> + Clone + Send + Sync + 'static,
    operations: Vec<Operation>,
) -> ApiRoute {
    let (service, operations) = (Arc::clone(service), Arc::<[Operation]>::from(operations));
    let body = warp::header::headers_cloned().and(warp::body::stream()).then(async |headers, body| {
        let body = read(&headers, body).await;
        (headers, body)
    });
    let filter = warp::query::<SessionFilter>().map(Ok).or_else(async |_| {
        let message = "the query supports only `user`, `node` and `address`".to_owned();
        Ok::<_, Rejection>((Err(ApiError::InvalidRequest(message)),))
    });
    path.and(warp::method())
        .and(filter)
        .and(warp::ext::optional::<Peer>())
        .and(body)
        .then(move |parameter: String, method, filter, peer, (headers, body)| {
            let request = ApiRequest { peer, parameter: decoded(&parameter), filter, body };
            let handled = dispatch(Arc::clone(&service), Arc::clone(&operations), method, headers, request);
            async move { respond(name, handled.await) }
        })
        .boxed()
}

/// Finds the operation for the method, checks the token, and calls the handler.
async fn dispatch(
    service: Arc<Service>,
    operations: Arc<[Operation]>,
    method: Method,
    headers: HeaderMap,
    request: ApiRequest,
) -> ApiResult {
    let Some(operation) = operations.iter().find(|operation| operation.method == method) else {
        let methods: Vec<&str> = operations.iter().map(|operation| operation.method.as_str()).collect();
        return Err(ApiError::MethodNotAllowed(methods.join(", ")));
    };
    match operation.token {
        RequiredToken::None => {}
        RequiredToken::Node => service.tokens.node(&headers, request.peer)?,
        RequiredToken::Admin => service.tokens.admin(&headers, request.peer)?,
    }
    (operation.handle)(Arc::clone(&service), request).await
}

/// The operational routes. They support GET and HEAD.
fn operational_routes<R: Reply + 'static>(
    routes: impl Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
) -> ApiRoute {
    let known = warp::path!("metrics").or(warp::path!("healthz")).unify().or(warp::path!("readyz")).unify();
    let refused = known.map(|| Err(ApiError::MethodNotAllowed("GET, HEAD".to_owned())));
    let served = routes.map(|reply: R| Ok(reply.into_response()));
    warp::path::full()
        .and(served.or(refused).unify())
        .map(|path: FullPath, result| {
            let name = ["/metrics", "/healthz"].into_iter().find(|name| *name == path.as_str());
            respond(name.unwrap_or("/readyz"), result)
        })
        .boxed()
}

/// Turns the result into a response and counts it.
fn respond(route: &'static str, result: ApiResult) -> Response {
    let response = result.unwrap_or_else(Reply::into_response);
    metrics::answered(route, response.status().as_u16());
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> ApiResult {
    Ok(reply::with_status(reply::json(body), status).into_response())
}

fn no_content() -> ApiResult {
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Reads a body within the limits of size and time.
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
            let mut part = part.map_err(|_| ApiError::InvalidRequest("the body is incomplete".to_owned()))?;
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
    let late = |_| ApiError::InvalidRequest("the body did not arrive in time".to_owned());
    timeout(BODY_TIMEOUT, whole).await.map_err(late)?
}

/// Parses a JSON body. The message names fields and positions. It quotes a value only if its type is wrong.
fn parse<T: DeserializeOwned>(body: Result<Vec<u8>, ApiError>) -> Result<T, ApiError> {
    serde_json::from_slice(&body?).map_err(|error| ApiError::InvalidRequest(error.to_string()))
}

/// Decodes the percent-encoding of a part of a path (RFC 3986 section 2.1).
fn decoded(part: &str) -> Result<String, ApiError> {
    let invalid = || ApiError::InvalidRequest("the path is not percent-encoded UTF-8".to_owned());
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
    fn percent_encoding_is_decoded_and_malformed_encoding_refused() {
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
