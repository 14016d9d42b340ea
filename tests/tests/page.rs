//! The page for operators in a real browser: every screen, and what an administrator does there.

// A skipped test says so.
#![allow(clippy::print_stderr)]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use cluster_tests::{
    authd::{ADMIN_TOKEN, hash_password},
    binaries,
    browser::Browser,
    cluster::{Cluster, ClusterBuilder},
    dialogue::Dialogue,
    eventually,
    webhook_receiver::{ReceivedEvent, WebhookReceiver},
};
use serde_json::json;

const VIEWER_TOKEN: &str = "viewer-token-of-the-tests";

const SCREENS: [&str; 7] = ["overview", "live", "users", "groups", "refused", "events", "cluster"];

/// The screen Events without `events_file`.
const OFF: &str =
    "No node delivers events: events_file is not set on the nodes, or the storage does not answer.";

/// Two nodes, the declared user ann, and the viewer eve among the administrators.
fn cluster(directory: &Path) -> ClusterBuilder {
    let hash = hash_password("secret");
    let administrators = directory.join("administrators.toml");
    let mut run = Command::new(binaries::daemon("authd"))
        .arg("hash-token")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(run.stdin.take().unwrap(), "{VIEWER_TOKEN}").unwrap();
    let line = String::from_utf8(run.wait_with_output().unwrap().stdout).unwrap();
    fs::write(&administrators, format!("[eve]\nrole = \"viewer\"\n{line}")).unwrap();
    Cluster::builder()
        .nodes(2)
        .users(&format!("[users.ann]\npassword_hash = \"{hash}\"\nquota = {{ bytes = 10_000_000 }}\n"))
        .authd_setting("administrators_file", administrators.display())
}

/// A browser at the page of the cluster, logged in.
fn log_in(cluster: &Cluster, name: &str, token: &str) -> Option<Browser> {
    let mut browser = Browser::start()?;
    browser.look(1280, 800, "light");
    browser.open(&format!("http://{}/", cluster.authd().address));
    browser.fill("#name", name);
    browser.fill("#token", token);
    browser.press("Enter");
    browser.wait_for("document.querySelector('nav a[aria-current]')");
    // Before the login there is no session: 401.
    let errors = browser.take_errors();
    assert!(errors.iter().all(|error| error.contains("/page/session")), "{errors:?}");
    Some(browser)
}

fn login(cluster: &Cluster, user: &str) -> Dialogue {
    let mut dialogue = Dialogue::connect(cluster.address());
    dialogue.login(user, "secret");
    dialogue
}

/// Dialogs open and close after requests; single keys do nothing while one is open.
fn wait_for_dialogs(browser: &mut Browser, number: usize) {
    browser.wait_for(&format!("document.querySelectorAll('dialog[open]').length === {number}"));
}

