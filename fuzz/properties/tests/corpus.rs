//! Runs every property with its seeds, and then with a limited number of randomly changed seeds.

use std::{fs, path::PathBuf};

use ftpd_properties::TARGETS;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

/// Maximum length of a changed seed in bytes. Longer inputs are left to the fuzzer.
const LONGEST: usize = 20_000;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus")
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<_> = fs::read_dir(corpus().join(target))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

/// A change of an input: replaces `removed` bytes at position `at`.
#[derive(Clone, Debug)]
struct Change {
    at: prop::sample::Index,
    removed: usize,
    put: Replacement,
}

#[derive(Clone, Debug)]
enum Replacement {
    Bytes(Vec<u8>),
    /// A part of another seed: its number, position and length.
    Seed(prop::sample::Index, prop::sample::Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let interesting = prop::sample::select(&b"\0\r\n \xff\xf4\xf2/.*?[]-\"%,|09AZaz\x7f\x80"[..]);
    let put = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4).prop_map(Replacement::Bytes),
        prop::collection::vec(interesting, 0..8).prop_map(Replacement::Bytes),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..40usize)
            .prop_map(|(seed, at, length)| Replacement::Seed(seed, at, length)),
    ];
    (any::<prop::sample::Index>(), 0..16usize, put).prop_map(|(at, removed, put)| Change { at, removed, put })
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = seeds(name);
    assert!(!seeds.is_empty());
    for (_, seed) in &seeds {
        (target.property)(seed);
    }
    let config = Config { cases: target.cases, failure_persistence: None, ..Config::default() };
    let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let input = (prop::sample::select(seeds.clone()), prop::collection::vec(change(), 1..6)).prop_map(
        move |(mut input, changes)| {
            for change in changes {
                let at = change.at.index(input.len() + 1);
                let end = (at + change.removed).min(input.len());
                let put = match change.put {
                    Replacement::Bytes(bytes) => bytes,
                    Replacement::Seed(seed, from, length) => {
                        let other = seed.get(&seeds);
                        let from = from.index(other.len() + 1);
                        other[from..(from + length).min(other.len())].to_vec()
                    }
                };
                input.splice(at..end, put);
            }
            input.truncate(LONGEST);
            input
        },
    );
    let tried = TestRunner::new(config).run(&input, |input| {
        (target.property)(&input);
        Ok(())
    });
    tried.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn every_target_has_seeds_and_a_fuzz_target() {
    let mut names: Vec<_> =
        fs::read_dir(corpus()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, TARGETS.each_ref().map(|target| target.name));
    let manifest = fs::read_to_string(corpus().join("../Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(corpus().join(format!("../fuzz_targets/{name}.rs")).exists(), "{name}");
    }
}

#[test]
fn command() {
    run("command");
}

#[test]
fn copy() {
    run("copy");
}

#[test]
fn glob_and_listing() {
    run("glob_and_listing");
}

#[test]
fn proxy_header() {
    run("proxy_header");
}

#[test]
fn reply() {
    run("reply");
}

#[test]
fn session() {
    run("session");
}

#[test]
fn ticket() {
    run("ticket");
}

#[test]
fn timestamp() {
    run("timestamp");
}

#[test]
fn tls_records() {
    run("tls_records");
}
