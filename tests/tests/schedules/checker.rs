//! Decides from the bytes on the storage and the ledger whether one writer at a time wrote each name.
//!
//! [`decode`] tells from the bytes alone whose they are; bytes of two uploads that are mixed, and holes, are
//! not decoded. [`explain`] then looks for an order of the operations that leads to exactly these files: each
//! operation takes effect at once, at some moment between its command and its reply, and has the effect that
//! its reply tells (a linearizable register for each name).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::{
    ledger::{Entry, Operation, Upload},
    model::{Account, How},
};

/// The first `length` bytes of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub upload: u8,
    pub length: usize,
}

/// Whose bytes a file holds, from its beginning: an upload, and those that appended to it.
pub type Content = Vec<Segment>;

/// The files of a schedule, by name.
pub type Files = BTreeMap<&'static str, Content>;

/// Tells whose bytes these are.
///
/// # Errors
/// They are not beginnings of uploads, one after the other. The text says where.
pub fn decode(bytes: &[u8], entries: &[Entry]) -> Result<Content, String> {
    let uploads: Vec<&Upload> = entries.iter().filter_map(Entry::upload).collect();
    let mut content = Content::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some(segment) = begins_at(&bytes[at..], &uploads, &content) else {
            let seen = bytes[at..bytes.len().min(at + 16)].escape_ascii();
            let length = bytes.len();
            return Err(format!(
                "at byte {at} of {length} no upload begins: \"{seen}\"; before it {content:?}"
            ));
        };
        at += segment.length;
        content.push(segment);
    }
    Ok(content)
}

/// The upload whose first bytes these are, and which is not in the file already. The first byte of a block is
/// none that another upload's block has at another place, so that an upload's bytes end where the next begins.
fn begins_at(bytes: &[u8], uploads: &[&Upload], before: &[Segment]) -> Option<Segment> {
    let upload = uploads.iter().find(|upload| upload.content.first() == bytes.first())?;
    let length = bytes.iter().zip(&upload.content).take_while(|(a, b)| a == b).count();
    let is_new = before.iter().all(|segment| segment.upload != upload.number);
    is_new.then_some(Segment { upload: upload.number, length })
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    names: Files,
    /// What broken atomic uploads left for REST, by name.
    hidden: Files,
}

/// Looks for an order of the operations after which `files` are there.
///
/// # Errors
/// No order of the operations explains the files.
pub fn explain(entries: &[Entry], files: &Files) -> Result<(), String> {
    let search = Search { entries, files, lengths: lengths(entries, files) };
    let begin = State { names: Files::new(), hidden: Files::new() };
    if search.reaches(0, &begin, &mut HashSet::new()) {
        Ok(())
    } else {
        Err(format!("no order of the operations leads to {files:?}"))
    }
}

/// How many bytes of each upload may have been stored before it broke off: what a step had sent, and what was
/// found or kept by a later REST, if so much was sent.
fn lengths(entries: &[Entry], files: &Files) -> BTreeMap<u8, BTreeSet<usize>> {
    let uploads = || entries.iter().filter_map(Entry::upload);
    let lengths_of = |upload: &Upload| {
        let found = files.values().flatten().filter(|segment| segment.upload == upload.number);
        let kept = uploads().map(|resumed| resumed.offset).chain(found.map(|segment| segment.length));
        upload.sent.iter().copied().chain(kept.filter(|length| *length <= upload.sent())).collect()
    };
    uploads().map(|upload| (upload.number, lengths_of(upload))).collect()
}

struct Search<'s> {
    entries: &'s [Entry],
    files: &'s Files,
    lengths: BTreeMap<u8, BTreeSet<usize>>,
}

