//! One schedule: processes of nodes, the network between them and Redis, and the check of their reservations.
//!
//! The clients are the worst possible: whenever a node may reserve a port, they reserve it for every address,
//! and hold it for the longest time. So a block is reserved until `reservation` after the last moment at
//! which the node could reserve a port on it; unless the node hands it over because it is idle.

mod faults;
mod reservations;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use common::{
    node::PortRange,
    passive::{BlockState, PassiveLayout},
    registry::{BlockHolder, BlockStepRequest, BlockTimes},
};

use crate::{
    random::Random,
    redis::{Identity, PublishAnswer, SimulatedRedis},
};

/// Time for which faults happen, in ms.
const FAULTS: u64 = 30_000;

/// `redis_timeout`, and the time to the next attempt.
const TIMEOUT: u64 = 1000;

/// Redis's clock at the start, in ms.
const EPOCH: u64 = 1_795_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A process starts.
    Start {
        process: usize,
    },
    /// A process refreshes. Outdated if `timer` is not its current timer.
    Refresh {
        process: usize,
        timer: u64,
    },
    /// A request arrives at Redis.
    Execute {
        request: usize,
    },
    /// An answer arrives at its process.
    Answer {
        answer: usize,
    },
    Timeout {
        process: usize,
        request: usize,
    },
    /// No reservation is outstanding on a block that the process has given up.
    Idle {
        process: usize,
        from: u16,
    },
    /// The request to leave arrives at Redis.
    Left {
        process: usize,
    },
    /// Redis can be reached again.
    RedisIsBack {
        is_empty: bool,
    },
    Fault,
}

/// The next step of a process in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// `at_start`: waits for the name until this time.
    Starting {
        until: u64,
    },
    /// The first request had no answer: a late claim.
    Looking {
        taken_since: Option<u64>,
        free_since: Option<u64>,
    },
    Joined,
}

struct Process {
    identity: Identity,
    holder: BlockHolder,
    phase: Phase,
    is_alive: bool,
    is_draining: bool,
    timer: u64,
    pending: Option<usize>,
    /// Messages are lost until then.
    cut_until: u64,
    /// No message is lost until then, and the process lives.
    reliable_until: u64,
    /// The last request that Redis carried out in time and has not forgotten.
    executed: Option<u64>,
    /// With `admit`: the time until which a request must be carried out.
    deadline: u64,
    /// By the first port of a block: the last time at which the process could reserve a port on it.
    reserved: BTreeMap<u16, u64>,
}

struct Request {
    process: usize,
    step: &'static str,
    is_draining: bool,
    request: BlockStepRequest,
}

/// The blocks that nodes could begin to use, handed over, and lost.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) taken: u64,
    pub(crate) given: u64,
    pub(crate) lost: u64,
}

