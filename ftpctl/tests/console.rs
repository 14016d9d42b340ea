//! The console against a real cluster: authd, Redis and nodes.

// The walk-through prints what docs/operations.md shows.
#![allow(clippy::print_stderr)]

#[path = "console/records.rs"]
mod records;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use cluster_tests::{
    authd::ADMIN_TOKEN, binaries, cluster::Cluster, dialogue::Dialogue, eventually, hang::Hang,
    webhook_receiver::WebhookReceiver,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs of `ftpctl` with a configuration folder of their own.
struct Ftpctl {
    home: TempDir,
    url: String,
}

impl Ftpctl {
    fn of(cluster: &Cluster) -> Self {
        Self::at(&format!("http://{}", cluster.authd().address))
    }

    fn at(url: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), format!("{ADMIN_TOKEN}\n")).unwrap();
        Self { home, url: url.to_owned() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binaries::daemon("ftpctl"));
        command.env_clear().env("HOME", self.home.path());
        // A host without the usual authorities, as a small container.
        command.env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", "/dev/null");
        command
    }

    /// The exit status and the output with these arguments, which spaces separate.
    fn run(&self, arguments: &str) -> Answer {
        self.run_with_input(arguments, "")
    }

    fn run_with_input(&self, arguments: &str, input: &str) -> Answer {
        let mut command = self.command();
        command.args(["--url", &self.url, "--token-file"]).arg(self.home.path().join("token"));
        command.args(arguments.split(' '));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that reads no input may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Answer::from(child.wait_with_output().unwrap())
    }

    /// The words that bash is offered for the last of these words.
    ///
    /// # Panics
    /// `ftpctl` fails or writes to standard error.
    fn completed(&self, words: &[&str]) -> Vec<String> {
        let mut command = self.command();
        command.env("FTPCTL_COMPLETE", "bash").env("_CLAP_IFS", "\n");
        command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        command.env("FTPCTL_TOKEN_FILE", self.home.path().join("token"));
        let answer = Answer::from(command.arg("--").args(words).output().unwrap());
        assert_eq!((answer.status, answer.error.as_str()), (0, ""), "{words:?}");
        answer.text.lines().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
    }

    /// # Panics
    /// The command fails.
    fn done(&self, arguments: &str) -> String {
        let answer = self.run(arguments);
        assert_eq!(answer.status, 0, "ftpctl {arguments}: {answer:?}");
        answer.text
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.done(&format!("--json {arguments}"))).unwrap()
    }

    fn json_of(&self, answer: &Answer) -> Value {
        serde_json::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

#[derive(Debug)]
struct Answer {
    status: i32,
    text: String,
    error: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap(),
            text: String::from_utf8(output.stdout).unwrap(),
            error: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

#[test]
fn users_are_added_changed_disabled_and_removed() {
    let cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let answer = ftpctl.run_with_input("users add ann home=/ann", "secret-of-ann\n");
    assert_eq!((answer.status, answer.text.as_str()), (0, "ann is created\n"), "{answer:?}");
    assert!(ftpctl.done("users list").contains("ann"));
    assert_eq!(ftpctl.json("users show ann")["home"], json!("/ann"));
    ftpctl.done("users set ann home=/other");
    assert!(ftpctl.done("users show ann").contains("home = \"/other\"\n"));
    ftpctl.done("users disable ann");
    assert_eq!(ftpctl.json("users show ann")["enabled"], json!(false));
    ftpctl.done("users enable ann");
    assert_eq!(ftpctl.run_with_input("users passwd ann", "another\n").status, 0);
    let mut session = Dialogue::connect(cluster.address());
    assert_eq!(session.login("ann", "another").code, 230);
    let refused = ftpctl.run_with_input("users add ann", "x\n");
    assert_eq!((refused.status, refused.error.as_str()), (1, "ftpctl: the user exists already\n"));
    let refused = ftpctl.run("users set ann password=x");
    assert_eq!(refused.status, 2, "{refused:?}");
    ftpctl.done("users remove ann");
    assert_eq!(ftpctl.run("users show ann").status, 1);
    session.expect_closed();
}

#[test]
fn groups_are_added_changed_and_removed() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    ftpctl.done("groups add partners limits.sessions=2");
    assert_eq!(ftpctl.json("groups show partners")["limits"]["sessions"], json!(2));
    ftpctl.done("groups set partners limits.sessions=3");
    assert!(ftpctl.done("groups list").contains("partners"));
    assert!(ftpctl.done("groups show partners").contains("limits.sessions = 3\n"));
    ftpctl.done("groups remove partners");
    assert_eq!(ftpctl.run("groups show partners").status, 1);
}

#[test]
fn import_creates_users_and_reports_each_refused_line() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    let users = "name,password,home\nann,\"a,1\",/ann\nbad,x,/../x\nbob,b1,/bob\n";
    let file = ftpctl.file("users.csv", users);
    let answer = ftpctl.run(&format!("users import {file}"));
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.text.starts_with("line 3: bad: "), "{answer:?}");
    assert!(answer.text.ends_with("2 users created, 0 changed, 1 refused\n"), "{answer:?}");
    let mut session = Dialogue::connect(cluster.address());
    assert_eq!(session.login("ann", "a,1").code, 230);
    let file = ftpctl.file("users.csv", "name,home\nann,/moved\n");
    assert_eq!(
        ftpctl.done(&format!("users import {file} --update")),
        "0 users created, 1 changed, 0 refused\n"
    );
    assert_eq!(ftpctl.json("users show ann")["home"], json!("/moved"));
    let file = ftpctl.file("users.csv", "name,home\nann\n");
    let wrong = ftpctl.run(&format!("users import {file}"));
    assert!(wrong.status == 2 && wrong.error.contains("line 2"), "{wrong:?}");
}

