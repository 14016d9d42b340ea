//! Decides from the files on the storage and the ledger whether each path had one writer at a time.
//!
//! [`decode`] finds out which uploads wrote the bytes of a file. It rejects mixed bytes of two uploads,
//! and holes. [`explain`] then looks for an order of the operations that leads to exactly these files.
//! Each operation takes effect at one moment between its command and its reply, and has the effect that
//! its reply states (a linearizable register for each name).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::{
    ledger::{Entry, Operation, Upload},
    model::{Account, UploadCommand},
};

/// The first `length` bytes of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Segment {
    pub upload: u8,
    pub length: usize,
}

/// Content of a file: the bytes of an upload, followed by those of the uploads that appended to it.
pub(crate) type Content = Vec<Segment>;

/// The files of a schedule, by name.
pub(crate) type Files = BTreeMap<&'static str, Content>;

/// Splits the bytes of a file into segments of uploads.
///
/// # Errors
/// The bytes are not a sequence of beginnings of uploads. The text names the position.
pub(crate) fn decode(bytes: &[u8], entries: &[Entry]) -> Result<Content, String> {
    let uploads: Vec<&Upload> = entries.iter().filter_map(Entry::upload).collect();
    let mut content = Content::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some(segment) = segment_at_start(&bytes[at..], &uploads, &content) else {
            let seen = bytes[at..bytes.len().min(at + 16)].escape_ascii();
            let length = bytes.len();
            return Err(format!(
                "no upload begins at byte {at} of {length}: \"{seen}\"; segments before: {content:?}"
            ));
        };
        at += segment.length;
        content.push(segment);
    }
    Ok(content)
}

/// Returns the segment at the beginning of `bytes`, unless its upload is in the file already. Only the
/// first byte of a block is above 127 and names the upload, so a segment ends where the next one begins.
fn segment_at_start(bytes: &[u8], uploads: &[&Upload], before: &[Segment]) -> Option<Segment> {
    let upload = uploads.iter().find(|upload| upload.content.first() == bytes.first())?;
    let length = bytes.iter().zip(&upload.content).take_while(|(a, b)| a == b).count();
    let is_new = before.iter().all(|segment| segment.upload != upload.number);
    is_new.then_some(Segment { upload: upload.number, length })
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct StorageState {
    names: Files,
    /// Partial files of interrupted atomic uploads, by the final name. REST resumes them.
    hidden: Files,
}

/// Looks for an order of the operations that leads to `files`.
///
/// # Errors
/// No order of the operations explains the files.
pub(crate) fn explain(entries: &[Entry], files: &Files) -> Result<(), String> {
    let search = Search { entries, files, lengths: lengths(entries, files) };
    let begin = StorageState { names: Files::new(), hidden: Files::new() };
    if search.reaches(0, &begin, &mut HashSet::new()) {
        Ok(())
    } else {
        Err(format!("no order of the operations leads to {files:?}"))
    }
}

/// For each upload, the numbers of bytes that may have been stored before it was interrupted: the bytes
/// sent by each step, and the sizes that are found in a file or used by a later REST, if at least as many
/// bytes were sent.
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
    /// Returns true if the operations that are not in the bit set `done` lead from `state` to the files.
    fn reaches(&self, done: u64, state: &StorageState, seen: &mut HashSet<(u64, StorageState)>) -> bool {
        let is_left = |number: &usize| done & (1 << number) == 0;
        let left: Vec<usize> = (0..self.entries.len()).filter(is_left).collect();
        if left.is_empty() {
            return state.names == *self.files;
        }
        if !seen.insert((done, state.clone())) {
            return false;
        }
        // An operation comes after all operations that had a reply when its command was sent.
        let replied = |number: &usize| self.entries[*number].replied.map_or(usize::MAX, |(when, _)| when);
        let first_answer = left.iter().map(replied).min().unwrap_or(usize::MAX);
        left.into_iter().filter(|number| self.entries[*number].sent_at < first_answer).any(|number| {
            self.effects(&self.entries[number], state)
                .iter()
                .any(|after| self.reaches(done | 1 << number, after, seen))
        })
    }

    /// Returns the possible states after an operation; none if its reply cannot be true in `state`.
    fn effects(&self, entry: &Entry, state: &StorageState) -> Vec<StorageState> {
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
                    // DELE removes the partial file first, even if there is no file of the name. A
                    // partial file that is being written stays.
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

    fn effects_of_upload(
        &self,
        entry: &Entry,
        upload: &Upload,
        is_done: bool,
        state: &StorageState,
    ) -> Vec<StorageState> {
        if !upload.has_begun {
            return vec![state.clone()];
        }
        let is_hidden = entry.uses_partial_file(upload.how);
        let there = if is_hidden { &state.hidden } else { &state.names };
        let before = match (there.get(upload.name), upload.how, upload.offset) {
            (_, UploadCommand::Store, _)
            | (None, UploadCommand::Append, _)
            | (_, UploadCommand::Resume, 0) => Some(Content::new()),
            (Some(content), UploadCommand::Append, _) => Some(content.clone()),
            (Some(content), UploadCommand::Resume, offset) => first(content, offset),
            (None, UploadCommand::Resume, _) => None,
        };
        let Some(before) = before else {
            // The content that the upload continues does not exist, so the upload can have stored nothing.
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
            // 226 is wrong if the client has not ended the upload.
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

/// Returns the first `length` bytes of a content; `None` if the content is shorter.
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

/// Returns the new name of a file in `d` after `d` is renamed to `e`.
fn renamed(name: &str) -> &'static str {
    if name == "d/a" { "e/a" } else { "e/b" }
}