impl Search<'_> {
    /// Whether the operations that are not in `done`, a set of bits, lead from `state` to the files.
    fn reaches(&self, done: u64, state: &State, seen: &mut HashSet<(u64, State)>) -> bool {
        let waits = |number: &usize| done & (1 << number) == 0;
        let left: Vec<usize> = (0..self.entries.len()).filter(waits).collect();
        if left.is_empty() {
            return state.names == *self.files;
        }
        if !seen.insert((done, state.clone())) {
            return false;
        }
        // No operation comes before one that was answered when it was asked.
        let answered = |number: &usize| self.entries[*number].answered.map_or(usize::MAX, |(when, _)| when);
        let first_answer = left.iter().map(answered).min().unwrap_or(usize::MAX);
        left.into_iter().filter(|number| self.entries[*number].asked < first_answer).any(|number| {
            self.effects(&self.entries[number], state)
                .iter()
                .any(|after| self.reaches(done | 1 << number, after, seen))
        })
    }

    /// What may be there after one operation. Nothing if its reply cannot be true.
    fn effects(&self, entry: &Entry, state: &State) -> Vec<State> {
        let is_done = entry.code().is_some_and(|code| (200..300).contains(&code));
        let mut after = state.clone();
        match &entry.operation {
            Operation::Upload(upload) => return self.effects_of_upload(entry, upload, is_done, state),
            Operation::Delete(name) => {
                if is_done {
                    after.names.remove(name);
                }
                let mut without = after.clone();
                if entry.account == Account::Atomic {
                    // What a broken upload left goes first, also where there is no file. It stays if it is written.
                    without.hidden.remove(name);
                }
                return vec![after, without];
            }
            Operation::Rename(from, to) => {
                if !is_done {
                    return vec![after];
                }
                let Some(content) = after.names.remove(from) else { return vec![] };
                after.names.insert(to, content);
                return vec![after];
            }
            Operation::Move => {
                if !is_done {
                    return vec![after];
                }
                let (moved, others) =
                    state.names.clone().into_iter().partition(|(name, _)| is_below("d", name));
                after.names = others;
                if after.names.keys().any(|name| is_below("e", name)) {
                    return vec![];
                }
                let moved: Files = moved;
                after.names.extend(moved.into_iter().map(|(name, content)| (renamed(name), content)));
                after.hidden.clear();
                return vec![after];
            }
            Operation::Remove(directory) => {
                after.hidden.retain(|name, _| !is_below(directory, name));
                if is_done {
                    return if after.names.keys().any(|name| is_below(directory, name)) {
                        vec![]
                    } else {
                        vec![after]
                    };
                }
            }
            Operation::RemoveAll(directory) => {
                after.hidden.retain(|name, _| !is_below(directory, name));
                let names: Vec<_> =
                    state.names.keys().copied().filter(|name| is_below(directory, name)).collect();
                let mut partly = vec![after];
                for name in names {
                    let mut without = partly.clone();
                    without.iter_mut().for_each(|state| drop(state.names.remove(name)));
                    partly = if is_done { without } else { [partly, without].concat() };
                }
                if !is_done {
                    partly.push(state.clone());
                }
                return partly;
            }
        }
        vec![state.clone(), after]
    }

    fn effects_of_upload(&self, entry: &Entry, upload: &Upload, is_done: bool, state: &State) -> Vec<State> {
        if !upload.has_begun {
            return vec![state.clone()];
        }
        let is_hidden = entry.is_hidden(upload.how);
        let there = if is_hidden { &state.hidden } else { &state.names };
        let before = match (there.get(upload.name), upload.how, upload.offset) {
            (_, How::Store, _) | (None, How::Append, _) | (_, How::Resume, 0) => Some(Content::new()),
            (Some(content), How::Append, _) => Some(content.clone()),
            (Some(content), How::Resume, offset) => first(content, offset),
            (None, How::Resume, _) => None,
        };
        let Some(before) = before else {
            // Its base is not there, so that it can have stored nothing.
            return if is_done { vec![] } else { vec![state.clone()] };
        };
        let with = |length: usize| {
            let own = (length > 0).then_some(Segment { upload: upload.number, length });
            before.iter().copied().chain(own).collect::<Content>()
        };
        let mut whole = state.clone();
        whole.names.insert(upload.name, with(upload.content.len()));
        if is_hidden {
            whole.hidden.remove(upload.name);
        }
        if is_done {
            // 226 for an upload that its client has not ended is false.
            return if upload.is_ended { vec![whole] } else { vec![] };
        }
        let mut after = vec![state.clone()];
        for length in self.lengths.get(&upload.number).into_iter().flatten() {
            let mut partly = state.clone();
            let stored = if is_hidden { &mut partly.hidden } else { &mut partly.names };
            stored.insert(upload.name, with(*length));
            after.push(partly);
        }
        if is_hidden {
            let mut nothing = state.clone();
            nothing.hidden.remove(upload.name);
            after.push(nothing);
            if upload.is_ended {
                after.push(whole);
            }
        }
        after
    }
}

/// The first `length` bytes of a content, if it has as many.
fn first(content: &Content, length: usize) -> Option<Content> {
    let mut left = length;
    let mut kept = Content::new();
    for segment in content {
        if left == 0 {
            break;
        }
        let length = segment.length.min(left);
        kept.push(Segment { length, ..*segment });
        left -= length;
    }
    (left == 0).then_some(kept)
}

fn is_below(directory: &str, name: &str) -> bool {
    name.split_once('/').is_some_and(|(above, _)| above == directory)
}

/// What a file in `d` is called when `d` is called `e`.
fn renamed(name: &str) -> &'static str {
    if name == "d/a" { "e/a" } else { "e/b" }
}
