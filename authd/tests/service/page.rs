//! The page's files and sessions: login, cookie, CSRF token, rate limit, roles, headers.

use std::{fs, time::Duration};

use authd::administrators::token_line;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{ADMIN_TOKEN, Answer, Authd, EventReader, Redis, eventually};

/// A browser that is logged in.
struct Browser {
    url: String,
    cookie: String,
    csrf: String,
}

fn request(authd: &Authd, method: Method, path: &str) -> RequestBuilder {
    // A client for each request, so that requests of one test come on separate connections.
    Client::new().request(method, format!("{}{path}", authd.url)).timeout(Duration::from_secs(20))
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

async fn log_in(authd: &Authd, name: &str, token: &str) -> Answer {
    let body = json!({ "name": name, "token": token });
    answer(request(authd, Method::POST, "/page/session").json(&body)).await
}

impl Browser {
    async fn log_in(authd: &Authd, name: &str, token: &str) -> Self {
        let answer = log_in(authd, name, token).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let cookie = answer.headers["set-cookie"].to_str().unwrap();
        let csrf = answer.json()["csrf"].as_str().unwrap().to_owned();
        Self { url: authd.url.clone(), cookie: cookie.split(';').next().unwrap().to_owned(), csrf }
    }

    /// A request as another site could make a browser send it: with the cookie, but without the CSRF token.
    fn forged(&self, method: Method, path: &str) -> RequestBuilder {
        let request = Client::new().request(method, format!("{}{path}", self.url));
        request.timeout(Duration::from_secs(20)).header("cookie", &self.cookie)
    }

    async fn get(&self, path: &str) -> Answer {
        answer(self.forged(Method::GET, path)).await
    }

    async fn change(&self, method: Method, path: &str, body: &Value) -> Answer {
        answer(self.forged(method, path).header("x-csrf-token", &self.csrf).json(body)).await
    }
}

/// An `administrators_file` with the viewer ann.
fn administrators(token: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("administrators.toml");
    fs::write(&path, format!("[ann]\n{}\nrole = \"viewer\"\n", token_line(token.as_bytes()))).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[tokio::test]
async fn page_is_served_with_a_strict_policy_and_nothing_inline() {
    let authd = Authd::start(&[]);
    let page = answer(request(&authd, Method::GET, "/")).await;
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let mut files: Vec<&str> = page.text.split('"').filter(|text| text.starts_with("/page/")).collect();
    assert!(files.len() >= 3, "{files:?}");
    files.push("/");
    let mut scripts = 0;
    for file in files {
        let file = answer(request(&authd, Method::GET, file)).await;
        assert_eq!(file.status, 200);
        let policy = file.headers["content-security-policy"].to_str().unwrap();
        for directive in
            ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"]
        {
            assert!(policy.contains(directive), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(file.headers["x-content-type-options"], "nosniff");
        assert_eq!(file.headers["x-frame-options"], "DENY");
        assert_eq!(file.headers["referrer-policy"], "no-referrer");
        scripts += usize::from(file.headers["content-type"].to_str().unwrap().starts_with("text/javascript"));
        // The name of SVG's namespace is no address that a browser loads.
        let text = file.text.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http://") && !text.contains("https://"), "nothing from outside");
    }
    assert!(scripts > 0);
    for inline in ["<style", "style=", "onclick", "onload", "javascript:"] {
        assert!(!page.text.contains(inline), "{inline}");
    }
    for missing in ["/page/", "/page/x.js", "/page/..%2Fmod.rs", "/page/session/x", "/page/index.html/x"] {
        assert_eq!(answer(request(&authd, Method::GET, missing)).await.status, 404, "{missing}");
    }
    assert_eq!(answer(request(&authd, Method::POST, "/")).await.status, 405);
}

#[tokio::test]
async fn login_gives_a_strict_cookie_that_replaces_the_bearer_token_until_the_logout() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    assert_eq!(answer(request(&authd, Method::GET, "/page/session")).await.status, 401);
    let login = log_in(&authd, "admin", ADMIN_TOKEN).await;
    let cookie = login.headers["set-cookie"].to_str().unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains(ADMIN_TOKEN), "{cookie}");
    assert_eq!(login.headers["cache-control"], "no-store");
    let body = json!({ "name": "admin", "token": ADMIN_TOKEN });
    let behind_tls = request(&authd, Method::POST, "/page/session").header("x-forwarded-proto", "https");
    let behind_tls = answer(behind_tls.json(&body)).await;
    assert!(behind_tls.headers["set-cookie"].to_str().unwrap().contains("; Secure"));

    let browser = Browser::log_in(&authd, "admin", ADMIN_TOKEN).await;
    let session = browser.get("/page/session").await.json();
    assert_eq!((&session["name"], &session["role"]), (&json!("admin"), &json!("administrator")));
    assert_eq!(session["csrf"], browser.csrf);
    let users = browser.get("/v1/users").await;
    assert_eq!(users.status, 200);
    assert_eq!(users.headers["cache-control"], "no-store");
    let body = json!({ "name": "eve", "password": "secret" });
    assert_eq!(browser.change(Method::POST, "/v1/users", &body).await.status, 201);

    let second = Browser::log_in(&authd, "admin", ADMIN_TOKEN).await;
    assert_ne!((&second.cookie, &second.csrf), (&browser.cookie, &browser.csrf));
    let stream = request(&authd, Method::GET, "/v1/live").header("cookie", &browser.cookie);
    let mut stream = EventReader::new(stream.send().await.unwrap());
    assert!(stream.next().await.is_some());
    let logout = browser.change(Method::DELETE, "/page/session", &json!({})).await;
    assert_eq!(logout.status, 204);
    // It ends with the logout, long before the time limit of the request.
    while stream.next().await.is_some() {}
    assert!(logout.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(browser.get("/v1/users").await.error(), (401, "unauthorized".to_owned()));
    assert_eq!(second.get("/v1/users").await.status, 200);
    // A node's routes and the metrics do not take the cookie for anything.
    assert_eq!(second.get("/v1/authenticate").await.status, 401);
    for action in ["console.login", "console.logout", "user.create"] {
        let is_recorded = |line: &str| line.contains(action) && line.contains("by=admin");
        eventually(action, async || authd.log().lines().any(is_recorded)).await;
    }
    assert!(!authd.log().contains(ADMIN_TOKEN) && !authd.log().contains(&browser.csrf));
}

#[tokio::test]
async fn request_without_the_csrf_token_changes_nothing() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let browser = Browser::log_in(&authd, "admin", ADMIN_TOKEN).await;
    let other = Browser::log_in(&authd, "admin", ADMIN_TOKEN).await;
    let body = json!({ "name": "eve", "password": "secret" });
    let forged = |request: RequestBuilder| answer(request.json(&body));
    let post = || browser.forged(Method::POST, "/v1/users");
    let wrong = "0".repeat(64);
    for request in [
        post(),
        post().header("x-csrf-token", ""),
        post().header("x-csrf-token", &wrong),
        post().header("x-csrf-token", &browser.csrf[..63]),
        post().header("x-csrf-token", &other.csrf),
        post().header("x-csrf-token", &browser.csrf).header("sec-fetch-site", "same-site"),
        post().header("x-csrf-token", &browser.csrf).header("sec-fetch-site", "cross-site"),
        browser.forged(Method::DELETE, "/page/session"),
    ] {
        assert_eq!(forged(request).await.error(), (403, "forbidden".to_owned()));
    }
    // A login that another site sends would put a browser into the attacker's session.
    let login = json!({ "name": "admin", "token": ADMIN_TOKEN }).to_string();
    for (kind, site) in [("text/plain", "none"), ("application/json", "cross-site")] {
        let request = request(&authd, Method::POST, "/page/session").header("content-type", kind);
        let request = request.header("sec-fetch-site", site).body(login.clone());
        assert_eq!(answer(request).await.error(), (403, "forbidden".to_owned()), "{kind} {site}");
    }
    assert_eq!(browser.get("/v1/users").await.json(), json!([]));
    let right = post().header("x-csrf-token", &browser.csrf).header("sec-fetch-site", "same-origin");
    assert_eq!(forged(right).await.status, 201);
    // A bearer token needs no CSRF token: no browser sends it by itself. It counts, not the cookie.
    let both = browser.forged(Method::DELETE, "/v1/users/eve").bearer_auth("wrong");
    assert_eq!(answer(both).await.status, 401);
    let both = browser.forged(Method::DELETE, "/v1/users/eve").bearer_auth(ADMIN_TOKEN);
    assert_eq!(answer(both).await.status, 204);
}

#[tokio::test]
async fn viewer_reads_everything_and_changes_nothing_but_may_log_out() {
    let redis = Redis::start();
    let (_dir, path) = administrators("ann's token");
    let authd = Authd::start(&["--redis-url", &redis.url(), "--administrators-file", &path]);
    let browser = Browser::log_in(&authd, "ann", "ann's token").await;
    assert_eq!(browser.get("/page/session").await.json()["role"], "viewer");
    for path in ["/v1/status", "/v1/sessions?details=true", "/v1/users", "/v1/bans", "/v1/history"] {
        assert_eq!(browser.get(path).await.status, 200, "{path}");
    }
    let body = json!({ "kind": "user", "name": "eve" });
    for (method, path) in [
        (Method::POST, "/v1/blocks"),
        (Method::POST, "/v1/nodes/ftp1/drain"),
        (Method::PATCH, "/v1/users/eve"),
        (Method::DELETE, "/v1/sessions/00112233445566aa"),
    ] {
        let refused = browser.change(method, path, &body).await;
        assert_eq!(refused.error(), (403, "forbidden".to_owned()), "{path}");
    }
    assert_eq!(browser.get("/v1/blocks").await.json(), json!([]));
    assert_eq!(browser.change(Method::DELETE, "/page/session", &json!({})).await.status, 204);
}

#[tokio::test]
async fn wrong_logins_get_one_answer_and_soon_have_to_wait() {
    let (_dir, path) = administrators("ann's token");
    let authd = Authd::start(&["--administrators-file", &path]);
    let mut texts = Vec::new();
    // A wrong token, the token of another administrator, an unknown name, nothing.
    for (name, token) in [("ann", "x"), ("ann", ADMIN_TOKEN), ("eve", "ann's token"), ("", ""), ("admin", "")]
    {
        let answer = log_in(&authd, name, token).await;
        assert_eq!(answer.error(), (403, "invalid_credentials".to_owned()));
        assert!(!answer.headers.contains_key("set-cookie"));
        texts.push(answer.text);
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    // After six failures in a row the right token has to wait, too. On a busy machine the first delay, a
    // second, may be over before the next attempt; a success then forgets the failures.
    eventually("the right token to be refused", async || {
        for _ in 0..6 {
            log_in(&authd, "ann", "x").await;
        }
        let answer = log_in(&authd, "ann", "ann's token").await;
        if answer.status == 200 {
            return false;
        }
        assert_eq!(answer.error(), (429, "throttled".to_owned()));
        let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(wait >= 1);
        true
    })
    .await;
    eventually("the record", async || authd.log().contains("console.login")).await;
    assert!(!authd.log().contains("ann's token"));
}

#[tokio::test]
async fn session_ends_after_its_lifetime() {
    let authd = Authd::start(&["--console-session", "2s"]);
    let browser = Browser::log_in(&authd, "admin", ADMIN_TOKEN).await;
    eventually("the session to end", async || browser.get("/v1/whoami").await.status == 401).await;
    assert_eq!(browser.get("/page/session").await.error(), (401, "unauthorized".to_owned()));
}

#[tokio::test]
async fn session_ends_when_its_administrator_gets_another_token() {
    let (_dir, path) = administrators("ann's token");
    let authd = Authd::start(&["--administrators-file", &path]);
    let ann = Browser::log_in(&authd, "ann", "ann's token").await;
    let admin = Browser::log_in(&authd, "admin", ADMIN_TOKEN).await;
    assert_eq!(ann.get("/v1/whoami").await.json(), json!({ "name": "ann", "role": "viewer" }));
    let text = format!("[ann]\n{}\nrole = \"viewer\"\n", token_line(b"a new token"));
    fs::write(&path, text).unwrap();
    authd.hangup();
    eventually("ann's session to end", async || ann.get("/v1/whoami").await.status == 401).await;
    assert_eq!(admin.get("/v1/whoami").await.status, 200);
    Browser::log_in(&authd, "ann", "a new token").await;
}

#[tokio::test]
async fn page_can_be_switched_off() {
    let authd = Authd::start(&["--console", "false"]);
    for path in ["/", "/page/app.js", "/page/session"] {
        assert_eq!(answer(request(&authd, Method::GET, path)).await.status, 404, "{path}");
    }
    assert_eq!(log_in(&authd, "admin", ADMIN_TOKEN).await.status, 404);
}
