//! Reads the journals of all processes, each from where the last round ended, and removes what is done with.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use common::ids::NodeName;

use super::{
    delivery_log::DeliveryLog,
    directory::{EventFiles, EventsDirectory, ProcessId, SegmentName},
    liveness::Liveness,
    record::{Intent, JournalEntry, parse_line},
    recovery,
    tracker::{EventKey, IntentPlace, PathKeys, ReleasedEvent, Tracker},
};

/// Interval at which dead processes are looked for: each time costs a request to an NFS server for each node.
const EXAMINE_INTERVAL: Duration = Duration::from_secs(1);

/// A segment that was read.
#[derive(Debug, Default)]
struct SegmentState {
    /// Bytes that were read.
    offset: u64,
    /// The numbers of its events.
    numbers: Vec<u64>,
    /// Its events that are undecided or not delivered to all receivers.
    unfinished: usize,
    /// It was read to the end, and gets no more lines.
    is_complete: bool,
}

/// The journals on the storage. Its methods block.
pub(super) struct Journals {
    directory: EventsDirectory,
    liveness: Liveness,
    /// When dead processes were looked for last.
    examined: Option<Instant>,
    own: ProcessId,
    tracker: Tracker,
    segments: BTreeMap<SegmentName, SegmentState>,
}

impl Journals {
    pub(super) fn new(directory: EventsDirectory, liveness: Liveness, own: ProcessId) -> Self {
        Self {
            directory,
            liveness,
            examined: None,
            own,
            tracker: Tracker::default(),
            segments: BTreeMap::new(),
        }
    }

    /// Forgets what was read, so that the next rounds read everything again.
    pub(super) fn restart(&mut self) {
        self.tracker = Tracker::default();
        self.segments.clear();
    }

    /// Events that happened and wait for a further round.
    pub(super) fn has_committed(&self) -> bool {
        self.tracker.has_committed()
    }

    /// Reads all journals, decides on the events of dead processes, and returns the events that may be
    /// delivered.
    pub(super) fn round(
        &mut self,
        log: &mut DeliveryLog,
        live: Option<&HashSet<NodeName>>,
    ) -> io::Result<Vec<ReleasedEvent>> {
        self.tracker.begin_round();
        let mut files = self.directory.list()?;
        if self.examined.is_none_or(|at| at.elapsed() >= EXAMINE_INTERVAL) {
            self.examined = Some(Instant::now());
            if self.liveness.update(&self.directory, &files, live)? {
                // With the segments that the dead process wrote last.
                files = self.directory.list()?;
            }
        }
        self.read(&files)?;
        self.decide(log)?;
        Ok(self.tracker.release())
    }

    fn read(&mut self, files: &EventFiles) -> io::Result<()> {
        let newest: BTreeMap<ProcessId, u32> =
            files.segments.iter().map(|name| (name.process, name.segment)).collect();
        self.segments.retain(|name, _| files.segments.contains(name));
        for name in &files.segments {
            if self.segments.get(name).is_some_and(|state| state.is_complete) {
                continue;
            }
            let is_closed = newest.get(&name.process).is_some_and(|newest| name.segment < *newest)
                || self.liveness.is_dead(name.process);
            self.read_segment(name, is_closed)?;
        }
        Ok(())
    }

