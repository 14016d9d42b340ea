//! The faults of a schedule: processes that crash, leave, drain or are cut off, and a Redis that is away or loses its
//! data.

use super::{Event, FAULTS, Phase, Process, World, name_of};
use crate::redis::Identity;

impl World<'_> {
    /// Redis can be reached again. It has lost its data if `is_empty`.
    pub(super) fn redis_is_back(&mut self, is_empty: bool) {
        if is_empty && self.is_strict {
            self.show(|| "Redis loses its data".to_owned());
            self.forget();
        } else if is_empty && let Some(anchor) = self.anchor() {
            self.show(|| format!("Redis loses its data; process {anchor} reaches it"));
            self.forget();
            let (settle, time) = (self.settle(), self.random.range(0, self.settle() - 300));
            let anchor_process = &mut self.processes[anchor];
            anchor_process.reliable_until = self.now + settle;
            anchor_process.pending = None;
            self.refresh_in(anchor, time);
        }
        if self.is_down {
            self.show(|| "Redis is back".to_owned());
            self.is_down = false;
            let rest = self.rest();
            for process in &mut self.processes {
                if process.executed.is_some_and(|executed| executed + self.lease < self.now) {
                    process.deadline = process.deadline.max(self.now + rest);
                }
            }
        }
    }

    fn forget(&mut self) {
        self.redis.clear();
        for process in &mut self.processes {
            process.executed = None;
        }
    }

    /// A process that enters its blocks again soon after Redis lost its data.
    fn anchor(&mut self) -> Option<usize> {
        let all: Vec<usize> = (0..self.processes.len()).collect();
        let could = |process: &usize| {
            let process = &self.processes[*process];
            process.is_alive && process.phase == Phase::Joined && !process.holder.usable().is_empty()
        };
        let able: Vec<usize> = all.into_iter().filter(could).collect();
        if able.is_empty() { None } else { Some(self.random.pick(&able)) }
    }

    pub(super) fn fault(&mut self) {
        if self.now >= FAULTS {
            self.is_quiet = true;
            self.show(|| "the faults have ended".to_owned());
            if self.is_down {
                self.redis_is_back(false);
            }
            for process in 0..self.processes.len() {
                self.processes[process].cut_until = 0;
            }
            return;
        }
        let delay = self.random.range(100, 3000);
        self.after(delay, Event::Fault);
        let process = self.random.range(0, self.processes.len() as u64) as usize;
        let is_protected = self.now < self.processes[process].reliable_until;
        let kind = self.random.range(0, 100);
        match kind {
            0..35 => {
                let most = if self.random.chance(30) { 3 * (self.lease + self.rest()) } else { self.lease };
                let cut = self.random.range(0, most);
                self.processes[process].cut_until = self.now + cut;
                self.show(|| format!("process {process} is cut off for {cut} ms"));
            }
            35..55 if self.processes[process].is_alive && !is_protected => {
                self.close(process);
                self.processes[process].is_alive = false;
                self.show(|| format!("process {process} crashes"));
                if self.random.chance(80) {
                    let delay = self.random.range(10, self.lease + self.rest());
                    self.restart(process, delay);
                }
            }
            55..63 if self.processes[process].is_alive && !is_protected => {
                self.show(|| format!("process {process} leaves"));
                self.processes[process].is_alive = false;
                if let Some(delay) = self.delay(process) {
                    self.after(delay, Event::Left { process });
                }
                if self.random.chance(60) {
                    let delay = self.random.range(10, 5000);
                    self.restart(process, delay);
                }
            }
            63..68 => self.processes[process].is_draining = true,
            68..78 if self.alive() < 5 => {
                let name = name_of(self.random.range(0, 5));
                if self.processes.iter().all(|process| process.identity.name.as_str() != name) {
                    self.start(&name, "first", 0);
                }
            }
            78..84 if self.processes[process].is_alive => {
                // A process of the same name on another host, while this one may be cut off.
                let name = self.processes[process].identity.name.to_string();
                let place = format!("other {}", self.processes.len());
                self.start(&name, &place, 0);
            }
            84..92 => self.lose_data(),
            92.. => self.stop_redis(),
            _ => {}
        }
    }

    fn lose_data(&mut self) {
        if !self.is_down {
            self.redis_is_back(true);
        }
    }

    fn stop_redis(&mut self) {
        // With `admit`, a node that is cut off already would be cut off for too long.
        let is_expired = |process: &Process| {
            process.is_alive && process.executed.is_none_or(|at| at + self.lease <= self.now)
        };
        if self.is_down || !self.is_strict && self.processes.iter().any(is_expired) {
            return;
        }
        self.is_down = true;
        let is_empty = self.random.chance(40);
        let time = self.random.range(100, 2 * (self.lease + self.rest()));
        self.show(|| format!("Redis is away for {time} ms"));
        self.after(time, Event::RedisIsBack { is_empty });
    }

    fn restart(&mut self, process: usize, delay: u64) {
        let Identity { name, place, .. } = self.processes[process].identity.clone();
        self.start(name.as_str(), place.trim_start_matches("place "), delay);
    }

    fn alive(&self) -> usize {
        self.processes.iter().filter(|process| process.is_alive).count()
    }
}
