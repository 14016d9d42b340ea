//! Budgets of work: the system calls, Redis commands and hops between threads of fixed scripts.
//!
//! The numbers stand in `tests/budgets.toml`. They do not depend on the speed of the machine.

// A skipped test says so.
#![allow(clippy::print_stderr)]

use std::{collections::BTreeMap, fs, path::Path, thread, time::Duration};

use cluster_tests::{
    authd::hash_password,
    cluster::{Cluster, ClusterBuilder},
    dialogue::Dialogue,
    process::Daemon,
    work_counter::{Counts, SystemCalls, redis_commands, since, sleeps},
};
use serde::Deserialize;

/// The budget of one script, for each repetition.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    system_calls: Counts,
    #[serde(default)]
    redis_commands: Counts,
    /// How often the threads of the daemon may go to sleep. `None`: that depends on the speed of the network.
    sleeps: Option<f64>,
}

/// The work of one repetition, rounded: less than half a call each time belongs to the background.
#[derive(Debug, Default)]
struct Work {
    system_calls: Counts,
    redis_commands: Counts,
    sleeps: f64,
}

fn budget(script: &str) -> Budget {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("budgets.toml");
    let text = fs::read_to_string(path).unwrap();
    let mut budgets: BTreeMap<String, Budget> = toml::from_str(&text).unwrap();
    budgets.remove(script).unwrap_or_else(|| panic!("tests/budgets.toml has no [{script}]"))
}

/// What is not as the budget says. Work that has shrunk by more than a twentieth must lower the budget, or it
/// could come back unnoticed.
fn differences(budget: &Budget, work: &Work) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, allowed, counted) in [
        ("system call", &budget.system_calls, &work.system_calls),
        ("Redis command", &budget.redis_commands, &work.redis_commands),
    ] {
        for (name, number) in counted {
            let allowed = allowed.get(name).copied().unwrap_or(0);
            if *number > allowed {
                found.push(format!("{kind} {name}: {number}, the budget is {allowed}"));
            }
        }
        let (most, sum) = (allowed.values().sum::<u64>(), counted.values().sum::<u64>());
        if sum * 20 < most * 19 {
            found.push(format!("{kind}s: {sum} in all, so lower the budget of {most}: {counted:?}"));
        }
    }
    if let Some(most) = budget.sleeps.filter(|most| work.sleeps > *most) {
        found.push(format!("{:.1} times asleep, the budget is {most}", work.sleeps));
    }
    found
}

/// Each repetition's part of these counts.
fn each(counts: Counts, times: u64) -> Counts {
    let parts = counts.into_iter().map(|(name, number)| (name, (number + times / 2) / times));
    parts.filter(|(_, number)| *number > 0).collect()
}

/// Repeats a script and compares the work of `daemon`, and of Redis for all, with the budget `name`.
fn check(cluster: &Cluster, daemon: &Daemon, name: &str, times: u64, mut script: impl FnMut()) {
    // Threads, connections and caches that stay.
    script();
    let slept = sleeps(daemon);
    for _ in 0..times {
        script();
    }
    let sleeps = sleeps(daemon).saturating_sub(slept) as f64 / times as f64;
    let before = redis_commands(cluster.redis());
    let traced = SystemCalls::attach(daemon);
    for _ in 0..times {
        script();
    }
    let system_calls = each(traced.finish(), times);
    let redis_commands = each(since(&before, redis_commands(cluster.redis())), times);
    let work = Work { system_calls, redis_commands, sleeps };
    let found = differences(&budget(name), &work);
    assert!(found.is_empty(), "{name}: {found:#?}\nmeasured: {work:?}");
}

/// Returns false where work cannot be counted.
fn can_count() -> bool {
    let checked = SystemCalls::check();
    if let Err(reason) = &checked {
        eprintln!("skipped: strace is needed, and the right to trace a process: {reason}");
    }
    checked.is_ok()
}

fn builder() -> ClusterBuilder {
    let hash = hash_password("secret");
    Cluster::builder()
        .users(&format!("[users.ann]\npassword_hash = \"{hash}\"\n"))
        .nodes(1)
        // The background shall do little meanwhile.
        .setting("node_lease", "10m")
        .setting("log_level", "info")
}

