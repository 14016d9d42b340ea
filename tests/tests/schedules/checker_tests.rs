//! The checker finds what it is there to find.

use crate::{
    checker::{Files, Segment, decode, explain},
    ledger::{Entry, Operation, Upload},
    model::{Account, How},
};

/// A ledger under construction: each operation is asked and answered after those before it, unless it says
/// otherwise.
#[derive(Default)]
struct Ledger(Vec<Entry>);

impl Ledger {
    fn add(mut self, account: Account, operation: Operation, code: u16) -> Self {
        let asked = 10 * self.0.len();
        self.0.push(Entry { writer: 0, account, operation, asked, answered: Some((asked + 5, code)) });
        self
    }

    /// An upload of 100 bytes, all sent and ended.
    fn upload(self, account: Account, how: How, offset: usize, code: u16) -> Self {
        self.part(account, how, offset, 100, code)
    }

    /// An upload of 100 bytes, of which so many were sent.
    fn part(self, account: Account, how: How, offset: usize, sent: usize, code: u16) -> Self {
        let mut upload = Upload::new(1, self.0.len() as u8 + 1, "a", how, 100);
        upload.sent.push(sent);
        upload.is_ended = sent == 100;
        upload.has_begun = code != 450;
        upload.offset = offset;
        self.add(account, Operation::Upload(upload), code)
    }

    /// The last operation was asked before the one before it was answered.
    fn concurrent(mut self) -> Self {
        let last = self.0.len() - 1;
        self.0[last].asked = self.0[last - 1].asked + 1;
        self
    }

    fn content(&self, upload: u8) -> Vec<u8> {
        self.0[usize::from(upload) - 1].upload().map(|upload| upload.content.clone()).unwrap_or_default()
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<(u8, usize)>, String> {
        let content = decode(bytes, &self.0)?;
        Ok(content.into_iter().map(|Segment { upload, length }| (upload, length)).collect())
    }

    /// Whether the ledger explains these files.
    fn explains(&self, files: &[(&'static str, &[(u8, usize)])]) -> bool {
        let content = |parts: &[(u8, usize)]| {
            parts.iter().map(|(upload, length)| Segment { upload: *upload, length: *length }).collect()
        };
        let files: Files = files.iter().map(|(name, parts)| (*name, content(parts))).collect();
        explain(&self.0, &files).is_ok()
    }
}

use Account::{Atomic, Direct};
use How::{Append, Resume, Store};

#[test]
fn bytes_tell_whose_they_are() {
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
fn mixed_bytes_and_holes_are_found() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Direct, Store, 0, 226);
    let (first, second) = (ledger.content(1), ledger.content(2));
    for length in 1..100 {
        // The end of one upload after the beginning of the other, at the same offset. Their last bytes are equal.
        let is_mixed = ledger.decode(&[&first[..length], &second[length..]].concat()).is_err();
        assert!(is_mixed || length > 96, "{length}");
        // A hole at the beginning, and one in the middle.
        assert!(ledger.decode(&[&vec![0; length], &first[length..]].concat()).is_err(), "{length}");
        let hole = [&first[..length], &[0; 16], &first[(length + 16).min(100)..]].concat();
        assert!(ledger.decode(&hole).is_err(), "{length}");
        // Bytes that are left out, and bytes that are there twice.
        assert!(length > 96 || ledger.decode(&[&first[..length], &first[length + 1..]].concat()).is_err());
        assert!(ledger.decode(&[&first[..length], &first[length - 1..]].concat()).is_err(), "{length}");
    }
    assert!(ledger.decode(&[&first[..], &first[..]].concat()).is_err());
    assert!(ledger.decode(&Upload::new(2, 1, "a", Store, 100).content).is_err(), "another schedule's");
}

#[test]
fn the_last_confirmed_upload_is_there() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Atomic, Store, 0, 226);
    assert!(ledger.explains(&[("a", &[(2, 100)])]));
    for lost in [&[("a", &[(1, 100)][..])][..], &[("a", &[(2, 99)])], &[], &[("b", &[(2, 100)])]] {
        assert!(!ledger.explains(lost), "{lost:?}");
    }
}

