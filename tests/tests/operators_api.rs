//! What authd's API tells operators of a whole cluster: balancers, refusals, the audit trail.

use cluster_tests::{authd::hash_password, cluster::Cluster, dialogue::Dialogue, eventually};
use serde_json::{Value, json};

#[test]
fn the_status_names_the_balancer_and_the_problems_name_refused_uploads_and_logins() {
    let hash = hash_password("secret");
    let users = format!(
        "[users.reader]\npassword_hash = \"{hash}\"\nhome = \"/home\"\npermissions = {{ upload = false }}\n"
    );
    let cluster = Cluster::builder().users(&users).start();
    let get = |path: &str| {
        let answer = cluster.authd().administer("GET", path, None);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    };
    let login = |password: &str| {
        let mut session = Dialogue::connect(cluster.address());
        session.command("USER reader", 331);
        session.send(&format!("PASS {password}"));
        let code = session.reply().code;
        (session, code)
    };
    let (mut session, code) = login("secret");
    assert_eq!(code, 230);
    assert_eq!(session.probe("STOR new"), 550);
    assert_eq!(login("wrong").1, 530);

    // The nodes publish what they see every few seconds.
    let balancer = eventually("a balancer with the session", || {
        let status = get("/v1/status");
        let balancers = status["balancers"].as_array().unwrap().clone();
        balancers.into_iter().find(|balancer| balancer["connections"].as_u64() >= Some(1))
    });
    assert!(!balancer["nodes"].as_array().unwrap().is_empty(), "{balancer}");
    let problem = |kind: &str| {
        eventually(kind, || {
            let problems = get("/v1/problems")["problems"].as_array().unwrap().clone();
            problems.into_iter().find(|problem| problem["kind"] == kind)
        })
    };
    let refused = problem("uploads_refused");
    assert_eq!((&refused["reason"], &refused["count"]), (&json!("permission"), &json!(1)));
    assert_eq!(refused["parts"], json!([{ "name": "reader", "count": 1 }]));
    assert_eq!(problem("logins_refused")["reason"], "wrong_password");

    let found = get("/v1/audit?user=reader&result=failed&path=/n*");
    let record: &Value = &found["records"][0]["record"];
    assert_eq!((&record["event"], &record["code"]), (&json!("upload"), &json!(550)), "{found}");
    let attempts = get("/v1/users/reader/explain")["attempts"].clone();
    assert_eq!(attempts[0]["reason"], "wrong_password", "{attempts}");
    assert_eq!(
        (attempts[0]["accepted"].as_bool(), attempts[1]["accepted"].as_bool()),
        (Some(false), Some(true))
    );
}
