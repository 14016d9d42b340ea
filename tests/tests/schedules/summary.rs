//! Counts of schedules and of replies to their uploads, for each fault.

use std::{collections::BTreeMap, fmt};

use crate::{ledger::Entry, model::Fault};

#[derive(Default)]
pub(crate) struct Summary(BTreeMap<&'static str, Row>);

#[derive(Default)]
struct Row {
    schedules: usize,
    failures: usize,
    uploads: usize,
    confirmed: usize,
    /// Uploads by reply code, except 226.
    codes: BTreeMap<u16, usize>,
    without_reply: usize,
    /// Remaining partial files.
    hidden: usize,
    /// Partial files that no session can resume.
    orphans: usize,
}

impl Summary {
    /// Counts one schedule.
    pub(crate) fn add(&mut self, fault: Fault, ledger: &[Entry], has_failed: bool) {
        let row = self.row(fault);
        row.schedules += 1;
        row.failures += usize::from(has_failed);
        for entry in ledger.iter().filter(|entry| entry.upload().is_some()) {
            row.uploads += 1;
            match entry.code() {
                Some(226) => row.confirmed += 1,
                Some(code) => *row.codes.entry(code).or_default() += 1,
                None => row.without_reply += 1,
            }
        }
    }

    /// Counts the remaining partial files, and those that no session can resume.
    pub(crate) fn add_hidden(&mut self, fault: Fault, (hidden, orphans): (usize, usize)) {
        let row = self.row(fault);
        row.hidden += hidden;
        row.orphans += orphans;
    }

    fn row(&mut self, fault: Fault) -> &mut Row {
        let name = match fault {
            Fault::None => "none",
            Fault::Pause(_) => "pause",
            Fault::Partition(_) => "partition",
            Fault::Flush => "flush",
            Fault::Forget => "forget",
            Fault::Away => "away",
            Fault::Hang => "hang",
        };
        self.0.entry(name).or_default()
    }

    pub(crate) fn failures(&self) -> usize {
        self.0.values().map(|row| row.failures).sum()
    }

    /// Checks that at least 5 % of the uploads were confirmed: a cluster that refuses all uploads loses
    /// none and would prove nothing.
    pub(crate) fn assert_meaningful(&self) {
        let sum = |of: fn(&Row) -> usize| self.0.values().map(of).sum::<usize>();
        let (uploads, confirmed) = (sum(|row| row.uploads), sum(|row| row.confirmed));
        assert!(confirmed * 20 > uploads, "only {confirmed} of {uploads} uploads were confirmed");
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, row) in &self.0 {
            let Row { schedules, failures, uploads, confirmed, codes, without_reply, hidden, orphans } = row;
            writeln!(
                f,
                "{name:>9}: {schedules} schedules, {failures} failed; {uploads} uploads, \
                 {confirmed} confirmed, {without_reply} without a reply, other codes {codes:?}; \
                 {hidden} partial files, {orphans} of them orphans"
            )?;
        }
        Ok(())
    }
}