#[test]
fn who_shows_sessions_and_kick_ends_one() {
    let cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let mut session = cluster.login_through(1);
    let sessions = ftpctl.json("who");
    let id = sessions["sessions"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(sessions["sessions"][0]["node"], json!("ftp2"));
    let text = ftpctl.done("who --user demo");
    assert!(text.contains(&id[..8]) && text.contains("ftp2"), "{text}");
    assert!(text.ends_with("1 session, 0 transfers, ↑ 0 B/s ↓ 0 B/s\n"), "{text}");
    assert!(ftpctl.done("who --node ftp1").ends_with("0 sessions, 0 transfers, ↑ 0 B/s ↓ 0 B/s\n"));
    assert_eq!(ftpctl.run("kick xyz").status, 2);
    let text = ftpctl.done(&format!("kick {}", &id[..8]));
    assert_eq!(text, format!("session {id} of demo on ftp2 ends\n"));
    session.expect_closed();
    eventually("the session is gone", || ftpctl.done("who").starts_with("ID").then_some(()));
    let gone = ftpctl.run(&format!("kick {id}"));
    assert_eq!((gone.status, gone.error), (1, format!("ftpctl: there is no session {id}\n")));
}

#[test]
fn nodes_are_listed_and_drain_waits_until_the_node_has_drained() {
    let mut cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let text = ftpctl.done("nodes");
    for node in ["NODE", "ftp1", "ftp2", "ftp3"] {
        assert!(text.lines().any(|line| line.starts_with(node)), "{text}");
    }
    let mut session = cluster.login_through(2);
    let text = ftpctl.done("drain ftp3 --wait");
    assert!(text.ends_with("ftp3 has drained\n"), "{text}");
    session.expect_closed();
    assert!(cluster.node_mut(2).daemon.wait().success());
    let unknown = ftpctl.run("drain ftp9");
    assert_eq!((unknown.status, unknown.error.as_str()), (1, "ftpctl: there is no such node\n"));
}

#[test]
fn undrain_lets_a_node_serve_again_while_its_last_session_runs() {
    let mut cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    assert_eq!(ftpctl.done("undrain ftp3"), "ftp3 serves: it does not drain\n");
    let mut session = cluster.login_through(2);
    session.command("TYPE I", 200);
    let upload = session.begin("STOR kept.bin");
    ftpctl.done("drain ftp3");
    eventually("the node drains", || {
        let nodes = ftpctl.json("nodes");
        (nodes["nodes"][2]["state"] == json!("draining")).then_some(())
    });
    assert_eq!(ftpctl.done("undrain ftp3"), "ftp3 serves: it does not drain\n");
    drop(upload);
    session.expect(226);
    session.quit();
    // Now the drain ends at once, and nothing is left that could be undone.
    ftpctl.done("drain ftp3 --wait");
    assert!(cluster.node_mut(2).daemon.wait().success());
    let late = ftpctl.run("undrain ftp3");
    assert_eq!(late.status, 1, "{late:?}");
    assert!(late.error.contains("has drained and its process has ended"), "{late:?}");
    let unknown = ftpctl.run("undrain ftp9");
    assert_eq!((unknown.status, unknown.error.as_str()), (1, "ftpctl: there is no such node\n"));
}

/// The page promises an answer within 10 s. A busy machine of tests may take longer.
const ANSWER: Duration = Duration::from_secs(60);

/// docs/operations.md, "Three in the morning". With `--nocapture` it prints what the page shows.
#[test]
fn each_question_at_three_in_the_morning_is_answered_by_one_command() {
    let hang = Hang::below("stuck");
    let cluster = Cluster::builder().hanging(1, &hang).start();
    let ftpctl = Ftpctl::of(&cluster);
    let ask = |command: &str, expected: &[&str]| {
        let begun = Instant::now();
        let answer = ftpctl.run(command);
        let took = begun.elapsed();
        eprintln!(
            "$ ftpctl {command}    # {:.1} s, exit status {}\n{}",
            took.as_secs_f64(),
            answer.status,
            answer.text
        );
        assert!(took < ANSWER, "ftpctl {command} took {took:?}");
        for part in expected {
            assert!(answer.text.contains(part), "ftpctl {command} does not say {part:?}: {answer:?}");
        }
        answer
    };
    // A quota that is used up.
    let added = ftpctl.run_with_input("users add acme home=/acme quota.bytes=1000", "secret-of-acme\n");
    assert_eq!(added.status, 0, "{added:?}");
    let mut refused = Dialogue::connect(cluster.address());
    assert_eq!(refused.login("acme", "secret-of-acme").code, 230);
    refused.command("TYPE I", 200);
    let mut data = refused.begin("STOR orders.csv");
    // The node may close the connection before all is sent.
    let _ = data.write_all(&[0; 100_000]);
    drop(data);
    assert_eq!(refused.reply().code, 552);
    // A user who is blocked, and tries.
    ftpctl.done("block test --for 1h --reason maintenance");
    let mut blocked = Dialogue::connect(cluster.address());
    blocked.command("USER test", 331);
    blocked.command("PASS secret", 530);
    // An upload that runs.
    let mut busy = cluster.login_through(0);
    busy.command("TYPE I", 200);
    let mut upload = busy.begin("STOR big.iso");
    upload.write_all(&[0; 100_000]).unwrap();
    // Storage that hangs on one node.
    let mut hanging = cluster.login_through(1);
    hanging.send("MLST stuck/report.csv");
    eventually("the node reports the operation that hangs", || {
        ftpctl.run("problems").text.contains("storage is slow").then_some(())
    });

    ask("problems", &["ftp2: storage is slow", "quota", "acme"]);
    ask("who", &["demo", "ftp1", "↑ /big.iso"]);
    ask("explain test", &["✗ block: test is blocked", "Remedy: ftpctl unblock test"]);
    ask("status", &["3 nodes", "FSYNC MAX", "ftp1", "ftp2", "ftp3", "slow"]);
    ask("audit --result failed --since 1h", &["upload /orders.csv", "acme", "552", "test"]);

    hang.release();
    hanging.expect(550);
    drop(upload);
    busy.expect(226);
}

#[test]
fn bans_are_listed_and_lifted() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    assert_eq!(ftpctl.json("bans list"), json!({ "bans": [] }));
    let none = ftpctl.run("bans lift nobody");
    assert_eq!((none.status, none.error.as_str()), (1, "ftpctl: there is no such ban\n"));
}

