//! The whole HTTP API: path, method, token → handler.
//!
//! In warp, a rejection means "try the next route". Here, a known path answers every request: with 405 if
//! it does not support the method. So the response of one route is never replaced by that of another, and
//! 404 is left for unknown paths.

mod operation;
mod request;

use std::sync::Arc;

use common::{
    admin_api::{AdminRole, BlockSubject, NEXT_CURSOR, WhoamiView},
    process::http::Peer,
};
use serde_json::Map;
use warp::{
    Filter, Rejection, Reply,
    http::{Method, StatusCode, header},
    path::FullPath,
    reply,
};

use self::{
    operation::{
        ApiResult, ApiRoute, Operation, RequiredToken, changing, json, no_content, operation, reading,
        respond, route,
    },
    request::{ApiRequest, BodyLimits, parse},
};
use crate::{
    admin_audit::AdminAction,
    administrators::{Actor, Administrator},
    error::ApiError,
    handlers::{
        audit, authorized, backup, bans, blocks, events, explain, feed, groups, live, login, nodes, page,
        sessions::{self, SessionEnd},
        status, usage, users,
    },
    page as page_files,
    service::Service,
};

/// The OpenAPI description. A test compares it with the API.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

const OK: StatusCode = StatusCode::OK;

/// Everything that authd serves. `operational` are the routes that all daemons have.
pub(crate) fn routes<R: Reply + 'static>(
    service: Arc<Service>,
    operational: impl Filter<Extract = (R,), Error = Rejection> + Clone + Send + Sync + 'static,
) -> ApiRoute {
    let unknown = warp::any().map(|| respond("unknown", Err(ApiError::NotFound("path"))));
    let all = [
        login_routes(&service),
        account_routes(&service),
        backup_routes(&service),
        registry_routes(&service),
        page_routes(&service),
    ];
    let all = all.concat().into_iter();
    let all =
        all.chain([identity_route(&service), description_route(&service), operational_routes(operational)]);
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
            vec![reading(|service, _| async move { json(OK, &bans::list(&service).await?) })],
        ),
        route(
            "/v1/blocks",
            service,
            v1.and(warp::path!("blocks")).map(String::new),
            vec![
                reading(|service, _| async move { json(OK, &blocks::list(&service).await?) }),
                changing(Method::POST, "block.create", |service, mut request| async move {
                    let body = std::mem::replace(&mut request.body, Ok(Vec::new()));
                    let block = blocks::create(&service, parse(body)?, request.by()?).await?;
                    json(StatusCode::CREATED, &block)
                }),
            ],
        ),
        route(
            "/v1/blocks/user/{name}",
            service,
            v1.and(warp::path!("blocks" / "user" / String)),
            vec![changing(Method::DELETE, "block.remove_user", |service, request| async move {
                blocks::remove(&service, BlockSubject::User, &request.parameter?).await?;
                no_content()
            })],
        ),
        route(
            "/v1/blocks/address/{address}",
            service,
            v1.and(warp::path!("blocks" / "address" / String)),
            vec![changing(Method::DELETE, "block.remove_address", |service, request| async move {
                blocks::remove(&service, BlockSubject::Address, &request.parameter?).await?;
                no_content()
            })],
        ),
        route(
            "/v1/bans/user/{name}",
            service,
            v1.and(warp::path!("bans" / "user" / String)),
            vec![changing(Method::DELETE, "ban.lift_user", |service, request| async move {
                bans::lift_user(&service, &request.parameter?).await?;
                no_content()
            })],
        ),
        route(
            "/v1/bans/address/{address}",
            service,
            v1.and(warp::path!("bans" / "address" / String)),
            vec![changing(Method::DELETE, "ban.lift_address", |service, request| async move {
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
                reading(|service, _| async move { json(OK, &users::list(&service).await?) }),
                changing(Method::POST, "user.create", |service, request| async move {
                    json(StatusCode::CREATED, &users::create(&service, parse(request.body)?).await?)
                }),
            ],
        ),
        route(
            "/v1/users/{name}",
            service,
            v1.and(warp::path!("users" / String)),
            vec![
                reading(|service, request| async move {
                    json(OK, &users::show(&service, &request.parameter?).await?)
                }),
                changing(Method::PATCH, "user.update", |service, request| async move {
                    let ApiRequest { parameter, body, peer, .. } = request;
                    json(OK, &users::update(&service, &parameter?, parse(body)?, peer).await?)
                }),
                changing(Method::DELETE, "user.remove", |service, request| async move {
                    users::remove(&service, &request.parameter?).await?;
                    no_content()
                }),
            ],
        ),
        route(
            "/v1/users/{name}/usage",
            service,
            v1.and(warp::path!("users" / String / "usage")),
            vec![reading(|service, request| async move {
                json(OK, &usage::show(&service, &request.parameter?).await?)
            })],
        ),
        route(
            "/v1/users/{name}/explain",
            service,
            v1.and(warp::path!("users" / String / "explain")),
            vec![reading(|service, request| async move {
                let query = request.query()?;
                json(OK, &explain::explain(&service, &request.parameter?, query).await?)
            })],
        ),
        route(
            "/v1/usage",
            service,
            v1.and(warp::path!("usage")).map(String::new),
            vec![reading(|service, request| async move {
                json(OK, &usage::list(&service, request.query()?).await?)
            })],
        ),
        route(
            "/v1/groups",
            service,
            v1.and(warp::path!("groups")).map(String::new),
            vec![
                reading(|service, _| async move { json(OK, &groups::list(&service).await?) }),
                changing(Method::POST, "group.create", |service, request| async move {
                    json(StatusCode::CREATED, &groups::create(&service, parse(request.body)?).await?)
                }),
            ],
        ),
        route(
            "/v1/groups/{name}",
            service,
            v1.and(warp::path!("groups" / String)),
            vec![
                reading(|service, request| async move {
                    json(OK, &groups::show(&service, &request.parameter?).await?)
                }),
                changing(Method::PATCH, "group.update", |service, request| async move {
                    json(OK, &groups::update(&service, &request.parameter?, parse(request.body)?).await?)
                }),
                changing(Method::DELETE, "group.remove", |service, request| async move {
                    groups::remove(&service, &request.parameter?).await?;
                    no_content()
                }),
            ],
        ),
    ]
}

