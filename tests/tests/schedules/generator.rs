//! Generates schedules and faults from a seed.

use cluster_tests::random::Random;

use crate::model::{Account, FLAT, Fault, Interruption, NESTED, Schedule, Step, Turn, UploadCommand, Writer};

/// Number of nodes of the cluster.
pub(crate) const NODES: usize = 3;
/// Number of schedules that run at the same time.
pub(crate) const SCHEDULES_PER_ROUND: usize = 100;

/// Schedules that run at the same time, and the fault that affects all of them.
pub(crate) struct Round {
    pub fault: Fault,
    /// Writers continue before the rest of the cluster has noticed the fault.
    pub is_early: bool,
    /// The cluster recovers from the fault before writers continue.
    pub recovers_first: bool,
    /// Bytes sent over a cut connection arrive later. Otherwise they are lost.
    pub delivers_late: bool,
    pub schedules: Vec<Schedule>,
}

/// Returns the round with this number. Five of twelve rounds have no fault.
pub(crate) fn round(number: u64) -> Round {
    let mut random = Random::new(number.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let node = random.below(NODES);
    let fault = match number % 12 {
        1 | 7 => Fault::Pause(node),
        3 => Fault::Partition(node),
        5 => Fault::Flush,
        8 => Fault::Forget,
        9 => Fault::Away,
        11 => Fault::Hang,
        _ => Fault::None,
    };
    let is_early = random.chance(30);
    let recovers_first = random.chance(50);
    let delivers_late = random.chance(50);
    let schedules = (0..SCHEDULES_PER_ROUND).map(|_| schedule(&mut random, fault)).collect();
    Round { fault, is_early, recovers_first, delivers_late, schedules }
}

/// The generator's view of a writer. The node may refuse the upload; the runner then skips its steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriterState {
    Idle,
    Writing,
}

fn schedule(random: &mut Random, fault: Fault) -> Schedule {
    let faulty = match fault {
        Fault::Pause(node) | Fault::Partition(node) => node,
        _ => random.below(NODES),
    };
    let other = (faulty + 1 + random.below(NODES - 1)) % NODES;
    let count = 2 + usize::from(random.chance(40));
    // Mostly one account, because users do not share partial files.
    let mixed = random.chance(20);
    let account = random.choose(&[Account::Direct, Account::Atomic]);
    let writers = (0..count)
        .map(|writer| Writer {
            node: match writer {
                0 => faulty,
                1 => other,
                _ => random.below(NODES),
            },
            account: if mixed { random.choose(&[Account::Direct, Account::Atomic]) } else { account },
        })
        .collect();
    let is_nested = random.chance(25);
    let mut generator = Generator { random, is_nested, states: vec![WriterState::Idle; count], latest: None };
    let mut before = Vec::new();
    if generator.random.chance(30) {
        // A confirmed file, which later steps may replace, append to or rename.
        let name = generator.name();
        before.push(Turn(vec![(1, Step::Begin(UploadCommand::Store, name))]));
        before.push(Turn(vec![(1, Step::End)]));
    }
    if generator.random.chance(85) {
        // The upload that runs when the fault begins.
        let name = generator.name();
        generator.latest = Some(name);
        before.push(Turn(vec![(0, Step::Begin(generator.how(), name))]));
        before.push(Turn(vec![(0, Step::Part)]));
        generator.states[0] = WriterState::Writing;
    }
    before.extend(generator.turns(0, 2));
    let during = generator.turns(2, 6);
    let after = generator.turns(1, 4);
    Schedule { writers, is_nested, phases: [before, during, after], seed: random.number() }
}

struct Generator<'r> {
    random: &'r mut Random,
    is_nested: bool,
    states: Vec<WriterState>,
    /// The name that was written last, or the target of the last rename.
    latest: Option<&'static str>,
}

impl Generator<'_> {
    fn turns(&mut self, least: usize, most: usize) -> Vec<Turn> {
        let count = least + self.random.below(most - least + 1);
        (0..count).map(|_| self.turn()).collect()
    }

    fn turn(&mut self) -> Turn {
        let writers = self.states.len();
        let first = self.random.below(writers);
        let count = if self.random.chance(20) { 2 + self.random.below(writers - 1) } else { 1 };
        Turn((first..first + count).map(|writer| (writer % writers, self.step(writer % writers))).collect())
    }

    fn step(&mut self, writer: usize) -> Step {
        let step = match self.states[writer] {
            WriterState::Writing => self.random.weighted(&[
                (4, Step::Part),
                (5, Step::End),
                (1, Step::Interrupt(Interruption::Reset)),
                (1, Step::Interrupt(Interruption::Abort)),
                (1, Step::Interrupt(Interruption::Leave)),
            ]),
            WriterState::Idle => {
                let name = self.name();
                let begin = Step::Begin(self.how(), name);
                let names: &[&str] = if self.is_nested { &NESTED } else { &FLAT };
                let others: Vec<_> = names.iter().copied().filter(|other| *other != name).collect();
                let rename = Step::Rename(name, self.random.choose(&others));
                let directory = if self.is_nested {
                    let directory = self.random.choose(&["d", "e"]);
                    let remove = [Step::Remove(directory), Step::RemoveAll(directory)];
                    self.random.weighted(&[(4, Step::Move), (1, remove[0]), (1, remove[1])])
                } else {
                    begin
                };
                self.random.weighted(&[(12, begin), (2, Step::Delete(name)), (4, rename), (3, directory)])
            }
        };
        match step {
            Step::Begin(_, name) | Step::Rename(_, name) => self.latest = Some(name),
            // `d/a` is now `e/a`.
            Step::Move if self.latest == Some("d/a") => self.latest = Some("e/a"),
            _ => {}
        }
        self.states[writer] = match step {
            Step::Begin(..) | Step::Part => WriterState::Writing,
            _ => WriterState::Idle,
        };
        step
    }

    fn how(&mut self) -> UploadCommand {
        self.random.weighted(&[
            (5, UploadCommand::Store),
            (3, UploadCommand::Resume),
            (2, UploadCommand::Append),
        ])
    }

    /// Chooses a name: mostly the latest one, because only writers of the same file can conflict.
    fn name(&mut self) -> &'static str {
        if let Some(latest) = self.latest
            && self.random.chance(60)
        {
            return latest;
        }
        let [first, second] = FLAT;
        let [below, beside, moved] = NESTED;
        if self.is_nested {
            self.random.weighted(&[(6, below), (2, beside), (2, moved)])
        } else {
            self.random.weighted(&[(6, first), (4, second)])
        }
    }
}
