//! Events for a program that the node runs.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use cluster_tests::{cluster::Cluster, eventually, webhook_receiver::WebhookReceiver};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{cluster_with, expect, expect_events, session, upload};

/// A shell script that gets events, with its files. It uses commands of the shell only, so it needs no search
/// path.
struct Program {
    directory: TempDir,
}

impl Program {
    /// `$1` is the directory of the files.
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the script has written to a file.
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// An `events_file` that names this program `program`, with further lines for it.
    fn events_file(&self, lines: &str) -> PathBuf {
        let path = self.file("events.toml");
        let directory = self.directory.path().display();
        let text = format!(
            "[[command]]\nname = \"program\"\nprogram = \"{directory}/program\"\n\
             arguments = [\"{directory}\"]\n{lines}\n"
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// The events in the file `events`, one a line.
    fn events(&self) -> Vec<Value> {
        let text = self.text("events");
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Lines of a script that append the event to the file `events`. The event has no line end.
const KEEP: &str = "read -r event\nprintf '%s\\n' \"$event\" >> \"$1/events\"";

/// Waits until the state of the events, as authd shows it, is as wanted.
fn state(cluster: &Cluster, is_wanted: impl Fn(&Value) -> bool) -> Value {
    eventually("the state of the events", || {
        let state = cluster.authd().administer("GET", "/v1/events", None).json();
        is_wanted(&state).then_some(state)
    })
}

#[test]
fn a_program_gets_every_event_on_its_standard_input_and_in_its_variables() {
    let variables = "\"$FTP_EVENT $FTP_EVENT_ID $FTP_NODE $FTP_SESSION $FTP_USER $FTP_ADDRESS $FTP_PATH \
                     $FTP_STORAGE_PATH $FTP_FILE $FTP_SIZE $FTP_TIME $FTP_SHA256\"";
    let script = format!("printf '%s\\n' {variables} >> \"$1/variables\"\n{KEEP}\necho got $FTP_PATH");
    let program = Program::new(&script);
    let events_file = program.events_file("events = [\"upload\", \"append\"]\nconcurrency = 1");
    let cluster = cluster_with(events_file, 2);
    let mut expected = Vec::new();
    for number in 1..=4u32 {
        let mut session = session(&cluster, number as usize % 2, "direct");
        assert!(upload(&mut session, "STOR $(same);", number as usize));
        assert!(upload(&mut session, &format!("APPE own {number}"), 3));
        expected.push(("/direct/$(same);".to_owned(), u64::from(number)));
        expected.push((format!("/direct/own {number}"), 3));
    }
    expect(&expected, || program.events());
    let events = program.events();
    assert_eq!(events.len(), expected.len(), "the program ran once for each event");
    let root = fs::canonicalize(cluster.storage()).unwrap();
    for (line, event) in program.text("variables").lines().zip(&events) {
        let text = |key: &str| event[key].as_str().unwrap();
        let path = text("storage_path");
        let values = [
            text("event"),
            text("id"),
            text("node"),
            text("session"),
            text("user"),
            text("address"),
            text("path"),
            path,
            &format!("{}{path}", root.display()),
            &event["size"].to_string(),
            text("time"),
            event["sha256"].as_str().unwrap_or_default(),
        ];
        assert_eq!(line, values.join(" "));
    }
    let deliverer =
        |line: &str| line.contains("output of a program that got an event") && line.contains("got /own");
    let is_logged = |node: usize| cluster.node(node).daemon.lines().iter().any(|line| deliverer(line));
    eventually("the output in the log", || (is_logged(0) || is_logged(1)).then_some(()));
}

#[test]
fn events_wait_for_a_program_that_exits_with_75_and_a_failed_one_becomes_a_dead_letter() {
    let program = Program::new(&format!(
        "read -r code < \"$1/code\"\nif [ $code = 0 ]; then {KEEP}\n\
                                         else echo no room; fi\nexit $code"
    ));
    fs::write(program.file("code"), "75\n").unwrap();
    let cluster = cluster_with(program.events_file(""), 1);
    let mut session = session(&cluster, 0, "direct");
    for name in ["first", "second"] {
        assert!(upload(&mut session, &format!("STOR {name}"), 1));
    }
    let error = |state: &Value| state["receivers"][0]["error"].as_str().unwrap_or_default().to_owned();
    let shown = state(&cluster, |state| error(state).contains("75") && state["receivers"][0]["pending"] == 2);
    assert!(error(&shown).contains("no room") && shown["dead"] == 0, "{shown}");
    fs::write(program.file("code"), "0\n").unwrap();
    expect(&[("/direct/first".to_owned(), 1), ("/direct/second".to_owned(), 1)], || program.events());

    // Any other status concerns the event only.
    fs::write(program.file("code"), "3\n").unwrap();
    program.events_file("retry_for = \"1s\"");
    cluster.node(0).daemon.signal(Signal::SIGHUP);
    cluster.node(0).daemon.wait_for_message("read events_file again", &[]);
    assert!(upload(&mut session, "STOR third", 1));
    let shown = state(&cluster, |state| state["dead"] == 1);
    let letter = &shown["dead_letters"][0];
    assert_eq!(letter["path"], "/direct/third");
    assert!(letter["error"].as_str().unwrap().ends_with("3: no room"), "{letter}");
}

#[test]
fn a_program_that_does_not_end_is_killed_at_its_timeout() {
    // The shell stops itself at the first run.
    let program = Program::new(&format!(
        "if [ ! -s \"$1/pid\" ]; then echo $$ > \"$1/pid\"; kill -STOP $$; fi\n{KEEP}"
    ));
    let cluster = cluster_with(program.events_file("timeout = \"1s\""), 1);
    let mut session = session(&cluster, 0, "atomic");
    assert!(upload(&mut session, "STOR file", 5));
    let is_killed =
        |state: &Value| state["receivers"][0]["error"].as_str().is_some_and(|text| text.contains("timeout"));
    eventually("an attempt that was ended", || {
        let state = cluster.authd().administer("GET", "/v1/events", None).json();
        (is_killed(&state) || !program.events().is_empty()).then_some(())
    });
    eventually("the stopped shell to be gone", || {
        let pid = program.text("pid");
        let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
        let is_there = command.contains(program.file("program").to_str().unwrap());
        (!pid.is_empty() && !is_there).then_some(())
    });
    expect(&[("/atomic/file".to_owned(), 5)], || program.events());
}

/// A script that stops itself and thus never ends, until the file `go` exists.
fn stopped_script() -> String {
    format!("echo $$ >> \"$1/pids\"; if [ ! -e \"$1/go\" ]; then kill -STOP $$; fi\n{KEEP}")
}

/// The processes of the script that are there.
fn running(program: &Program) -> usize {
    let name = program.file("program").display().to_string();
    let pids = program.text("pids");
    let commands = pids.lines().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok());
    commands.filter(|command| command.contains(&name)).count()
}

#[test]
fn a_node_that_stops_kills_the_programs_that_it_runs_and_the_next_one_runs_them_again() {
    let program = Program::new(&stopped_script());
    let mut cluster = cluster_with(program.events_file("timeout = \"1h\""), 2);
    let mut session = session(&cluster, 0, "atomic");
    assert!(upload(&mut session, "STOR file", 7));
    eventually("the program to run", || (running(&program) == 1).then_some(()));
    fs::write(program.file("go"), "").unwrap();
    session.quit();
    // One of the two delivers.
    for node in 0..2 {
        cluster.node(node).daemon.terminate();
        cluster.node_mut(node).daemon.wait();
        cluster.restart_node(node);
    }
    expect(&[("/atomic/file".to_owned(), 7)], || program.events());
    assert_eq!(running(&program), 0);
    assert!(program.text("pids").lines().count() >= 2, "the program ran again");
}

#[test]
fn reading_an_unchanged_file_again_does_not_wait_for_a_running_program() {
    let program = Program::new(&stopped_script());
    let receiver = WebhookReceiver::start();
    let events_file = program.events_file("timeout = \"1h\"");
    let webhook = fs::read_to_string(receiver.events_file("")).unwrap();
    fs::write(&events_file, format!("{}{webhook}", program.text("events.toml"))).unwrap();
    let cluster = cluster_with(events_file, 1);
    let mut session = session(&cluster, 0, "atomic");
    assert!(upload(&mut session, "STOR before", 1));
    eventually("the program to run", || (running(&program) == 1).then_some(()));
    cluster.node(0).daemon.signal(Signal::SIGHUP);
    cluster.node(0).daemon.wait_for_message("read events_file again: it has not changed", &[]);
    assert!(upload(&mut session, "STOR after", 2));
    expect_events(&receiver, &[("/atomic/before".to_owned(), 1), ("/atomic/after".to_owned(), 2)]);
    assert_eq!((running(&program), program.events().len()), (1, 0));
}

#[test]
fn a_deliverer_that_dies_may_run_a_program_twice_and_misses_no_event() {
    for step in ["before_post", "after_post"] {
        let program = Program::new(KEEP);
        let mut cluster = cluster_with(program.events_file(""), 1);
        cluster.restart_node_with(0, |node| node.variable("EVENTS_FAULT", format!("{step}:2")));
        let mut killed = session(&cluster, 0, "atomic");
        for size in 1..=2u32 {
            let is_complete = upload(&mut killed, "STOR file", size as usize);
            assert!(is_complete || size == 2);
        }
        cluster.node_mut(0).daemon.wait();
        cluster.restart_node(0);
        let expected = [1, 2].map(|size| ("/atomic/file".to_owned(), size));
        expect(&expected, || program.events());
        let number = program.events().len();
        assert!((2..=2 + usize::from(step == "after_post")).contains(&number), "{step}: {number} runs");
    }
}