#[test]
fn exit_status_tells_unreachable_from_not_allowed_from_wrong_usage() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    ftpctl.file("token", "wrong-token");
    assert_eq!(ftpctl.run("nodes").status, 4);
    ftpctl.file("token", "");
    assert_eq!(ftpctl.run("nodes").status, 2);
    assert_eq!(ftpctl.run("no-such-command").status, 2);
    // A port on which nothing listens.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = Ftpctl::at(&format!("http://{address}")).run("nodes");
    assert_eq!(away.status, 3, "{away:?}");
    assert!(away.error.contains("cannot be reached") && away.error.contains("FTPCTL_URL"), "{away:?}");
    // This host has no authorities that could have signed a certificate.
    let unknown = Ftpctl::at(&format!("https://{address}")).run("nodes");
    assert_eq!(unknown.status, 2, "{unknown:?}");
    assert!(unknown.error.contains("--ca-file"), "{unknown:?}");
}

#[test]
fn redis_away_gives_exit_status_3() {
    let mut cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    cluster.kill_redis();
    eventually("authd notices that Redis is away", || (ftpctl.run("nodes").status == 3).then_some(()));
}

#[test]
fn address_and_token_come_from_environment_or_file_and_flags_win() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    let run = |command: &mut Command| Answer::from(command.arg("nodes").output().unwrap());
    let token = ftpctl.home.path().join("token");
    let environment = run(ftpctl.command().env("FTPCTL_URL", &ftpctl.url).env("FTPCTL_TOKEN_FILE", &token));
    assert_eq!(environment.status, 0, "{environment:?}");
    let configuration = format!(
        "url = 'http://127.0.0.1:1'\ntoken_file = '../../token'\n[profiles.real]\nurl = '{}'\n\
         token_file = '../../token'\n",
        ftpctl.url
    );
    ftpctl.file(".config/distributed-ftp/ftpctl.toml", &configuration);
    assert_eq!(run(&mut ftpctl.command()).status, 3);
    let profile = run(ftpctl.command().args(["--profile", "real"]));
    assert_eq!(profile.status, 0, "{profile:?}");
    assert_eq!(run(ftpctl.command().args(["--url", &ftpctl.url])).status, 0);
    let unknown = run(ftpctl.command().args(["--profile", "other"]));
    assert!(unknown.status == 2 && unknown.error.contains("profiles: real"), "{unknown:?}");
}

