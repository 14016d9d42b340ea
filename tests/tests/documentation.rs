//! Documents and configurations agree with the code: defaults, limits, names of tests, checksums.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the default of a setting of `ftpd` from `docs/settings.md`.
fn default_of(setting: &str) -> String {
    let page = fs::read_to_string(workspace().join("docs/settings.md")).unwrap();
    let row = page.lines().find(|line| line.starts_with(&format!("| `{setting}` |"))).unwrap();
    row.split(" | ").nth(2).unwrap().trim_matches('`').to_owned()
}

/// Converts a duration like `300s`, `6m` or `4h` to seconds.
fn seconds(duration: &str) -> u64 {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let unit = ["s", "m", "h"].iter().position(|known| *known == unit).expect(duration);
    number.parse::<u64>().expect(duration) * 60_u64.pow(unit as u32)
}

/// nginx closes a silent data connection with FIN, so an interrupted upload would look complete. The node
/// must therefore end the transfer first, with every balancer configuration of this repository.
#[test]
fn every_balancer_waits_longer_for_silent_data_connections_than_the_nodes() {
    let longest_silence = ["stall_timeout", "idle_timeout"].map(|setting| seconds(&default_of(setting)));
    let longest_silence = longest_silence.into_iter().max().unwrap();
    let mut found = 0;
    for file in [
        "deploy/demo/cluster.sh",
        "tests/src/nginx.rs",
        "bench/balancer/measure.py",
        "nginx/check.nix",
        "nginx/README.md",
    ] {
        let text = fs::read_to_string(workspace().join(file)).unwrap();
        for line in text.lines() {
            let folded = line.to_ascii_lowercase().replace('_', "");
            let Some((_, after)) = folded.split_once("datatimeout") else { continue };
            let words = after.split(|c: char| !c.is_ascii_alphanumeric());
            let is_duration = |word: &&str| {
                let number = word.trim_end_matches(['s', 'm', 'h']);
                number.len() + 1 == word.len() && number.parse::<u64>().is_ok()
            };
            for limit in words.filter(is_duration) {
                assert!(seconds(limit) > longest_silence, "{file}: {line}");
                found += 1;
            }
        }
    }
    assert!(found >= 4, "found only {found} limits of balancers");
}

/// nixos-modules/balancer.nix computes the balancer's limits from the defaults in the NixOS modules.
#[test]
fn the_nixos_modules_have_the_defaults_of_the_daemon() {
    let options = fs::read_to_string(workspace().join("nixos-modules/options/settings.nix")).unwrap();
    for setting in ["stall_timeout", "idle_timeout", "drain_timeout", "max_sessions", "max_transfers"] {
        let (_, definition) = options.split_once(&format!(" {setting} =")).unwrap();
        let default = default_of(setting);
        // The definition is `setting TYPE DEFAULT DESCRIPTION`, on one or several lines.
        let in_module = definition.split_whitespace().nth(2).unwrap().trim_matches('"');
        assert_eq!(in_module, default, "{setting}");
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust sources of the repository.
fn sources() -> Vec<PathBuf> {
    let mut sources = Vec::new();
    let mut left =
        ["authd", "common", "ftpd", "fuzz/properties", "tests"].map(|part| workspace().join(part)).to_vec();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    sources
}

#[test]
fn every_test_that_security_md_names_exists() {
    let page = fs::read_to_string(workspace().join("SECURITY.md")).unwrap();
    let table =
        page.split("| class, with cases | tests |").nth(1).expect("SECURITY.md has the table of classes");
    let sources = sources();
    let mut classes = 0;
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        classes += 1;
        let tests = row.trim_matches('|').split(" | ").nth(1).expect("the row has two columns");
        let named: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty() || tests.contains("no test: "), "{row}");
        for name in named {
            let (file, test) = name.split_once("::").expect("FILE::TEST");
            // The parenthesis stays open, because a property test has arguments.
            let function = format!("fn {test}(");
            let is_test = |source: &&PathBuf| {
                let text = fs::read_to_string(source).unwrap();
                let lines: Vec<_> = text.lines().map(str::trim).collect();
                lines.windows(2).any(|pair| {
                    let is_marked = pair[0].starts_with("#[") && pair[0].contains("test");
                    is_marked && pair[1].strip_prefix("async ").unwrap_or(pair[1]).starts_with(&function)
                })
            };
            let mut files =
                sources.iter().filter(|source| source.file_stem().is_some_and(|stem| stem == file));
            assert!(files.any(|source| is_test(&source)), "{name} is not a test");
        }
    }
    assert!(classes >= 29, "found only {classes} classes");
}

/// Supply chain attacks (CVE-2011-2523): the lock files pin each crate by its checksum.
#[test]
fn every_crate_comes_from_crates_io_with_a_checksum() {
    const CRATES_IO: &str = "\"registry+https://github.com/rust-lang/crates.io-index\"";
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock = fs::read_to_string(workspace().join(lock)).unwrap();
        for package in lock.split("[[package]]").skip(1) {
            let value =
                |key: &str| package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            let name = value("name").unwrap();
            match value("source") {
                // A crate of this repository has no source.
                None => assert!(OURS.iter().any(|our| name == format!("\"{our}\"")), "{name}"),
                Some(source) => {
                    assert_eq!(source, CRATES_IO, "{name}");
                    assert!(value("checksum").is_some_and(|sum| sum.len() == 66), "{name}");
                }
            }
        }
    }
}

const OURS: [&str; 8] =
    ["authd", "bench", "cluster-tests", "common", "ftpctl", "ftpd", "ftpd-fuzz", "ftpd-properties"];
