//! Tests of the checker: it accepts correct histories and finds each kind of fault.

use crate::{
    checker::{Files, Segment, decode, explain},
    ledger::{Entry, Operation, Upload},
    model::{Account, UploadCommand},
};

/// A ledger under construction. Each operation begins after the reply to the previous one, except after
/// [`Ledger::concurrent`].
#[derive(Default)]
struct Ledger(Vec<Entry>);

impl Ledger {
    fn add(mut self, account: Account, operation: Operation, code: u16) -> Self {
        let sent_at = 10 * self.0.len();
        self.0.push(Entry { writer: 0, account, operation, sent_at, replied: Some((sent_at + 5, code)) });
        self
    }

    /// Adds an upload of 100 bytes that the client has sent completely.
    fn upload(self, account: Account, how: UploadCommand, offset: usize, code: u16) -> Self {
        self.part(account, how, offset, 100, code)
    }

    /// Adds an upload of 100 bytes of which the client has sent the first `sent` bytes.
    fn part(self, account: Account, how: UploadCommand, offset: usize, sent: usize, code: u16) -> Self {
        let mut upload = Upload::new(1, self.0.len() as u8 + 1, "a", how, 100);
        upload.sent.push(sent);
        upload.is_ended = sent == 100;
        upload.has_begun = code != 450;
        upload.offset = offset;
        self.add(account, Operation::Upload(upload), code)
    }

    /// Makes the last operation begin before the reply to the previous one.
    fn concurrent(mut self) -> Self {
        let last = self.0.len() - 1;
        self.0[last].sent_at = self.0[last - 1].sent_at + 1;
        self
    }

    fn content(&self, upload: u8) -> Vec<u8> {
        self.0[usize::from(upload) - 1].upload().map(|upload| upload.content.clone()).unwrap_or_default()
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<(u8, usize)>, String> {
        let content = decode(bytes, &self.0)?;
        Ok(content.into_iter().map(|Segment { upload, length }| (upload, length)).collect())
    }

    /// Returns true if the ledger explains these files.
    fn explains(&self, files: &[(&'static str, &[(u8, usize)])]) -> bool {
        let content = |parts: &[(u8, usize)]| {
            parts.iter().map(|(upload, length)| Segment { upload: *upload, length: *length }).collect()
        };
        let files: Files = files.iter().map(|(name, parts)| (*name, content(parts))).collect();
        explain(&self.0, &files).is_ok()
    }
}

use Account::{Atomic, Direct};
use UploadCommand::{Append, Resume, Store};

#[test]
fn decode_finds_the_upload_of_every_byte() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Direct, Append, 0, 226);
    let (first, second) = (ledger.content(1), ledger.content(2));
    assert_eq!(ledger.decode(&[]), Ok(vec![]));
    assert_eq!(ledger.decode(&first), Ok(vec![(1, 100)]));
    for length in 1..100 {
        let appended = [&first[..length], &second[..]].concat();
        assert_eq!(ledger.decode(&appended), Ok(vec![(1, length), (2, 100)]));
        let part = [&first[..], &second[..length]].concat();
        assert_eq!(ledger.decode(&part), Ok(vec![(1, 100), (2, length)]));
    }
}

#[test]
fn decode_rejects_mixed_bytes_and_holes() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Direct, Store, 0, 226);
    let (first, second) = (ledger.content(1), ledger.content(2));
    for length in 1..100 {
        // The end of one upload follows the beginning of the other. The last bytes of both are equal.
        let is_mixed = ledger.decode(&[&first[..length], &second[length..]].concat()).is_err();
        assert!(is_mixed || length > 96, "{length}");
        // Holes at the beginning and in the middle.
        assert!(ledger.decode(&[&vec![0; length], &first[length..]].concat()).is_err(), "{length}");
        let hole = [&first[..length], &[0; 16], &first[(length + 16).min(100)..]].concat();
        assert!(ledger.decode(&hole).is_err(), "{length}");
        // Missing bytes and repeated bytes.
        assert!(length > 96 || ledger.decode(&[&first[..length], &first[length + 1..]].concat()).is_err());
        assert!(ledger.decode(&[&first[..length], &first[length - 1..]].concat()).is_err(), "{length}");
    }
    assert!(ledger.decode(&[&first[..], &first[..]].concat()).is_err());
    assert!(ledger.decode(&Upload::new(2, 1, "a", Store, 100).content).is_err(), "another schedule");
}

