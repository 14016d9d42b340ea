//! Two or three writers of one path, in any order of their steps, with a fault of the cluster in between:
//! whatever happens, a path holds the bytes of one upload, and no confirmed upload is lost.
//!
//! Rounds of schedules run on a real cluster, each round with a fault that all its schedules meet. Each
//! upload's bytes name the upload, so that the files on the storage tell who wrote them; the checker compares
//! them with what the writers were told.
//!
//! `SCHEDULES=20000` runs as many schedules instead of 2,400. `SCHEDULE_SEED=37` runs only round 37, and
//! `SCHEDULE_SEED=37/12` only its schedule 12: a failure prints the seed of its schedule.

// Numbers of what was run belong beside the result.
#![allow(clippy::print_stderr)]

#[path = "schedules/checker.rs"]
mod checker;
#[path = "schedules/checker_tests.rs"]
mod checker_tests;
#[path = "schedules/cluster.rs"]
mod cluster;
#[path = "schedules/generator.rs"]
mod generator;
#[path = "schedules/ledger.rs"]
mod ledger;
#[path = "schedules/model.rs"]
mod model;
#[path = "schedules/runner.rs"]
mod runner;
#[path = "schedules/summary.rs"]
mod summary;

use std::{
    any::Any,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Barrier, Mutex, PoisonError},
    thread,
};

use checker::{Files, decode, explain};
use cluster::Shared;
use cluster_tests::content::sha256;
use generator::{Round, SCHEDULES_PER_ROUND};
use ledger::Entry;
use model::{ALL, Account, Fault};
use runner::{Run, Slot};
use summary::Summary;

/// How many schedules run if the environment does not tell: each fault at least twice.
const SCHEDULES: usize = 2400;
/// How many failures are printed in whole.
const SHOWN: usize = 5;

/// One cluster at a time has the machine.
static MACHINE: Mutex<()> = Mutex::new(());

#[test]
fn under_any_fault_a_path_holds_one_upload_and_no_confirmed_upload_is_lost() {
    run(SCHEDULES, Shared::start(1, &[]), |_| true);
}

/// The lease is the fence then. Two faults are left out: a process that is stopped for longer than its lease
/// may write one more piece, and a Redis that loses leases alone keeps no promise.
#[test]
fn without_storage_locks_the_lease_alone_keeps_one_writer() {
    let is_promised = |fault| !matches!(fault, Fault::Pause(_) | Fault::Forget);
    run(SCHEDULES * 3 / 8, Shared::start(3, &[("storage_locks", "off")]), is_promised);
}

/// Runs rounds whose fault is `wanted` until there were `least` schedules, and more if the environment says so.
fn run(least: usize, mut shared: Shared, wanted: impl Fn(Fault) -> bool) {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut slots: Vec<Slot> = (0..SCHEDULES_PER_ROUND).map(|number| shared.slot(number)).collect();
    let (first, count, only) = chosen(least);
    let rounds = (first..).map(|number| (number, generator::round(number)));
    let mut summary = Summary::default();
    for (number, round) in rounds.filter(|(_, round)| wanted(round.fault)).take(count) {
        let runs = run_round(&mut shared, &mut slots, number, &round, only);
        shared.wait_until_quiet();
        for (schedule, ran) in runs {
            let failure = match &ran {
                Ok((directory, ledger)) => check(directory, ledger).err(),
                Err(panic) => Some(format!("it did not run to its end: {panic}")),
            };
            let ledger = ran.as_ref().map_or(&[][..], |(_, ledger)| ledger);
            summary.add(round.fault, ledger, failure.is_some());
            if let Ok((directory, _)) = &ran {
                summary.add_hidden(round.fault, hidden(&slots[schedule], directory));
            }
            if let Some(failure) = failure {
                let seed = format!("{number}/{schedule}");
                eprintln!("SCHEDULE_SEED={seed} failed ({:?}): {failure}", round.fault);
                if summary.failures() <= SHOWN {
                    eprintln!("{}", round.schedules[schedule]);
                    ledger.iter().for_each(|entry| eprintln!("    {entry}"));
                }
            }
        }
    }
    eprintln!("{summary}");
    assert_eq!(summary.failures(), 0, "schedules failed; their seeds are above");
    if only.is_none() {
        summary.assert_meaningful();
    }
}

