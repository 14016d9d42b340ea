//! The check of the reservations: when a process may reserve ports on a block, no other process may hold one there.

use common::passive::{BlockState, OwnBlock};

use super::{Event, World, local};

impl World<'_> {
    /// The last time, now or before, at which the process could reserve ports on its blocks.
    pub(super) fn could_reserve(&self, process: usize) -> u64 {
        let holder = &self.processes[process].holder;
        if holder.may_reserve(local(self.now)) {
            return self.now;
        }
        let (mut could, mut could_not) = (0, self.now);
        while could + 1 < could_not {
            let middle = could.midpoint(could_not);
            *(if holder.may_reserve(local(middle)) { &mut could } else { &mut could_not }) = middle;
        }
        could
    }

    /// Notes the reservations on the blocks of a process, before its blocks change.
    pub(super) fn close(&mut self, process: usize) {
        let could = self.could_reserve(process);
        for block in self.processes[process].holder.usable() {
            if block.state == BlockState::Leased {
                self.processes[process].reserved.insert(block.ports.from(), could);
            }
        }
    }

    /// Checks the blocks on which a process can reserve ports now.
    pub(super) fn opened(&mut self, process: usize) -> Result<(), String> {
        for block in self.processes[process].holder.usable() {
            let from = block.ports.from();
            if block.state == BlockState::GivenUp {
                if self.random.chance(30) {
                    let delay = self.random.range(0, self.reservation);
                    self.after(delay, Event::Idle { process, from });
                }
                continue;
            }
            if !self.processes[process].holder.may_reserve(local(self.now)) {
                continue;
            }
            for other in 0..self.processes.len() {
                if other == process || !self.processes[other].is_alive {
                    continue;
                }
                let usable = self.processes[other].holder.usable();
                let is_leased = |own: &&OwnBlock| own.ports.from() == from && own.state == BlockState::Leased;
                let last = match usable.iter().find(is_leased) {
                    Some(_) => Some(self.could_reserve(other)),
                    None => self.processes[other].reserved.get(&from).copied(),
                };
                if let Some(last) = last.filter(|last| last + self.reservation > self.now) {
                    return Err(format!(
                        "at {} ms, process {process} may reserve ports of {}, and so could process {other} \
                         at {last} ms",
                        self.now, block.ports
                    ));
                }
            }
        }
        Ok(())
    }
}