pub(crate) struct World<'a> {
    pub(crate) counts: Counts,
    redis: &'a SimulatedRedis,
    random: Random,
    is_shown: bool,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    last_event: u64,
    processes: Vec<Process>,
    requests: Vec<Request>,
    answers: Vec<(usize, PublishAnswer)>,
    layout: PassiveLayout,
    lease: u64,
    reservation: u64,
    is_strict: bool,
    is_down: bool,
    is_quiet: bool,
    checks_shares: bool,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, redis: &'a SimulatedRedis, is_shown: bool) -> Self {
        let mut random = Random::new(seed);
        redis.clear();
        let block_ports = 2;
        let last = 50_000 + 2 * random.range(2, 7) as u16 - 1;
        Self {
            counts: Counts::default(),
            redis,
            is_shown,
            now: 0,
            events: BinaryHeap::new(),
            last_event: 0,
            processes: Vec::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            layout: PassiveLayout::new(PortRange::new(50_000, last).unwrap(), block_ports),
            lease: random.pick(&[3000, 6000]),
            reservation: random.pick(&[500, 2000, 5000]),
            is_strict: random.chance(50),
            is_down: false,
            is_quiet: false,
            checks_shares: seed.is_multiple_of(4),
            random,
        }
    }

    pub(crate) fn run(&mut self) -> Result<(), String> {
        for name in 0..self.random.range(1, 4) {
            let at = self.random.pick(&[0, 0, 500, 5000]);
            self.start(&name_of(name), "first", at);
        }
        self.after(0, Event::Fault);
        // Not each schedule waits until all leases, rests and names have settled.
        let quiet = if self.checks_shares { 3 * (self.lease + self.rest()) + self.settle() } else { 0 };
        let end = FAULTS + quiet;
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            self.happen(event)?;
            if at > end {
                break;
            }
        }
        if self.checks_shares { self.check_shares() } else { Ok(()) }
    }

    fn times(&self) -> BlockTimes {
        BlockTimes {
            lease: Duration::from_millis(self.lease),
            reservation: Duration::from_millis(self.reservation),
        }
    }

    fn rest(&self) -> u64 {
        self.times().rest().as_millis() as u64
    }

    fn settle(&self) -> u64 {
        self.times().settle().as_millis() as u64
    }

    fn show(&self, text: impl FnOnce() -> String) {
        if self.is_shown {
            #[allow(clippy::print_stdout)] // Only for a single seed, for the reader of the schedule.
            {
                println!("{:>6} {}", self.now, text());
            }
        }
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.last_event += 1;
        self.events.push(Reverse((self.now + delay, self.last_event, event)));
    }

    fn start(&mut self, name: &str, place: &str, delay: u64) {
        let process = self.processes.len();
        let incarnation = process as u64 + 1;
        let place = format!("place {place}");
        self.processes.push(Process {
            identity: Identity { name: name.parse().unwrap(), incarnation, place },
            holder: BlockHolder::new(self.times(), self.is_strict),
            phase: Phase::Starting { until: 0 },
            is_alive: false,
            is_draining: false,
            timer: 0,
            pending: None,
            cut_until: 0,
            reliable_until: 0,
            executed: None,
            deadline: u64::MAX,
            reserved: BTreeMap::new(),
        });
        self.after(delay, Event::Start { process });
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Start { process } => {
                self.show(|| {
                    format!("{} starts as process {process}", self.processes[process].identity.name)
                });
                let until = self.now + self.lease + 200;
                let starting = &mut self.processes[process];
                (starting.is_alive, starting.phase) = (true, Phase::Starting { until });
                self.send(process);
            }
            Event::Refresh { process, timer } if self.processes[process].timer == timer => self.send(process),
            Event::Refresh { .. } => {}
            Event::Execute { request } => self.execute(request),
            Event::Answer { answer } => return self.answered(answer),
            Event::Timeout { process, request } => {
                if self.processes[process].pending == Some(request) {
                    self.processes[process].pending = None;
                    if let Phase::Starting { .. } = self.processes[process].phase {
                        self.processes[process].phase =
                            Phase::Looking { taken_since: None, free_since: None };
                    }
                    self.refresh_in(process, (self.lease / 3).min(TIMEOUT));
                }
            }
            Event::Idle { process, from } => self.hand_over(process, from),
            Event::Left { process } => {
                if !self.is_down {
                    self.redis.leave(EPOCH + self.now, &self.processes[process].identity);
                }
            }
            Event::RedisIsBack { is_empty } if self.is_down => self.redis_is_back(is_empty),
            Event::RedisIsBack { .. } => {}
            Event::Fault => self.fault(),
        }
        Ok(())
    }

    fn refresh_in(&mut self, process: usize, delay: u64) {
        self.processes[process].timer += 1;
        let timer = self.processes[process].timer;
        self.after(delay, Event::Refresh { process, timer });
    }

    /// With `admit`, the messages of a process arrive when it must not be cut off any longer.
    fn is_reliable(&self, process: usize) -> bool {
        let process = &self.processes[process];
        let is_due = !self.is_strict && self.now + 2 * TIMEOUT + 200 >= process.deadline;
        self.is_quiet || is_due || self.now < process.reliable_until
    }

    /// The time that a message takes; `None` if it is lost.
    fn delay(&mut self, process: usize) -> Option<u64> {
        if self.is_reliable(process) {
            return Some(self.random.range(1, 20));
        }
        if self.now < self.processes[process].cut_until {
            return None;
        }
        match self.random.range(0, 100) {
            0..4 => None,
            4..8 => Some(self.random.range(30, 3000)),
            8 => Some(self.random.range(1000, 20_000)),
            _ => Some(self.random.range(1, 30)),
        }
    }

    fn send(&mut self, process: usize) {
        let now = local(self.now);
        let sender = &mut self.processes[process];
        if !sender.is_alive || sender.pending.is_some() {
            return;
        }
        self.close(process);
        let sender = &mut self.processes[process];
        sender.holder.release_overdue(now);
        let (step, is_draining) = match sender.phase {
            Phase::Starting { .. } => ("start", sender.is_draining),
            Phase::Looking { free_since: Some(since), .. } if self.now >= since + self.lease.min(5000) => {
                ("late", sender.is_draining)
            }
            Phase::Looking { .. } => ("look", sender.is_draining),
            Phase::Joined => ("keep", sender.is_draining),
        };
        let request = self.requests.len();
        sender.pending = Some(request);
        let content = sender.holder.request(now);
        self.requests.push(Request { process, step, is_draining, request: content });
        // After a broken connection a request is sent again, and may be carried out twice.
        for _ in 0..if self.random.chance(3) { 2 } else { 1 } {
            if let Some(delay) = self.delay(process) {
                self.after(delay, Event::Execute { request });
            }
        }
        self.after(TIMEOUT, Event::Timeout { process, request });
    }

    fn execute(&mut self, number: usize) {
        if self.is_down {
            return;
        }
        let Request { process, step, is_draining, ref request } = self.requests[number];
        let sender = &self.processes[process];
        if self.is_quiet && !sender.is_alive {
            return; // A late request of a dead process would make it live again for a lease.
        }
        let settings = (self.layout, self.lease, is_draining);
        let now = EPOCH + self.now;
        let answer = self.redis.publish(now, &sender.identity, step, settings, (&sender.holder, request));
        self.show(|| format!("{} {process} {step} {request:?}: {answer:?}", sender.identity.name));
        if matches!(&answer, PublishAnswer::Joined(reply) if !reply.is_late()) {
            let deadline = self.now + self.lease + self.rest();
            let sender = &mut self.processes[process];
            (sender.executed, sender.deadline) = (Some(self.now), deadline);
        }
        self.answers.push((number, answer));
        if let Some(delay) = self.delay(process) {
            self.after(delay, Event::Answer { answer: self.answers.len() - 1 });
        }
        for other in 0..self.processes.len() {
            let is_told = self.processes[other].is_alive
                && self.processes[other].phase == Phase::Joined
                && self.redis.take_commands(now, &self.processes[other].identity.name);
            if is_told && self.delay(other).is_some() {
                self.refresh_in(other, 5);
            }
        }
    }

    fn answered(&mut self, answer: usize) -> Result<(), String> {
        let (number, answer) = self.answers[answer].clone();
        let (process, request) = (self.requests[number].process, self.requests[number].request.clone());
        if !self.processes[process].is_alive || self.processes[process].pending != Some(number) {
            return Ok(());
        }
        self.close(process);
        let receiver = &mut self.processes[process];
        receiver.pending = None;
        let mut delay = self.lease / 3;
        match answer {
            PublishAnswer::Joined(reply) => {
                receiver.phase = Phase::Joined;
                let changes = receiver.holder.answer(&request, &reply, local(self.now));
                delay =
                    if changes.refresh_now { 0 } else { receiver.holder.next_refresh().as_millis() as u64 };
                self.counts.lost += changes.lost.len() as u64;
                self.counts.given += changes.given.len() as u64;
                self.counts.taken += changes.taken.len() as u64;
                self.opened(process)?;
            }
            PublishAnswer::NameTaken => match receiver.phase {
                Phase::Starting { until } if self.now < until => delay = 500,
                Phase::Looking { taken_since, .. }
                    if taken_since.is_none_or(|since| self.now < since + self.lease + 200) =>
                {
                    let since = taken_since.unwrap_or(self.now);
                    receiver.phase = Phase::Looking { taken_since: Some(since), free_since: None };
                    delay = delay.min(TIMEOUT);
                }
                _ => {
                    self.show(|| format!("process {process} ends: its name is taken"));
                    self.processes[process].is_alive = false;
                }
            },
            PublishAnswer::NameFree => {
                if let Phase::Looking { free_since, .. } = receiver.phase {
                    let since = free_since.unwrap_or(self.now);
                    receiver.phase = Phase::Looking { taken_since: None, free_since: Some(since) };
                }
                delay = delay.min(TIMEOUT);
            }
        }
        self.refresh_in(process, delay);
        Ok(())
    }

    fn hand_over(&mut self, process: usize, from: u16) {
        let holder = &mut self.processes[process].holder;
        let Some(block) = holder.usable().into_iter().find(|block| block.ports.from() == from) else {
            return;
        };
        if self.processes[process].is_alive && self.processes[process].holder.release(block.ports) {
            self.processes[process].reserved.remove(&from);
            self.refresh_in(process, 0);
        }
    }

    /// When the faults have ended: each node has its share, and all blocks have an owner.
    fn check_shares(&self) -> Result<(), String> {
        let blocks = self.layout.blocks().count();
        let mut sharing = Vec::new();
        let mut drained = 0;
        for process in self.processes.iter().filter(|process| process.is_alive) {
            let usable = process.holder.usable();
            let leased = usable.iter().filter(|block| block.state == BlockState::Leased).count();
            if process.is_draining {
                drained += usable.len();
            } else {
                sharing.push((process.identity.name.to_string(), leased, usable.len()));
            }
        }
        sharing.sort();
        let left = blocks - drained;
        for (i, (name, leased, usable)) in sharing.iter().enumerate() {
            let share = left / sharing.len() + usize::from(i < left % sharing.len());
            if (*leased, *usable) != (share, share) {
                return Err(format!(
                    "{name} has {leased} of {usable} blocks, and its share is {share}: {sharing:?}"
                ));
            }
        }
        Ok(())
    }
}

fn name_of(number: u64) -> String {
    format!("node-{number}")
}

/// The local clock of the nodes.
fn local(now: u64) -> Duration {
    Duration::from_millis(now + 1_000_000)
}