#[test]
fn operator_watches_an_upload_reads_the_dialogue_and_ends_the_session() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(directory.path()).start();
    let Some(mut browser) = log_in(&cluster, "admin", ADMIN_TOKEN) else { return };
    browser.wait_for_text("No problems");
    browser.wait_for("document.querySelectorAll('.cards article').length === 2");

    let mut client = login(&cluster, "ann");
    client.command("TYPE I", 200);
    client.command("DELE missing", 550);
    client.command("ALLO 4000000", 200);
    let mut data = client.begin("STOR report.bin");
    data.write_all(&vec![b'x'; 1_000_000]).unwrap();
    // The key of the screen, then the row with the keyboard.
    browser.press("l");
    browser.wait_for("document.title.startsWith('Live')");
    let row = "document.querySelector('tbody tr')";
    browser.wait_for(&format!("{row}?.innerText.includes('/report.bin')"));
    browser.wait_for(&format!("{row}.innerText.includes('1.00 MB')"));
    browser.press("/");
    browser.type_text("nothing-has-this-name");
    browser.wait_for_text("No session matches.");
    browser.fill("#live-filter", "ann");
    browser.wait_for(&format!("{row}?.innerText.includes('ann')"));
    browser.evaluate(&format!("{row}.focus()"));
    browser.press("Enter");
    browser.wait_for_text("STOR report.bin");
    browser.wait_for_text("Last failure: DELE missing");
    assert_eq!(browser.evaluate("document.body.innerText.includes('secret')"), json!(false));

    browser.click("dialog button", "End the session…");
    browser.fill("dialog input[name=reason]", "by the test");
    browser.wait_for_text("--reason 'by the test'");
    browser.press("Enter");
    let replies = client.expect_closed();
    assert!(
        replies.iter().any(|reply| reply.code == 421 && reply.text().contains("by the test")),
        "{replies:?}"
    );
    browser.wait_for_text("The session has ended.");
    browser.press("Escape");
    wait_for_dialogs(&mut browser, 0);
    browser.wait_for_text("No session matches.");
    let is_action = |line: &String| line.contains("session.end") && line.contains("by=admin");
    eventually("the record of the action", || {
        cluster.authd().daemon.lines().iter().any(is_action).then_some(())
    });
    assert_eq!(browser.take_errors(), Vec::<String>::new());
}

#[test]
fn names_that_clients_chose_are_shown_as_text() {
    const NAME: &str = "<img src=x onerror=document.title=1><b>bold.bin";
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(directory.path()).start();
    let Some(mut browser) = log_in(&cluster, "admin", ADMIN_TOKEN) else { return };
    let mut client = login(&cluster, "ann");
    client.send("CLNT <script>document.title=2</script>");
    client.reply();
    let mut data = client.begin(&format!("STOR {NAME}"));
    data.write_all(b"content").unwrap();
    browser.press("l");
    browser.wait_for_text(NAME);
    browser.click("tbody tr", NAME);
    browser.wait_for_text(&format!("STOR {NAME}"));
    browser.wait_for_text("<script>document.title=2</script>");
    let elements =
        "document.querySelectorAll('main img, main b, dialog img, dialog b, dialog script').length";
    assert_eq!(browser.evaluate(elements), json!(0));
    assert_eq!(browser.evaluate("document.title.startsWith('Live')"), json!(true));
    assert_eq!(browser.take_errors(), Vec::<String>::new());
}