/// The first round, how many rounds there are, and the only schedule of theirs, if it is only one.
fn chosen(least: usize) -> (u64, usize, Option<usize>) {
    let number = |text: &str, what: &str| {
        text.parse::<usize>().unwrap_or_else(|error| panic!("{what} is '{text}': {error}"))
    };
    if let Ok(seed) = env::var("SCHEDULE_SEED") {
        let (round, schedule) =
            seed.split_once('/').map_or((&*seed, None), |(round, rest)| (round, Some(rest)));
        let schedule = schedule.map(|text| number(text, "the schedule of SCHEDULE_SEED"));
        return (number(round, "the round of SCHEDULE_SEED") as u64, 1, schedule);
    }
    let wanted = env::var("SCHEDULES").map_or(least, |text| number(&text, "SCHEDULES"));
    (0, wanted.div_ceil(SCHEDULES_PER_ROUND), None)
}

type Ran = Result<(PathBuf, Vec<Entry>), String>;

/// Runs the schedules of a round at the same time, with their fault in between.
fn run_round(
    shared: &mut Shared,
    slots: &mut [Slot],
    number: u64,
    round: &Round,
    only: Option<usize>,
) -> Vec<(usize, Ran)> {
    let frozen = match round.fault {
        Fault::Pause(node) => Some(node),
        _ => None,
    };
    let chosen: Vec<_> = slots
        .iter_mut()
        .zip(&round.schedules)
        .enumerate()
        .filter(|(schedule, _)| only.is_none_or(|only| only == *schedule))
        .collect();
    let barrier = Barrier::new(chosen.len() + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = chosen
            .into_iter()
            .map(|(position, (slot, schedule))| {
                let barrier = &barrier;
                let thread = scope.spawn(move || {
                    let mut run = guarded(|| Run::new(slot, schedule, number));
                    for phase in 0..3 {
                        let frozen = if phase == 1 { frozen } else { None };
                        run = run.and_then(|mut run| {
                            guarded(|| run.phase(phase, frozen))?;
                            Ok(run)
                        });
                        barrier.wait();
                        // The fault begins or ends here.
                        if phase < 2 {
                            barrier.wait();
                        }
                    }
                    let mut run = run?;
                    guarded(|| run.finish(slot))?;
                    Ok((run.directory().to_owned(), run.ledger))
                });
                (position, thread)
            })
            .collect();
        barrier.wait();
        shared.begin(round);
        barrier.wait();
        barrier.wait();
        shared.end(round);
        barrier.wait();
        barrier.wait();
        let join = |(position, thread): (usize, thread::ScopedJoinHandle<'_, Ran>)| {
            (position, thread.join().unwrap_or_else(|panic| Err(text_of(&*panic))))
        };
        threads.into_iter().map(join).collect()
    })
}

/// Turns a panic into an error, so that the other schedules run to their end.
fn guarded<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| text_of(&*panic))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without text").to_owned()
}

/// Compares the files of a schedule with its ledger.
fn check(directory: &Path, ledger: &[Entry]) -> Result<(), String> {
    let mut found = Files::new();
    for (name, bytes) in files(directory) {
        let content = decode(&bytes, ledger).map_err(|error| format!("{name}: {error}"))?;
        if let Some(name) = ALL.iter().find(|known| **known == name) {
            found.insert(name, content);
        }
    }
    explain(ledger, &found)
}

/// How many hidden files of broken atomic uploads are left, and how many of them no session can resume: their
/// names do not follow from the user and a path, or the directory was renamed.
fn hidden(slot: &Slot, directory: &Path) -> (usize, usize) {
    let owner = Slot::user(slot.number, Account::Atomic);
    let below = directory.strip_prefix(&slot.storage).expect("a schedule is on the storage");
    let resumable: Vec<String> = ALL
        .iter()
        .map(|name| {
            let path = below.join(name);
            let hash = sha256(format!("{owner}\0{}", path.display()));
            let above = name.rsplit_once('/').map_or(String::new(), |(above, _)| format!("{above}/"));
            format!("{above}.ftpd-partial-{}", &hash[..32])
        })
        .collect();
    let left: Vec<_> = files(directory).filter(|(name, _)| name.contains(".ftpd-partial-")).collect();
    (left.len(), left.iter().filter(|(name, _)| !resumable.contains(name)).count())
}

/// All files below a directory and what they hold; hidden ones too.
fn files(directory: &Path) -> impl Iterator<Item = (String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![(String::new(), directory.to_owned())];
    while let Some((prefix, directory)) = waiting.pop() {
        // A directory or file may go while it is looked at.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                waiting.push((format!("{name}/"), entry.path()));
            } else if let Ok(content) = fs::read(entry.path()) {
                found.push((name, content));
            }
        }
    }
    found.into_iter()
}