/// Backups of users, groups and blocks, for administrators.
fn backup_routes(service: &Arc<Service>) -> Vec<ApiRoute> {
    let v1 = warp::path("v1");
    let restore = changing(Method::POST, "backup.restore", |service, request| async move {
        let query = request.query()?;
        json(OK, &backup::restore(&service, query, parse(request.body)?).await?)
    });
    vec![
        route(
            "/v1/backup",
            service,
            v1.and(warp::path!("backup")).map(String::new),
            // It shows password hashes.
            vec![changing(Method::GET, "backup.create", |service, _| async move {
                json(OK, &backup::show(&service).await?)
            })],
        ),
        route(
            "/v1/restore",
            service,
            v1.and(warp::path!("restore")).map(String::new),
            vec![Operation { body: BodyLimits::DOCUMENT, ..restore }],
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
            vec![
                reading(|service, request| async move {
                    let (sessions, next) = sessions::list(&service, request.query()?).await?;
                    let mut response = json(OK, &sessions)?;
                    if let Some(next) = next.and_then(|next| next.parse().ok()) {
                        response.headers_mut().insert(NEXT_CURSOR, next);
                    }
                    Ok(response)
                }),
                changing(Method::DELETE, "session.end_user", |service, request| async move {
                    json(OK, &sessions::end_user(&service, request.query()?, request.by()?).await?)
                }),
            ],
        ),
        route(
            "/v1/sessions/{id}",
            service,
            v1.and(warp::path!("sessions" / String)),
            vec![
                reading(|service, request| async move {
                    json(OK, &sessions::show(&service, &request.parameter?).await?)
                }),
                changing(Method::DELETE, "session.end", |service, request| async move {
                    let query = request.query()?;
                    let id = request.parameter?;
                    match sessions::end(&service, &id, query).await? {
                        SessionEnd::Gone => no_content(),
                        SessionEnd::Asked(session) => json(StatusCode::ACCEPTED, &session),
                    }
                }),
            ],
        ),
        route(
            "/v1/sessions/{id}/dialogue",
            service,
            v1.and(warp::path!("sessions" / String / "dialogue")),
            vec![reading(|service, request| async move {
                json(OK, &live::dialogue(&service, &request.parameter?).await?)
            })],
        ),
        route(
            "/v1/sessions/{id}/explain",
            service,
            v1.and(warp::path!("sessions" / String / "explain")),
            vec![reading(|service, request| async move {
                json(OK, &live::explain(&service, &request.parameter?).await?)
            })],
        ),
        route(
            "/v1/live",
            service,
            v1.and(warp::path!("live")).map(String::new),
            vec![reading(|service, request| async move {
                feed::listen(&service, request.query()?, &request.headers).await
            })],
        ),
        route(
            "/v1/status",
            service,
            v1.and(warp::path!("status")).map(String::new),
            vec![reading(|service, _| async move { json(OK, &status::status(&service).await?) })],
        ),
        route(
            "/v1/history",
            service,
            v1.and(warp::path!("history")).map(String::new),
            vec![reading(|service, _| async move { json(OK, &service.history.view()) })],
        ),
        route(
            "/v1/problems",
            service,
            v1.and(warp::path!("problems")).map(String::new),
            vec![reading(|service, request| async move {
                json(OK, &status::problems(&service, request.query()?).await?)
            })],
        ),
        route(
            "/v1/audit",
            service,
            v1.and(warp::path!("audit")).map(String::new),
            vec![reading(|service, request| async move {
                json(OK, &audit::page(&service, request.query()?).await?)
            })],
        ),
        route(
            "/v1/events",
            service,
            v1.and(warp::path!("events")).map(String::new),
            vec![reading(|service, _| async move { json(OK, &events::show(&service).await?) })],
        ),
        route(
            "/v1/events/replay",
            service,
            v1.and(warp::path!("events" / "replay")).map(String::new),
            vec![changing(Method::POST, "event.replay", |service, request| async move {
                json(StatusCode::ACCEPTED, &events::replay(&service, parse(request.body)?).await?)
            })],
        ),
        route(
            "/v1/nodes",
            service,
            v1.and(warp::path!("nodes")).map(String::new),
            vec![reading(|service, _| async move { json(OK, &nodes::list(&service).await?) })],
        ),
        route(
            "/v1/nodes/{name}/drain",
            service,
            v1.and(warp::path!("nodes" / String / "drain")),
            vec![
                reading(|service, request| async move {
                    json(OK, &nodes::drain_state(&service, &request.parameter?).await?)
                }),
                changing(Method::POST, "node.drain", |service, request| async move {
                    let drain = nodes::drain(&service, &request.parameter?).await?;
                    json(StatusCode::ACCEPTED, &drain)
                }),
            ],
        ),
        route(
            "/v1/nodes/{name}/undrain",
            service,
            v1.and(warp::path!("nodes" / String / "undrain")),
            vec![changing(Method::POST, "node.undrain", |service, request| async move {
                let drain = nodes::undrain(&service, &request.parameter?).await?;
                json(StatusCode::ACCEPTED, &drain)
            })],
        ),
    ]
}