#[test]
fn operator_creates_changes_and_disables_users_and_blocks_an_address() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(directory.path()).start();
    let Some(mut browser) = log_in(&cluster, "admin", ADMIN_TOKEN) else { return };
    let api = |path: &str| cluster.authd().administer("GET", path, None).json();

    browser.press("g");
    browser.click("button", "Add a group…");
    browser.fill("dialog input[name=name]", "partners");
    browser.press("Enter");
    browser.wait_for_text("The group partners is added");
    wait_for_dialogs(&mut browser, 0);
    browser.press("u");
    browser.click("button", "Add a user…");
    browser.fill("dialog input[name=name]", "carl");
    browser.fill("dialog input[name=password]", "secret");
    browser.fill("dialog input[name=groups]", "partners");
    browser.wait_for_text("ftpctl users add carl");
    browser.press("Enter");
    browser.wait_for_text("carl is added");
    wait_for_dialogs(&mut browser, 0);
    assert_eq!(api("/v1/users/carl")["groups"], json!(["partners"]));
    let mut client = login(&cluster, "carl");

    browser.click("tbody tr", "carl");
    browser.click("dialog button", "Change…");
    browser.fill("dialog[open] input[name='limits.sessions']", "x");
    browser.press("Enter");
    browser.wait_for_text("Sessions at once: expected a whole number, or nothing");
    browser.fill("dialog[open] input[name='limits.sessions']", "3");
    browser.fill("dialog[open] input[name='quota.bytes']", "5 GB");
    browser.press("Enter");
    browser.wait_for_text("carl is changed");
    let carl = api("/v1/users/carl");
    assert_eq!(
        (&carl["limits"]["sessions"], &carl["quota"]["bytes"]),
        (&json!(3), &json!(5_000_000_000_u64))
    );

    // The dialogue with the new values replaces the old one.
    browser.wait_for(
        "document.querySelectorAll('dialog[open]').length === 1 && \
                      document.querySelector('dialog[open]').innerText.includes('5.00 GB')",
    );
    browser.click("dialog button", "Disable…");
    browser.click("dialog button[type=submit]", "Disable");
    browser.wait_for_text("carl is disabled");
    client.expect_closed();
    browser.wait_for(
        "document.querySelectorAll('dialog[open]').length === 1 && \
                      document.querySelector('dialog[open]').innerText.includes('disabled')",
    );
    browser.click("dialog button", "Check");
    browser.wait_for_text("cannot log in");
    browser.wait_for_text("ftpctl users enable carl");
    browser.press("Escape");

    wait_for_dialogs(&mut browser, 0);
    browser.press("r");
    browser.click("button", "Block…");
    browser.fill("dialog input[name=name]", "203.0.113.0/24");
    browser.evaluate(
        "(() => { const e = document.querySelector('dialog select[name=kind]'); e.value = 'address'; \
         e.dispatchEvent(new Event('input', { bubbles: true })); })()",
    );
    browser.fill("dialog input[name=time]", "2 h");
    browser.press("Enter");
    browser.wait_for_text("203.0.113.0/24 is blocked");
    let blocks = api("/v1/blocks");
    assert_eq!((&blocks[0]["name"], &blocks[0]["by"]), (&json!("203.0.113.0/24"), &json!("admin")));
    browser.click("td button", "Remove");
    browser.wait_for_text("Nothing is blocked.");
    assert_eq!(api("/v1/blocks"), json!([]));
    assert_eq!(browser.take_errors(), Vec::<String>::new());
}

#[test]
fn bans_are_shown_and_lifted_and_a_node_is_drained() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(directory.path()).authd_setting("throttle_delay", "5m").start();
    let Some(mut browser) = log_in(&cluster, "admin", ADMIN_TOKEN) else { return };
    eventually("a ban", || {
        let mut client = Dialogue::connect(cluster.address());
        client.command("USER nobody-special", 331);
        client.send("PASS wrong");
        client.reply();
        let bans = cluster.authd().administer("GET", "/v1/bans", None).json();
        (!bans.as_array()?.is_empty()).then_some(())
    });
    browser.press("r");
    browser.wait_for_text("nobody-special");
    browser.click("td button", "Lift");
    browser.wait_for_text("The ban of nobody-special is lifted");
    browser.wait_for_text("Nobody is banned.");

    browser.press("o");
    browser.click("article button", "Drain…");
    browser.wait_for_text("ftpctl drain ftp1");
    browser.click("dialog button[type=submit]", "Drain ftp1");
    browser.wait_for_text("ftp1 is asked to drain");
    browser.wait_for("document.querySelectorAll('.cards article').length === 1");
    assert_eq!(browser.take_errors(), Vec::<String>::new());
}

