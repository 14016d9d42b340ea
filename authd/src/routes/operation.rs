//! An operation of the API: the token and the role that it needs, its body, its handler, its response.

use std::{future::Future, pin::Pin, sync::Arc, time::Instant};

use common::{admin_api::AdminRole, process::http::Peer};
use serde::Serialize;
use warp::{
    Filter, Rejection, Reply,
    filters::BoxedFilter,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    reply::{self, Response},
};

use super::request::{ApiRequest, BodyLimits, decoded, read};
use crate::{
    admin_audit::AdminAction, administrators::Actor, error::ApiError, handlers::page, metrics,
    service::Service,
};

pub(super) type ApiResult = Result<Response, ApiError>;
pub(super) type ApiRoute = BoxedFilter<(Response,)>;
type ApiFuture = Pin<Box<dyn Future<Output = ApiResult> + Send>>;

/// The token that an operation needs.
#[derive(Clone, Copy)]
pub(super) enum RequiredToken {
    None,
    Node,
    Admin,
}

/// One method of a path.
pub(super) struct Operation {
    pub method: Method,
    pub token: RequiredToken,
    /// The least role that an administrator needs.
    pub role: AdminRole,
    /// The action in the log, for operations of administrators that change something or show secrets.
    pub action: Option<&'static str>,
    pub body: BodyLimits,
    pub handle: Box<dyn Fn(Arc<Service>, ApiRequest) -> ApiFuture + Send + Sync>,
}

pub(super) fn operation<F: Future<Output = ApiResult> + Send + 'static>(
    method: Method,
    token: RequiredToken,
    handle: impl Fn(Arc<Service>, ApiRequest) -> F + Send + Sync + 'static,
) -> Operation {
    let handle = Box::new(move |service, request| Box::pin(handle(service, request)) as ApiFuture);
    let (role, body) = (AdminRole::Administrator, BodyLimits::USUAL);
    Operation { method, token, role, action: None, body, handle }
}

/// An operation of administrators that only reads.
pub(super) fn reading<F: Future<Output = ApiResult> + Send + 'static>(
    handle: impl Fn(Arc<Service>, ApiRequest) -> F + Send + Sync + 'static,
) -> Operation {
    Operation { role: AdminRole::Viewer, ..operation(Method::GET, RequiredToken::Admin, handle) }
}

/// An operation of administrators that changes something. `action` is its name in the log.
pub(super) fn changing<F: Future<Output = ApiResult> + Send + 'static>(
    method: Method,
    action: &'static str,
    handle: impl Fn(Arc<Service>, ApiRequest) -> F + Send + Sync + 'static,
) -> Operation {
    Operation { action: Some(action), ..operation(method, RequiredToken::Admin, handle) }
}

/// Serves the operations of one path. `path` extracts its variable part, or an empty text.
pub(super) fn route(
    name: &'static str,
    service: &Arc<Service>,
    path: impl Filter<Extract = (String,), Error = Rejection> + Clone + Send + Sync + 'static,
    operations: Vec<Operation>,
) -> ApiRoute {
    let (service, operations) = (Arc::clone(service), Arc::<[Operation]>::from(operations));
    let (asked, known) = (Arc::clone(&service), Arc::clone(&operations));
    let body = warp::method().and(warp::header::headers_cloned()).and(warp::body::stream());
    let body = body.then(move |method, headers, body| {
        let limits = body_limits(&asked, &known, &method, &headers);
        async move {
            let body = read(&headers, body, limits).await;
            (headers, body)
        }
    });
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    path.and(warp::method())
        .and(query)
        .and(warp::ext::optional::<Peer>())
        .and(body)
        .then(move |parameter: String, method, query, peer, (headers, body)| {
            let parameter = decoded(&parameter);
            let request = ApiRequest { peer, headers, parameter, query, body, by: None };
            let handled = dispatch(Arc::clone(&service), Arc::clone(&operations), method, request);
            async move {
                let began = Instant::now();
                let response = respond(name, handled.await);
                metrics::request_took(name, began.elapsed());
                response
            }
        })
        .boxed()
}

/// The limits of the operation's body. A stranger's body has the usual ones.
fn body_limits(
    service: &Service,
    operations: &[Operation],
    method: &Method,
    headers: &HeaderMap,
) -> BodyLimits {
    let Some(operation) = operations.iter().find(|operation| operation.method == *method) else {
        return BodyLimits::USUAL;
    };
    if operation.body == BodyLimits::USUAL {
        return BodyLimits::USUAL;
    }
    let administrator = match page::administrator(service, headers, method) {
        Ok(Some(administrator)) => Some(administrator),
        _ => service.tokens.who(headers),
    };
    let is_known = administrator.is_some_and(|known| known.role == AdminRole::Administrator);
    if is_known { operation.body } else { BodyLimits::USUAL }
}

/// Finds the operation for the method, checks the token, and calls the handler.
async fn dispatch(
    service: Arc<Service>,
    operations: Arc<[Operation]>,
    method: Method,
    mut request: ApiRequest,
) -> ApiResult {
    let Some(operation) = operations.iter().find(|operation| operation.method == method) else {
        let methods: Vec<&str> = operations.iter().map(|operation| operation.method.as_str()).collect();
        return Err(ApiError::MethodNotAllowed(methods.join(", ")));
    };
    match operation.token {
        RequiredToken::None => {}
        RequiredToken::Node => service.tokens.node(&request.headers, request.peer)?,
        RequiredToken::Admin => {
            let administrator = match page::administrator(&service, &request.headers, &method)? {
                Some(administrator) => administrator,
                None => service.tokens.admin(&request.headers, request.peer)?,
            };
            let address = request.peer.map(|Peer(peer)| peer.ip());
            request.by = Some(Actor { administrator, address });
        }
    }
    let refusal = request.by.as_ref().filter(|by| by.administrator.role == AdminRole::Viewer);
    let refusal = refusal.filter(|_| operation.role == AdminRole::Administrator);
    let refusal = refusal.map(|viewer| ApiError::ReadOnly(viewer.administrator.name.clone()));
    let (Some(action), Some(by)) = (operation.action, request.by.clone()) else {
        return match refusal {
            Some(refusal) => Err(refusal),
            None => (operation.handle)(service, request).await,
        };
    };
    let object = request.parameter.as_deref().unwrap_or_default();
    // The fields of a document are many, and some are secret.
    let fields = if operation.body == BodyLimits::USUAL { request.fields() } else { request.query_fields() };
    let action = AdminAction::begin(&service, action, object, fields).await;
    let result = match refusal {
        Some(refusal) => Err(refusal),
        None => (operation.handle)(Arc::clone(&service), request).await,
    };
    action.end(&service.audit, &by, result.as_ref().err());
    result
}

/// Turns the result into a response and counts it.
pub(super) fn respond(route: &'static str, result: ApiResult) -> Response {
    let mut response = result.unwrap_or_else(Reply::into_response);
    metrics::answered(route, response.status().as_u16());
    if route.starts_with("/v1/") || route == "/page/session" {
        // The answers tell about users. A browser's disk must not keep them, and no other site may load them.
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    }
    response
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> ApiResult {
    Ok(reply::with_status(reply::json(body), status).into_response())
}

pub(super) fn no_content() -> ApiResult {
    Ok(StatusCode::NO_CONTENT.into_response())
}