#[test]
fn the_last_confirmed_upload_must_be_in_the_file() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Atomic, Store, 0, 226);
    assert!(ledger.explains(&[("a", &[(2, 100)])]));
    for lost in [&[("a", &[(1, 100)][..])][..], &[("a", &[(2, 99)])], &[], &[("b", &[(2, 100)])]] {
        assert!(!ledger.explains(lost), "{lost:?}");
    }
}

#[test]
fn either_of_two_concurrent_uploads_may_be_the_last() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Direct, Store, 0, 226).concurrent();
    assert!(ledger.explains(&[("a", &[(1, 100)])]));
    assert!(ledger.explains(&[("a", &[(2, 100)])]));
    assert!(!ledger.explains(&[("a", &[(1, 100), (2, 100)])]));
}

#[test]
fn an_interrupted_direct_upload_leaves_the_old_content_or_its_own_beginning() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).part(Direct, Store, 0, 50, 426);
    for content in [(1, 100), (2, 0), (2, 13), (2, 50)] {
        let content = if content.1 == 0 { vec![] } else { vec![content] };
        assert!(ledger.explains(&[("a", &content)]), "{content:?}");
    }
    assert!(!ledger.explains(&[("a", &[(1, 50), (2, 50)])]));
    assert!(!ledger.explains(&[]), "the previous file is gone");
}

#[test]
fn an_interrupted_atomic_upload_leaves_nothing_under_its_name() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).part(Atomic, Store, 0, 50, 426);
    assert!(ledger.explains(&[("a", &[(1, 100)])]));
    assert!(!ledger.explains(&[("a", &[(2, 50)])]));
    // The client has sent everything and got an error. The node may have published the file before.
    let whole = Ledger::default().upload(Atomic, Store, 0, 451);
    assert!(whole.explains(&[]) && whole.explains(&[("a", &[(1, 100)])]));
}

#[test]
fn a_resumed_upload_keeps_bytes_that_the_first_upload_sent() {
    for account in [Direct, Atomic] {
        let broken = || Ledger::default().part(account, Store, 0, 60, 426);
        let resumed = broken().upload(account, Resume, 40, 226);
        assert!(resumed.explains(&[("a", &[(1, 40), (2, 100)])]));
        assert!(!resumed.explains(&[("a", &[(1, 60), (2, 100)])]));
        // A file cannot keep more bytes than were sent.
        assert!(!broken().upload(account, Resume, 61, 226).explains(&[("a", &[(1, 61), (2, 100)])]));
    }
}

#[test]
fn an_append_adds_to_the_previous_content() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Atomic, Append, 0, 226);
    assert!(ledger.explains(&[("a", &[(1, 100), (2, 100)])]));
    assert!(!ledger.explains(&[("a", &[(2, 100)])]));
    assert!(!ledger.explains(&[("a", &[(1, 50), (2, 100)])]));
    let refused = Ledger::default().upload(Direct, Store, 0, 226).upload(Direct, Append, 0, 450);
    assert!(!refused.explains(&[("a", &[(1, 100), (2, 100)])]), "a refused upload has stored bytes");
}

#[test]
fn renames_and_removals_have_the_effect_that_their_replies_state() {
    let stored = || Ledger::default().upload(Direct, Store, 0, 226);
    let renamed = |code| stored().add(Direct, Operation::Rename("a", "b"), code);
    assert!(renamed(250).explains(&[("b", &[(1, 100)])]));
    assert!(!renamed(250).explains(&[("a", &[(1, 100)])]));
    assert!(!renamed(450).explains(&[("b", &[(1, 100)])]));
    let missing = Ledger::default().add(Direct, Operation::Rename("a", "b"), 250);
    assert!(!missing.explains(&[]), "a missing name was renamed");
    // The upload begins before the rename and ends after it. 226 confirms that its name exists.
    let concurrent = renamed(250).concurrent();
    assert!(concurrent.explains(&[("b", &[(1, 100)])]));
    assert!(!concurrent.explains(&[("a", &[(1, 100)])]));

    let deleted = |code| stored().add(Direct, Operation::Delete("a"), code);
    assert!(deleted(250).explains(&[]) && !deleted(250).explains(&[("a", &[(1, 100)])]));
    assert!(!deleted(450).explains(&[]), "a confirmed upload is gone without a command");
}

#[test]
fn confirming_an_upload_that_its_client_has_not_ended_is_a_fault() {
    let ledger = Ledger::default().part(Direct, Store, 0, 50, 226);
    assert!(!ledger.explains(&[("a", &[(1, 50)])]));
    assert!(!ledger.explains(&[("a", &[(1, 100)])]));
}