#[test]
fn dead_letters_are_shown_and_an_administrator_has_them_delivered_again() {
    const ROW: &str = "document.querySelector('main tbody tr.opens')";
    let receiver = WebhookReceiver::start();
    receiver.respond(422);
    let directory = tempfile::tempdir().unwrap();
    let file = receiver.events_file("retry_for = \"1s\"");
    let cluster = cluster(directory.path()).setting("events_file", file.display()).start();
    let mut client = login(&cluster, "ann");
    client.store("<b>first.csv", b"content");
    client.store("second.csv", b"content");
    eventually("two dead letters", || {
        let state = cluster.authd().administer("GET", "/v1/events", None).json();
        (state["dead"] == json!(2)).then_some(())
    });

    let Some(mut viewer) = log_in(&cluster, "eve", VIEWER_TOKEN) else { return };
    viewer.press("e");
    viewer.wait_for_text("2 dead letters");
    viewer.wait_for_text("1 receiver, 0 waiting");
    let buttons = "[...document.querySelectorAll('main button:not(.sort)')].map(b => b.innerText)";
    assert_eq!(viewer.evaluate(buttons), json!([]));
    viewer.evaluate(&format!("{ROW}.focus()"));
    viewer.press("Enter");
    viewer.wait_for("document.querySelector('dialog[open] dl')?.innerText.includes('HTTP status 422')");
    assert_eq!(viewer.evaluate("document.querySelectorAll('dialog .buttons button').length"), json!(0));
    assert_eq!(viewer.take_errors(), Vec::<String>::new());
    drop(viewer);

    let Some(mut browser) = log_in(&cluster, "admin", ADMIN_TOKEN) else { return };
    browser.press("e");
    browser.wait_for_text("/ann/<b>first.csv");
    browser.look(360, 740, "dark");
    let overflow = browser.evaluate("document.documentElement.scrollWidth - innerWidth");
    assert!(overflow.as_i64().unwrap() <= 0, "the screen is {overflow} px wider than 360 px");
    browser.look(1280, 800, "light");

    receiver.respond(204);
    browser.click("[aria-label='Replay /ann/second.csv for receiver']", "Replay");
    browser.wait_for_text("is asked to deliver /ann/second.csv again");
    browser.wait_for_text("1 dead letter");
    browser.wait_for(&format!("{ROW}.innerText.includes('first')"));
    let path = |event: &ReceivedEvent| event.event["storage_path"].as_str().unwrap().to_owned();
    let delivered = || receiver.accepted().iter().map(path).collect::<Vec<_>>();
    assert_eq!(delivered(), ["/ann/second.csv"]);
    browser.click("td button", "Replay…");
    browser.wait_for_text("ftpctl events replay --receiver receiver");
    browser.press("Enter");
    browser.wait_for_text("There are no dead letters.");
    wait_for_dialogs(&mut browser, 0);
    assert_eq!(delivered(), ["/ann/second.csv", "/ann/<b>first.csv"]);

    receiver.respond(422);
    client.store("third.csv", b"content");
    browser.wait_for_text("/ann/third.csv");
    receiver.respond(204);
    browser.click(".toolbar button", "Replay all…");
    browser.wait_for("document.querySelector('dialog[open] code')?.innerText === 'ftpctl events replay'");
    browser.press("Enter");
    browser.wait_for_text("There are no dead letters.");
    assert_eq!(delivered().len(), 3);
    browser.wait_for_text("works");
    assert_eq!(browser.take_errors(), Vec::<String>::new());
}

#[test]
fn viewer_sees_all_screens_without_a_button_that_changes_something() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(directory.path()).start();
    let Some(mut browser) = log_in(&cluster, "eve", VIEWER_TOKEN) else { return };
    let _client = login(&cluster, "ann");
    browser.wait_for_text("may only read");
    for (screen, shown) in SCREENS.into_iter().zip([
        "Load",
        "ann",
        "ann",
        "There are no groups.",
        "Nothing is blocked.",
        OFF,
        "ftp2",
    ]) {
        browser.evaluate(&format!("location.hash = '#/{screen}'"));
        browser.wait_for_text(shown);
        let buttons = browser
            .evaluate("[...document.querySelectorAll('main button:not(.sort)')].map(b => b.innerText)");
        assert_eq!(buttons, json!([]), "{screen}");
    }
    for (screen, row) in [("live", "ann"), ("users", "ann")] {
        browser.evaluate(&format!("location.hash = '#/{screen}'"));
        browser.click("tbody tr", row);
        browser.wait_for("document.querySelector('dialog[open] dl')");
        let buttons = browser
            .evaluate("[...document.querySelectorAll('dialog .buttons button')].map(b => b.innerText)");
        assert_eq!(buttons, json!([]), "{screen}");
        browser.press("Escape");
        wait_for_dialogs(&mut browser, 0);
    }
    assert_eq!(browser.take_errors(), Vec::<String>::new());
    // The page's own requests cannot change anything either.
    let status = "fetch('/v1/blocks', { method: 'POST', body: '{}', headers: { 'x-csrf-token': \
                  (await (await fetch('/page/session')).json()).csrf } }).then(answer => answer.status)";
    assert_eq!(browser.evaluate(&format!("(async () => {status})()")), json!(403));
}