#[test]
fn of_two_uploads_at_the_same_time_either_may_be_the_last() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Direct, Store, 0, 226).concurrent();
    assert!(ledger.explains(&[("a", &[(1, 100)])]));
    assert!(ledger.explains(&[("a", &[(2, 100)])]));
    assert!(!ledger.explains(&[("a", &[(1, 100), (2, 100)])]));
}

#[test]
fn a_direct_upload_that_broke_off_leaves_a_beginning_of_its_own() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).part(Direct, Store, 0, 50, 426);
    for content in [(1, 100), (2, 0), (2, 13), (2, 50)] {
        let content = if content.1 == 0 { vec![] } else { vec![content] };
        assert!(ledger.explains(&[("a", &content)]), "{content:?}");
    }
    assert!(!ledger.explains(&[("a", &[(1, 50), (2, 50)])]));
    assert!(!ledger.explains(&[]), "the file that was there before is gone");
}

#[test]
fn an_atomic_upload_that_broke_off_leaves_nothing_under_its_name() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).part(Atomic, Store, 0, 50, 426);
    assert!(ledger.explains(&[("a", &[(1, 100)])]));
    assert!(!ledger.explains(&[("a", &[(2, 50)])]));
    // All of it was sent, and the reply is an error: its name may have been given.
    let whole = Ledger::default().upload(Atomic, Store, 0, 451);
    assert!(whole.explains(&[]) && whole.explains(&[("a", &[(1, 100)])]));
}

#[test]
fn a_resumed_upload_goes_on_where_the_first_broke_off() {
    for account in [Direct, Atomic] {
        let broken = || Ledger::default().part(account, Store, 0, 60, 426);
        let resumed = broken().upload(account, Resume, 40, 226);
        assert!(resumed.explains(&[("a", &[(1, 40), (2, 100)])]));
        assert!(!resumed.explains(&[("a", &[(1, 60), (2, 100)])]));
        // More than was ever sent cannot be kept.
        assert!(!broken().upload(account, Resume, 61, 226).explains(&[("a", &[(1, 61), (2, 100)])]));
    }
}

#[test]
fn an_append_follows_what_was_there() {
    let ledger = Ledger::default().upload(Direct, Store, 0, 226).upload(Atomic, Append, 0, 226);
    assert!(ledger.explains(&[("a", &[(1, 100), (2, 100)])]));
    assert!(!ledger.explains(&[("a", &[(2, 100)])]));
    assert!(!ledger.explains(&[("a", &[(1, 50), (2, 100)])]));
    let refused = Ledger::default().upload(Direct, Store, 0, 226).upload(Direct, Append, 0, 450);
    assert!(!refused.explains(&[("a", &[(1, 100), (2, 100)])]), "a refused upload has stored bytes");
}

#[test]
fn renames_and_removals_have_the_effect_that_they_were_told() {
    let stored = || Ledger::default().upload(Direct, Store, 0, 226);
    let renamed = |code| stored().add(Direct, Operation::Rename("a", "b"), code);
    assert!(renamed(250).explains(&[("b", &[(1, 100)])]));
    assert!(!renamed(250).explains(&[("a", &[(1, 100)])]));
    assert!(!renamed(450).explains(&[("b", &[(1, 100)])]));
    let missing = Ledger::default().add(Direct, Operation::Rename("a", "b"), 250);
    assert!(!missing.explains(&[]), "a name that was not there was renamed");
    // The upload begins before the rename and ends after it: 226 tells that its name is there.
    let concurrent = renamed(250).concurrent();
    assert!(concurrent.explains(&[("b", &[(1, 100)])]));
    assert!(!concurrent.explains(&[("a", &[(1, 100)])]));

    let deleted = |code| stored().add(Direct, Operation::Delete("a"), code);
    assert!(deleted(250).explains(&[]) && !deleted(250).explains(&[("a", &[(1, 100)])]));
    assert!(!deleted(450).explains(&[]), "a confirmed upload is gone without a command");
}

#[test]
fn an_upload_that_its_client_has_not_ended_is_not_confirmed() {
    let ledger = Ledger::default().part(Direct, Store, 0, 50, 226);
    assert!(!ledger.explains(&[("a", &[(1, 50)])]));
    assert!(!ledger.explains(&[("a", &[(1, 100)])]));
}
