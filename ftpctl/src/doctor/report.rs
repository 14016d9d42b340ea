//! The result of the checks: verdicts, lines for people, JSON for programs.

use serde::Serialize;

use super::findings::Finding;
use crate::render::human;

/// Width of the column with the names of the checks.
const NAME_WIDTH: usize = 30;

/// Width of the lines, unless a word is longer.
const LINE_WIDTH: usize = 110;

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Ok,
    /// Not right, and clients can work.
    Warning,
    /// Clients fail, or files are in danger.
    Failed,
    /// The check could not be made.
    Skipped,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CheckLine {
    pub(crate) check: String,
    pub(crate) verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finding: Option<Finding>,
    /// What was seen.
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<&'static str>,
}

/// All lines so far. Each is shown at once.
pub(crate) struct Report<'a> {
    lines: Vec<CheckLine>,
    show: &'a mut dyn FnMut(&CheckLine),
}

impl<'a> Report<'a> {
    pub(crate) fn new(show: &'a mut dyn FnMut(&CheckLine)) -> Self {
        Self { lines: Vec::new(), show }
    }

    pub(crate) fn ok(&mut self, check: &str, text: impl Into<String>) {
        self.add(check, Verdict::Ok, None, text.into());
    }

    pub(crate) fn skipped(&mut self, check: &str, text: impl Into<String>) {
        self.add(check, Verdict::Skipped, None, text.into());
    }

    pub(crate) fn warn(&mut self, check: &str, finding: Finding, text: impl Into<String>) {
        self.add(check, Verdict::Warning, Some(finding), text.into());
    }

    pub(crate) fn fail(&mut self, check: &str, finding: Finding, text: impl Into<String>) {
        self.add(check, Verdict::Failed, Some(finding), text.into());
    }

    fn add(&mut self, check: &str, verdict: Verdict, finding: Option<Finding>, text: String) {
        let remedy = finding.map(Finding::remedy);
        let line = CheckLine { check: check.to_owned(), verdict, finding, text, remedy };
        (self.show)(&line);
        self.lines.push(line);
    }

    /// True if a check of this name has not been passed.
    pub(crate) fn has_failed(&self) -> bool {
        self.lines.iter().any(|line| line.verdict == Verdict::Failed)
    }

    pub(crate) fn into_lines(self) -> Vec<CheckLine> {
        self.lines
    }
}

impl CheckLine {
    /// The line for people; a long text and the remedy continue on further lines.
    pub(crate) fn render(&self, colours: bool) -> String {
        let (sign, colour) = match self.verdict {
            Verdict::Ok => ("✓", "32"),
            Verdict::Warning => ("!", "33"),
            Verdict::Failed => ("✗", "31"),
            Verdict::Skipped => ("–", "2"),
        };
        let sign = if colours { format!("\x1b[{colour}m{sign}\x1b[0m") } else { sign.to_owned() };
        let room = LINE_WIDTH - NAME_WIDTH - 3;
        // The text may have a reply of the server.
        let mut rows = wrap(&human::printable(&self.text), room);
        if let Some(remedy) = self.remedy {
            let mut first = "→ ";
            for row in wrap(remedy, room - 2) {
                rows.push(format!("{first}{row}"));
                first = "  ";
            }
        }
        let mut rendered = String::new();
        for (i, row) in rows.iter().enumerate() {
            let name = if i == 0 { self.check.as_str() } else { "" };
            let sign = if i == 0 { sign.as_str() } else { " " };
            rendered.push_str(&format!("{sign} {name:<NAME_WIDTH$} {row}\n"));
        }
        rendered
    }
}

/// The summary below the lines.
pub(crate) fn summary(lines: &[CheckLine]) -> String {
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    let plural = |count: usize, name: &str| format!("{count} {name}{}", if count == 1 { "" } else { "s" });
    let mut text = format!(
        "{}: {} failed, {}",
        plural(lines.len(), "check"),
        count(Verdict::Failed),
        plural(count(Verdict::Warning), "warning")
    );
    if count(Verdict::Skipped) > 0 {
        text.push_str(&format!(", {} not made", count(Verdict::Skipped)));
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    for word in text.split_whitespace() {
        let row = rows.last_mut().expect("there is a first row");
        if row.is_empty() {
            row.push_str(word);
        } else if row.chars().count() + 1 + word.chars().count() <= width {
            row.push(' ');
            row.push_str(word);
        } else {
            rows.push(word.to_owned());
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_verdict_name_text_and_remedy() {
        let mut shown = Vec::new();
        let mut show = |line: &CheckLine| shown.push(line.render(false));
        let mut report = Report::new(&mut show);
        report.ok("clock", "all agree");
        assert!(!report.has_failed());
        report.fail("control 192.0.2.1:21", Finding::PortSilent, "no answer in 5 s");
        assert!(report.has_failed());
        let lines = report.into_lines();
        assert_eq!(shown[0], format!("✓ {:<30} all agree\n", "clock"));
        assert!(shown[1].starts_with("✗ control 192.0.2.1:21           no answer in 5 s\n"), "{}", shown[1]);
        assert!(shown[1].contains("\n                                 → a firewall drops"), "{}", shown[1]);
        assert_eq!(summary(&lines), "2 checks: 1 failed, 0 warnings");
    }

    #[test]
    fn json_names_the_finding() {
        let mut show = |_: &CheckLine| {};
        let mut report = Report::new(&mut show);
        report.warn("certificate", Finding::CertificateExpiresSoon, "in 5 d");
        let json = serde_json::to_value(report.into_lines()).unwrap();
        assert_eq!(json[0]["verdict"], "warning");
        assert_eq!(json[0]["finding"], "certificate_expires_soon");
    }

    #[test]
    fn no_line_is_longer_than_the_width() {
        let text = "word ".repeat(60);
        let line = CheckLine {
            check: "x".to_owned(),
            verdict: Verdict::Failed,
            finding: None,
            text,
            remedy: Some(Finding::ResetConfirmed.remedy()),
        };
        assert!(line.render(false).lines().all(|row| row.chars().count() <= LINE_WIDTH));
    }
}
