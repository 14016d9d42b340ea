//! Random schedules of two or three writers of one path, with a fault of the cluster between their
//! steps. A path always holds the bytes of one upload, and no confirmed upload is lost.
//!
//! A round runs 100 schedules at the same time on a real cluster, and causes one fault that affects all
//! of them. The bytes of an upload contain its number, so the files on the storage show which uploads
//! wrote them. The checker compares the files with the replies that the writers got.
//!
//! `SCHEDULES=20000` sets the number of schedules (default 2,400). `SCHEDULE_SEED=37` runs only round
//! 37, and `SCHEDULE_SEED=37/12` only schedule 12 of that round. A failure prints its seed.

// The summary belongs to the test's output.
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
use runner::{Lane, Run};
use summary::Summary;

/// Default number of schedules: enough for each fault to occur in two rounds.
const SCHEDULES: usize = 2400;
/// Number of failures that are printed with all details.
const DETAILED_FAILURES: usize = 5;

/// Locked while a cluster runs, because two clusters would slow each other down.
static MACHINE: Mutex<()> = Mutex::new(());

#[test]
fn under_any_fault_a_path_holds_one_upload_and_no_confirmed_upload_is_lost() {
    run(SCHEDULES, Shared::start(1, &[]), |_| true);
}

/// Without storage locks only the lease keeps other writers out. Two faults are excluded: a process that
/// is stopped for longer than its lease may write one more block, and nothing is promised if Redis loses
/// only the leases.
#[test]
fn without_storage_locks_the_lease_alone_keeps_one_writer() {
    let is_promised = |fault| !matches!(fault, Fault::Pause(_) | Fault::Forget);
    run(SCHEDULES * 3 / 8, Shared::start(3, &[("storage_locks", "off")]), is_promised);
}

/// Runs rounds whose fault is `wanted`, with `schedules` schedules unless the environment sets a number.
fn run(schedules: usize, mut shared: Shared, wanted: impl Fn(Fault) -> bool) {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lanes: Vec<Lane> = (0..SCHEDULES_PER_ROUND).map(|number| shared.lane(number)).collect();
    let (first, count, only) = selection(schedules);
    let rounds = (first..).map(|number| (number, generator::round(number)));
    let mut summary = Summary::default();
    for (number, round) in rounds.filter(|(_, round)| wanted(round.fault)).take(count) {
        let runs = run_round(&mut shared, &mut lanes, number, &round, only);
        shared.wait_until_quiet();
        for (schedule, ran) in runs {
            let failure = match &ran {
                Ok((directory, ledger)) => check(directory, ledger).err(),
                Err(panic) => Some(format!("the schedule did not run to its end: {panic}")),
            };
            let ledger = ran.as_ref().map_or(&[][..], |(_, ledger)| ledger);
            summary.add(round.fault, ledger, failure.is_some());
            if let Ok((directory, _)) = &ran {
                summary.add_hidden(round.fault, count_partial_files(&lanes[schedule], directory));
            }
            if let Some(failure) = failure {
                let seed = format!("{number}/{schedule}");
                eprintln!("SCHEDULE_SEED={seed} failed ({:?}): {failure}", round.fault);
                if summary.failures() <= DETAILED_FAILURES {
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

/// Returns the first round, the number of rounds, and the schedule if the environment selects only one.
fn selection(schedules: usize) -> (u64, usize, Option<usize>) {
    let number = |text: &str, name: &str| {
        text.parse::<usize>().unwrap_or_else(|error| panic!("{name} is '{text}': {error}"))
    };
    if let Ok(seed) = env::var("SCHEDULE_SEED") {
        let (round, schedule) =
            seed.split_once('/').map_or((&*seed, None), |(round, rest)| (round, Some(rest)));
        let schedule = schedule.map(|text| number(text, "the schedule of SCHEDULE_SEED"));
        return (number(round, "the round of SCHEDULE_SEED") as u64, 1, schedule);
    }
    let count = env::var("SCHEDULES").map_or(schedules, |text| number(&text, "SCHEDULES"));
    (0, count.div_ceil(SCHEDULES_PER_ROUND), None)
}

/// The directory and the ledger of a schedule, or the text of a panic.
type Outcome = Result<(PathBuf, Vec<Entry>), String>;

/// Runs the schedules of a round at the same time, and causes the fault between their phases.
fn run_round(
    shared: &mut Shared,
    lanes: &mut [Lane],
    number: u64,
    round: &Round,
    only: Option<usize>,
) -> Vec<(usize, Outcome)> {
    let frozen = match round.fault {
        Fault::Pause(node) => Some(node),
        _ => None,
    };
    let chosen: Vec<_> = lanes
        .iter_mut()
        .zip(&round.schedules)
        .enumerate()
        .filter(|(schedule, _)| only.is_none_or(|only| only == *schedule))
        .collect();
    let barrier = Barrier::new(chosen.len() + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = chosen
            .into_iter()
            .map(|(position, (lane, schedule))| {
                let barrier = &barrier;
                let thread = scope.spawn(move || {
                    let mut run = catch_panic(|| Run::new(lane, schedule, number));
                    for phase in 0..3 {
                        let frozen = if phase == 1 { frozen } else { None };
                        run = run.and_then(|mut run| {
                            catch_panic(|| run.phase(phase, frozen))?;
                            Ok(run)
                        });
                        barrier.wait();
                        // The fault begins or ends here.
                        if phase < 2 {
                            barrier.wait();
                        }
                    }
                    let mut run = run?;
                    catch_panic(|| run.finish(lane))?;
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
        let join = |(position, thread): (usize, thread::ScopedJoinHandle<'_, Outcome>)| {
            (position, thread.join().unwrap_or_else(|panic| Err(text_of(&*panic))))
        };
        threads.into_iter().map(join).collect()
    })
}

/// Turns a panic into an error, so that the other schedules run to their end.
fn catch_panic<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| text_of(&*panic))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without text").to_owned()
}

/// Checks the files of a schedule against its ledger.
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

/// Returns the number of remaining partial files, and how many of them no session can resume. The name
/// of a partial file contains a hash of the user and the path, so a rename of the directory orphans it.
fn count_partial_files(lane: &Lane, directory: &Path) -> (usize, usize) {
    let owner = Lane::user(lane.number, Account::Atomic);
    let below = directory.strip_prefix(&lane.storage).expect("a schedule is on the storage");
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

/// Returns all files below a directory and their contents, including hidden files.
fn files(directory: &Path) -> impl Iterator<Item = (String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![(String::new(), directory.to_owned())];
    while let Some((prefix, directory)) = waiting.pop() {
        // Sessions may remove files and directories at the same time.
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