#[test]
fn output_to_a_pipe_has_no_escape_sequences() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    for command in ["nodes", "who", "users list", "groups list", "bans list"] {
        assert!(!ftpctl.done(command).contains('\x1b'), "{command}");
    }
}

#[test]
fn manual_and_completions_name_every_command() {
    let ftpctl = Ftpctl::at("http://127.0.0.1:1");
    let page = ftpctl.done("manual");
    let offered = ftpctl.completed(&["ftpctl", ""]);
    let help = ftpctl.done("--help");
    for command in [
        "status", "problems", "who", "explain", "quota", "kick", "block", "unblock", "drain", "undrain",
        "nodes", "doctor", "backup", "restore", "audit",
    ] {
        assert!(page.contains(&format!("\"FTPCTL {}\"", command.to_uppercase())), "{command}");
        assert!(offered.iter().any(|word| word == command), "{command}");
        assert!(help.contains(&format!("\n  {command}")), "{command}");
    }
    assert!(page.contains("FTPCTL USERS IMPORT") && page.contains("FTPCTL EVENTS REPLAY"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(ftpctl.done(&format!("completions {shell}")).contains("FTPCTL_COMPLETE"), "{shell}");
    }
}

#[test]
fn names_of_users_nodes_and_sessions_are_completed_and_nothing_is_said_while_authd_is_away() {
    let mut cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let session = cluster.login_through(1);
    let id = eventually("the session is listed", || {
        ftpctl.json("who")["sessions"][0]["id"].as_str().map(str::to_owned)
    });
    for (words, names) in [
        (&["drain", ""][..], &["ftp1", "ftp2", "ftp3"][..]),
        (&["undrain", "ftp2"], &["ftp2"]),
        (&["who", "--node", "ftp3"], &["ftp3"]),
        (&["users", "show", "de"], &["demo"]),
        (&["who", "--user", ""], &["admin", "demo", "test"]),
        (&["explain", "adm"], &["admin"]),
        (&["explain", &id[..4]], &[&id]),
        (&["kick", ""], &[&id]),
        (&["drain", "none"], &[]),
    ] {
        let url = ["ftpctl", "--url", &ftpctl.url];
        let offered = ftpctl.completed(&[&url[..], words].concat());
        let offered: Vec<&str> =
            offered.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
        assert_eq!(offered, names, "{words:?}");
    }
    cluster.kill_authd();
    assert_eq!(ftpctl.completed(&["ftpctl", "--url", &ftpctl.url, "users", "show", "de"]), [""; 0]);
    session.quit();
}

#[test]
fn status_shows_every_node_and_problems_names_a_dead_cluster() {
    let cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let answer = ftpctl.run("status");
    for text in ["3 nodes", "\nftp1 ", "\nftp2 ", "\nftp3 ", "Redis "] {
        assert!(answer.text.contains(text), "{answer:?}");
    }
    let problems = ftpctl.json_of(&ftpctl.run("--json status"))["problems"].as_u64().unwrap();
    assert_eq!(answer.status, i32::from(problems > 0), "{answer:?}");
}

#[test]
fn problems_exits_with_1_and_shows_the_remedy() {
    let mut cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    cluster.node_mut(0).daemon.terminate();
    cluster.node_mut(0).daemon.wait();
    let answer = eventually("the cluster has no nodes", || {
        Some(ftpctl.run("problems")).filter(|answer| answer.text.contains("no node is in the registry"))
    });
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.text.starts_with("1. ") && answer.text.contains("\n   → start the nodes"), "{answer:?}");
}