#[test]
fn every_screen_fits_a_narrow_window_and_names_its_controls() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(directory.path()).start();
    let Some(mut browser) = log_in(&cluster, "admin", ADMIN_TOKEN) else { return };
    let mut client = login(&cluster, "ann");
    client
        .store("a-file-with-a-name-that-is-much-longer-than-a-narrow-window-could-ever-show-on-a-line", b"x");
    for (width, scheme) in [(1280, "dark"), (360, "light")] {
        browser.look(width, 740, scheme);
        for screen in SCREENS {
            browser.evaluate(&format!("location.hash = '#/{screen}'"));
            browser.wait_for(&format!("document.title.toLowerCase().startsWith('{screen}')"));
            // Each screen shows the node, the session or the user, or says that there is nothing.
            browser.wait_for("document.querySelector('main dd, main td, main .empty:not([hidden])')");
            let overflow = browser.evaluate("document.documentElement.scrollWidth - innerWidth");
            assert!(overflow.as_i64().unwrap() <= 0, "{screen} is {overflow} px wider than {width} px");
            let tree = browser.call("Accessibility.getFullAXTree", &json!({}));
            for node in tree["nodes"].as_array().unwrap() {
                let role = node["role"]["value"].as_str().unwrap_or_default();
                if node["ignored"] == json!(false)
                    && ["button", "link", "textbox", "searchbox", "combobox", "checkbox", "image"]
                        .contains(&role)
                {
                    let name = node["name"]["value"].as_str().unwrap_or_default();
                    assert!(!name.trim().is_empty(), "{screen}: a {role} without a name: {node}");
                }
            }
        }
        let ground = browser.evaluate("getComputedStyle(document.body).backgroundColor");
        let is_dark = ground.as_str().unwrap().contains("(15, ");
        assert_eq!(is_dark, scheme == "dark", "{ground}");
    }
    assert_eq!(browser.take_errors(), Vec::<String>::new());
}

#[test]
fn login_refuses_a_wrong_token_and_ends_with_the_session() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = cluster(directory.path()).start();
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&format!("http://{}/#/cluster", cluster.authd().address));
    browser.fill("#name", "admin");
    browser.fill("#token", "wrong");
    browser.click("button", "Log in");
    browser.wait_for_text("the name or the token is wrong");
    browser.fill("#token", ADMIN_TOKEN);
    browser.click("button", "Log in");
    // The address still names the screen.
    browser.wait_for("document.title.startsWith('Cluster')");
    // The cookie is out of reach for scripts, and a reload keeps the session.
    assert_eq!(browser.evaluate("document.cookie"), json!(""));
    let stored = browser.evaluate("JSON.stringify({ ...localStorage })").as_str().unwrap().to_owned();
    assert!(!stored.contains(ADMIN_TOKEN), "{stored}");
    browser.open(&format!("http://{}/#/users", cluster.authd().address));
    browser.wait_for_text("ann");
    browser.click("button", "Log out");
    browser.wait_for("document.querySelector('#token')");
    assert_eq!(browser.evaluate("fetch('/v1/users').then(answer => answer.status)"), json!(401));
    // A session that ends elsewhere leads to the login, too.
    browser.fill("#token", ADMIN_TOKEN);
    browser.press("Enter");
    browser.wait_for_text("ann");
    browser.evaluate(
        "(async () => fetch('/page/session', { method: 'DELETE', headers: { 'x-csrf-token': \
         (await (await fetch('/page/session')).json()).csrf } }))()",
    );
    browser.wait_for_text("The session is over");
}