    fn read_segment(&mut self, name: &SegmentName, is_closed: bool) -> io::Result<()> {
        let file = match self.directory.open_segment(name) {
            // An earlier deliverer has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let state = self.segments.entry(name.clone()).or_default();
        let length = file.metadata()?.len();
        let mut content = vec![0; usize::try_from(length.saturating_sub(state.offset)).unwrap_or(0)];
        file.read_exact_at(&mut content, state.offset)?;
        let mut rest = content.as_slice();
        let mut aborted = Vec::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (line, after) = match end {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            let entry = if end.is_some() { parse_line(line) } else { None };
            match entry {
                Some(entry) => {
                    let place = IntentPlace {
                        segment: name.clone(),
                        offset: state.offset,
                        length: line.len() as u32,
                    };
                    aborted.extend(note(&mut self.tracker, state, place, entry));
                }
                // The line is being written.
                None if !is_closed => break,
                None => log::warn!(
                    node = name.node.as_str();
                    "skipped a line of a journal of events that its node did not finish"
                ),
            }
            state.offset += (rest.len() - after.len()) as u64;
            rest = after;
        }
        state.is_complete = is_closed;
        for segment in aborted {
            finish(&mut self.segments, &segment);
        }
        Ok(())
    }

    /// Decides on the undecided events of dead processes.
    fn decide(&mut self, log: &mut DeliveryLog) -> io::Result<()> {
        let processes: HashSet<ProcessId> = self.segments.keys().map(|name| name.process).collect();
        for process in processes.into_iter().filter(|process| self.liveness.is_dead(*process)) {
            for (key, place) in self.tracker.open_of(process) {
                let happened = match log.decision(key) {
                    Some(happened) => happened,
                    None => {
                        let intent = self.intent(&place)?;
                        let happened = recovery::decide(self.directory.root(), &intent)?;
                        let event = &intent.event;
                        log.note_decision(&event.id, happened)?;
                        log::info!(
                            event = event.id.as_str(), kind = event.event.name(),
                            path = event.storage_path.as_str();
                            "a node died while it made a change: the change is {}",
                            if happened { "complete" } else { "not made" }
                        );
                        happened
                    }
                };
                if happened {
                    self.tracker.commit(key);
                } else if let Some(segment) = self.tracker.abort(key) {
                    finish(&mut self.segments, &segment);
                }
            }
        }
        Ok(())
    }

    /// Reads an intent again.
    pub(super) fn intent(&self, place: &IntentPlace) -> io::Result<Intent> {
        let file = self.directory.open_segment(&place.segment)?;
        let mut line = vec![0; place.length as usize];
        file.read_exact_at(&mut line, place.offset)?;
        match parse_line(&line) {
            Some(JournalEntry::Intent(intent)) => Ok(*intent),
            _ => Err(io::Error::other("a line of a journal of events has changed")),
        }
    }

    /// Notes that nothing is left to do for an event of this segment.
    pub(super) fn finish(&mut self, segment: &SegmentName) {
        finish(&mut self.segments, segment);
    }

    /// Removes the segments whose events are finished: of each process in order, because a segment may hold
    /// the ends of events of earlier ones.
    pub(super) fn remove_finished(&mut self, log: &mut DeliveryLog) -> io::Result<()> {
        let mut unfinished = HashSet::new();
        let mut removed = Vec::new();
        for (name, state) in &self.segments {
            if unfinished.contains(&name.process) {
                continue;
            }
            if state.is_complete && state.unfinished == 0 {
                removed.push(name.clone());
            } else {
                unfinished.insert(name.process);
            }
        }
        for name in removed {
            if self.remove(&name)? {
                let state = self.segments.remove(&name).unwrap_or_default();
                log.forget(name.process, &state.numbers);
            }
        }
        Ok(())
    }

    fn remove(&mut self, name: &SegmentName) -> io::Result<bool> {
        if name.process == self.own {
            self.directory.remove_segment(name)?;
            return Ok(true);
        }
        let file: File = match self.directory.open_segment(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            file => file?,
        };
        let read = self.segments.get(name).map_or(0, |state| state.offset);
        let is_dead = self.liveness.is_dead(name.process);
        if is_dead && self.liveness.lock_to_remove(&file)?.is_none() {
            self.liveness.revive(name.process);
            return Ok(false);
        }
        if file.metadata()?.len() != read {
            return Ok(false);
        }
        self.directory.remove_segment(name)?;
        Ok(true)
    }
}

/// Returns the segment of an intent that did not happen.
fn note(
    tracker: &mut Tracker,
    state: &mut SegmentState,
    place: IntentPlace,
    entry: JournalEntry,
) -> Option<SegmentName> {
    let process = place.segment.process;
    match entry {
        JournalEntry::Intent(intent) => {
            let key: EventKey = (process, intent.n);
            state.numbers.push(intent.n);
            state.unfinished += 1;
            tracker.intent(key, place, PathKeys::of(&intent.event), intent.order);
        }
        JournalEntry::Commit(n) => tracker.commit((process, n)),
        JournalEntry::Abort(n) => return tracker.abort((process, n)),
    }
    None
}

fn finish(segments: &mut BTreeMap<SegmentName, SegmentState>, segment: &SegmentName) {
    if let Some(state) = segments.get_mut(segment) {
        state.unfinished = state.unfinished.saturating_sub(1);
    }
}