fn log_in(cluster: &Cluster) -> Dialogue {
    let mut session = Dialogue::connect_with(&cluster.client(1), cluster.node(0).address);
    session.login("ann", "secret");
    session.command("TYPE I", 200);
    session
}

#[test]
fn work_of_the_node_and_authd_is_within_its_budgets() {
    if !can_count() {
        return;
    }
    let cluster = builder().without_balancer().start();
    let node = &cluster.node(0).daemon;
    check(&cluster, node, "login", 50, || log_in(&cluster).quit());
    check(&cluster, &cluster.authd().daemon, "login-authd", 50, || log_in(&cluster).quit());
    let mut session = log_in(&cluster);
    check(&cluster, node, "noop", 100, || {
        session.command("NOOP", 200);
    });
    let content = [b'x'; 4096];
    check(&cluster, node, "stor-4k", 100, || {
        session.transmit("STOR file", &content);
    });
    check(&cluster, node, "retr-4k", 100, || {
        assert_eq!(session.receive("RETR file").len(), 4096);
    });
    let home = cluster.storage().join("ann");
    fs::File::create(home.join("large")).unwrap().set_len(64 << 20).unwrap();
    check(&cluster, node, "retr-64m", 5, || {
        assert_eq!(session.receive("RETR large").len(), 64 << 20);
    });
    fs::create_dir(home.join("many")).unwrap();
    for number in 0..1000 {
        fs::write(home.join(format!("many/{number}")), "").unwrap();
    }
    check(&cluster, node, "list-1000", 5, || {
        session.receive("LIST many");
    });
    let idle: Vec<Dialogue> = (0..100).map(|_| log_in(&cluster)).collect();
    let traced = SystemCalls::attach(node);
    thread::sleep(Duration::from_secs(5));
    let calls = traced.finish();
    assert!(
        calls.values().sum::<u64>() < idle.len() as u64,
        "something wakes up for each session: {calls:?}"
    );
}

#[test]
fn work_of_the_relay_is_within_its_budget() {
    if !can_count() {
        return;
    }
    let cluster = builder().start();
    let mut session = Dialogue::connect(cluster.address());
    session.login("ann", "secret");
    session.command("TYPE I", 200);
    session.transmit("STOR file", &[b'x'; 4096]);
    check(&cluster, &cluster.relay().daemon, "relayed-retr-4k", 100, || {
        assert_eq!(session.receive("RETR file").len(), 4096);
    });
}

mod checks {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        counts.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    fn of(system_calls: &[(&str, u64)], redis: &[(&str, u64)], sleeps: f64) -> Vec<String> {
        let budget = Budget {
            system_calls: counts(&[("openat2", 1), ("pwrite64", 1), ("stat", 18)]),
            redis_commands: counts(&[("evalsha", 2)]),
            sleeps: Some(9.0),
        };
        let work = Work { system_calls: counts(system_calls), redis_commands: counts(redis), sleeps };
        differences(&budget, &work)
    }

    #[test]
    fn one_more_copy_request_or_hop_is_found_and_so_is_a_budget_that_is_too_large() {
        let calls = [("openat2", 1), ("pwrite64", 1), ("stat", 18)];
        assert!(of(&calls, &[("evalsha", 2)], 8.0).is_empty());
        let copied = of(&[calls[0], ("pread64", 1), calls[1], calls[2]], &[("evalsha", 2)], 8.0);
        assert!(copied.len() == 1 && copied[0].contains("pread64"), "{copied:?}");
        let asked = of(&calls, &[("evalsha", 3)], 8.0);
        assert!(asked.len() == 1 && asked[0].contains("evalsha"), "{asked:?}");
        let hopped = of(&calls, &[("evalsha", 2)], 10.0);
        assert!(hopped.len() == 1 && hopped[0].contains("asleep"), "{hopped:?}");
        let less = of(&[calls[0], calls[1], ("stat", 16)], &[("evalsha", 2)], 8.0);
        assert!(less.len() == 1 && less[0].contains("lower"), "{less:?}");
    }
}