#[test]
fn blocked_user_is_explained_and_unblocked() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    assert_eq!(ftpctl.run("explain demo").status, 0);
    let mut session = cluster.login();
    let text = ftpctl.done("block demo --for 1h --reason maintenance");
    assert!(text.starts_with("user demo is blocked until 20"), "{text}");
    session.expect_closed();
    let list = ftpctl.json("block");
    assert_eq!(list["blocks"][0]["reason"], json!("maintenance"));
    let answer = ftpctl.run("explain demo");
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.text.contains("✗ block: "), "{answer:?}");
    assert!(answer.text.contains("Remedy: ftpctl unblock demo"), "{answer:?}");
    ftpctl.done("unblock demo");
    assert_eq!(ftpctl.run("explain demo").status, 0);
    ftpctl.done("block 203.0.113.0/24");
    assert_eq!(ftpctl.json("block")["blocks"][0]["kind"], json!("address"));
    ftpctl.done("unblock 203.0.113.0/24");
    cluster.login().quit();
}

#[test]
fn kick_with_block_ends_all_sessions_of_a_user() {
    let cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let mut sessions = [cluster.login_through(0), cluster.login_through(1)];
    eventually("both sessions are in the registry", || {
        ftpctl.done("who").contains("2 sessions").then_some(())
    });
    let text = ftpctl.done("kick --user demo --block 1h --reason nightly");
    assert!(text.starts_with("2 sessions of demo end; blocked until 20"), "{text}");
    for session in &mut sessions {
        session.expect_closed();
    }
    assert_eq!(ftpctl.json("block")["blocks"][0]["name"], json!("demo"));
}

#[test]
fn quota_shows_what_a_home_holds() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    assert_eq!(ftpctl.json("quota demo")["usage"][0]["user"], json!("demo"));
    assert!(ftpctl.done("quota demo").lines().nth(1).is_some_and(|line| line.starts_with("demo")));
    assert_eq!(ftpctl.run("quota no-such-user").status, 1);
    assert_eq!(ftpctl.run("quota --over 90%").status, 0);
}

#[test]
fn who_shows_a_running_transfer_with_its_rate() {
    let cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let mut session = cluster.login();
    session.command("TYPE I", 200);
    let mut upload = session.begin("STOR slow.bin");
    upload.write_all(&[7; 100_000]).unwrap();
    let text = eventually("the transfer is shown", || {
        Some(ftpctl.done("who")).filter(|text| text.contains("↑ /slow.bin"))
    });
    assert!(text.contains("1 session, 1 transfer"), "{text}");
    let text = ftpctl.done("--bytes who");
    assert!(text.contains("100000 B"), "{text}");
    drop(upload);
    session.expect(226);
}
