//! The Helm chart of deploy/helm, by its committed renderings: the invariants of what Kubernetes gets, and
//! the settings that the daemons get. `./dev test-deploy` also renders the chart.

// A skipped test says so.
#![allow(clippy::print_stderr)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cluster_tests::binaries;

fn checks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/checks")
}

/// Runs Python in the folder of the checks. `None`: it lacks what they need.
fn python(arguments: &[&str]) -> Option<Output> {
    let run = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.args(arguments).current_dir(checks()).env("PYTHONDONTWRITEBYTECODE", "1");
        command.output()
    };
    match run(&["-c", "import tomllib, yaml"]) {
        Ok(output) if output.status.success() => {}
        other => {
            let reason = other.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
            eprintln!("skipped: Python 3.11 or later with PyYAML (python3-yaml) is missing: {reason:?}");
            return None;
        }
    }
    Some(run(arguments).unwrap())
}

fn assert_success(output: &Output) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn the_renderings_of_the_helm_chart_keep_the_invariants() {
    let Some(output) = python(&["check.py"]) else { return };
    assert_success(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = fs::read_dir(checks().join("../distributed-ftp/ci")).unwrap().count();
    assert!(count >= 5 && text.starts_with(&format!("{count} renderings, ")), "{text}");
}

#[test]
fn each_invariant_of_the_helm_chart_can_fail() {
    let Some(output) = python(&["-m", "unittest", "--verbose", "test_invariants"]) else { return };
    assert_success(&output);
}

#[test]
fn the_daemons_accept_the_settings_of_each_rendering() {
    let folder = tempfile::tempdir().unwrap();
    let Some(output) = python(&["check.py", "--settings", folder.path().to_str().unwrap()]) else { return };
    assert_success(&output);
    let mut checked = 0;
    for rendering in fs::read_dir(folder.path()).unwrap() {
        let rendering = rendering.unwrap().path();
        for daemon in ["ftpd", "ftp-relay", "authd"] {
            let config = rendering.join(format!("{daemon}.toml"));
            // Only one rendering has relays.
            if !config.exists() {
                continue;
            }
            let variables = fs::read_to_string(rendering.join(format!("{daemon}.env"))).unwrap();
            let output = Command::new(binaries::daemon(daemon))
                .args(["--check", "--config"])
                .arg(&config)
                .env_clear()
                .envs(variables.lines().map(|line| line.split_once('=').expect("NAME=VALUE")))
                .output()
                .unwrap();
            let text = [output.stdout.as_slice(), &output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(output.status.success(), "{}: {daemon}: {text}", rendering.display());
            assert!(text.contains("Redis at redis://"), "{text}");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}