/// The administrator to whom the token belongs.
fn identity_route(service: &Arc<Service>) -> ApiRoute {
    route(
        "/v1/whoami",
        service,
        warp::path!("v1" / "whoami").map(String::new),
        vec![reading(|_, request| async move {
            let Actor { administrator, .. } = request.by()?;
            json(OK, &WhoamiView { name: administrator.name.clone(), role: administrator.role })
        })],
    )
}

/// The page, its files, and the sessions of its users.
fn page_routes(service: &Arc<Service>) -> Vec<ApiRoute> {
    let file = |service: &Service, name: &str| {
        let file = service.page.as_ref().and_then(|_| page_files::file(name));
        file.ok_or(ApiError::NotFound("path"))
    };
    let show = move || {
        operation(Method::GET, RequiredToken::None, move |service, request: ApiRequest| {
            std::future::ready(request.parameter.and_then(|name| file(&service, &name)))
        })
    };
    vec![
        route("/", service, warp::path::end().map(String::new), vec![show()]),
        route(
            "/page/session",
            service,
            warp::path!("page" / "session").map(String::new),
            vec![
                operation(Method::GET, RequiredToken::None, |service, request| async move {
                    json(OK, &page::session(&service, &request.headers)?)
                }),
                operation(Method::POST, RequiredToken::None, |service, request| async move {
                    log_in(&service, request).await
                }),
                operation(Method::DELETE, RequiredToken::None, |service, request| async move {
                    let address = request.peer.map(|Peer(peer)| peer.ip());
                    let (ended, cookie) = page::log_out(&service, &request.headers)?;
                    if let Some(administrator) = ended {
                        let by = Actor { administrator, address };
                        record(&service, "console.logout", &by, None).await;
                    }
                    let mut response = no_content()?;
                    response.headers_mut().insert(header::SET_COOKIE, cookie);
                    Ok(response)
                }),
            ],
        ),
        route("/page/{file}", service, warp::path!("page" / String), vec![show()]),
    ]
}

/// Begins a session of the page, and records who did or tried.
async fn log_in(service: &Service, request: ApiRequest) -> ApiResult {
    let ApiRequest { peer, headers, body, .. } = request;
    let address = peer.map(|Peer(peer)| peer.ip());
    let login = parse(body)?;
    let result = page::log_in(service, &headers, address, &login);
    let role = AdminRole::Viewer;
    let by = Actor { administrator: Administrator { name: page::claimed(&login), role }, address };
    match result {
        // Refused attempts of a banned address are not recorded: they cost their sender nothing.
        Err(error @ ApiError::Throttled { .. }) => Err(error),
        Err(error) => {
            record(service, "console.login", &by, Some(&error)).await;
            Err(error)
        }
        Ok((view, cookie)) => {
            record(service, "console.login", &by, None).await;
            let mut response = json(OK, &view)?;
            response.headers_mut().insert(header::SET_COOKIE, cookie);
            Ok(response)
        }
    }
}

async fn record(service: &Service, action: &'static str, by: &Actor, failure: Option<&ApiError>) {
    let name = &by.administrator.name;
    AdminAction::begin(service, action, name, Map::new()).await.end(&service.audit, by, failure);
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
