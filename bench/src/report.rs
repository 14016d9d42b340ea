//! Results as Markdown: first the goals, then a table for each workload. Pure.

use std::{collections::BTreeSet, fmt::Write as _};

use serde::{Serialize, Serializer};

use crate::{
    goals::{Bound, GOALS, Goal},
    machine::Conditions,
    servers::ServerKind,
    statistics::{Summary, ratio, summary},
    workloads::{Figures, WORKLOADS, Workload},
};

/// All results of a run, and its conditions.
#[derive(Serialize)]
pub(crate) struct Results {
    /// Revision of the repository.
    pub revision: String,
    /// Date and time in UTC.
    pub date: String,
    pub conditions: Conditions,
    pub versions: Vec<String>,
    pub rows: Vec<Row>,
}

/// Results of one server in one workload.
#[derive(Serialize)]
pub(crate) struct Row {
    pub workload: &'static str,
    pub encrypted: bool,
    #[serde(serialize_with = "by_name")]
    pub server: ServerKind,
    /// Figures of each round. The same index means the same round for all servers.
    pub rounds: Vec<Figures>,
    /// The error that ended the rounds early.
    pub error: Option<String>,
}

fn by_name<S: Serializer>(kind: &ServerKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

impl Row {
    fn values(&self, figure: &str) -> Vec<f64> {
        self.rounds.iter().map(|round| round.get(figure).copied().unwrap_or(f64::NAN)).collect()
    }

    fn summary(&self, figure: &str) -> Option<Summary> {
        summary(self.values(figure))
    }
}

impl Results {
    fn row(&self, workload: &str, encrypted: bool, server: ServerKind) -> Option<&Row> {
        let is = |row: &&Row| (row.workload, row.encrypted, row.server) == (workload, encrypted, server);
        self.rows.iter().find(is)
    }

    /// Returns the report.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        let Conditions { cpu, cpus, memory_gib, kernel, network, pinning, files } = &self.conditions;
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            out,
            "* Revision {}, {}\n* {cpu}, {cpus} CPUs, {memory_gib} GiB, Linux {kernel}, files on {files}\n\
             * Network: {network}\n* CPUs: {pinning}\n* Other servers: {}",
            self.revision,
            self.date,
            if self.versions.is_empty() { "none".to_owned() } else { self.versions.join(", ") },
        );
        if let Some(noise) = self.noise() {
            let _ = writeln!(out, "* {noise}");
        }
        self.goals(&mut out);
        for workload in WORKLOADS {
            for &encrypted in workload.modes {
                self.table(workload, encrypted, &mut out);
            }
        }
        out
    }

    /// Describes the machine's other work and the spread of the rounds.
    fn noise(&self) -> Option<String> {
        let other = summary(self.rows.iter().flat_map(|row| row.values("other cores")))?;
        let spread = |row: &Row| {
            let cpu = row.summary("cpu")?;
            (row.rounds.len() > 1).then(|| (cpu.most - cpu.least) / cpu.median)
        };
        let spread = summary(self.rows.iter().filter_map(spread));
        let spread = spread.map_or_else(String::new, |spread| {
            format!(
                "; CPU figures vary by {:.0} % of their median (median of all rows; at most {:.0} %)",
                100.0 * spread.median,
                100.0 * spread.most
            )
        });
        Some(format!(
            "Noise: other work used {} cores in the median round (at most {}){spread}",
            number(other.median),
            number(other.most)
        ))
    }

    fn goals(&self, out: &mut String) {
        let lines: Vec<String> = GOALS.iter().filter_map(|goal| self.goal(goal)).collect();
        if lines.is_empty() {
            return;
        }
        out.push_str(
            "\n## Goals\n\n| workload | ours | compared with | goal | actual | |\n\
             |---|---|---|---|---|---|\n",
        );
        out.extend(lines);
    }

    /// Returns the table line of a goal; `None` if the run did not measure its servers.
    fn goal(&self, goal: &Goal) -> Option<String> {
        let row = self.row(goal.workload, goal.encrypted, goal.server)?;
        let workload = WORKLOADS.iter().find(|workload| workload.name == goal.workload)?;
        let ours = row.summary(goal.figure)?;
        let unit = match goal.figure {
            "cpu" => workload.cpu_unit,
            "rate" => workload.rate_unit,
            figure => figure,
        };
        let compare = |kind: ServerKind| {
            let other = self.row(goal.workload, goal.encrypted, kind)?;
            let ratio = ratio(&row.values(goal.figure), &other.values(goal.figure))?;
            let measure = format!("{} {}", kind.name(), number(other.summary(goal.figure)?.median));
            Some((measure, (ratio, " ×")))
        };
        let (measure, wanted, (actual, sign)) = match goal.bound {
            Bound::Times(most, kind) => {
                let (measure, actual) = compare(kind)?;
                (measure, format!("≤ {most} ×"), actual)
            }
            Bound::TimesAtLeast(least, kind) => {
                let (measure, actual) = compare(kind)?;
                (measure, format!("≥ {least} ×"), actual)
            }
            Bound::AtMost(most) => (String::new(), format!("≤ {most}"), (ours, "")),
            Bound::AtLeast(least) => (String::new(), format!("≥ {least}"), (ours, "")),
        };
        let outcome = if goal.bound.is_met(actual.median) { "met" } else { "**missed**" };
        Some(format!(
            "| {} {} | {} {} {unit} | {measure} | {wanted} | {}{sign} | {outcome} |\n",
            goal.workload,
            mode(goal.encrypted),
            goal.server.name(),
            number(ours.median),
            range(&actual),
        ))
    }

    fn table(&self, workload: &Workload, encrypted: bool, out: &mut String) {
        let rows: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.workload == workload.name && row.encrypted == encrypted)
            .collect();
        let Some(first) = rows.first() else { return };
        let names: BTreeSet<&String> =
            rows.iter().flat_map(|row| &row.rounds).flat_map(|round| round.keys()).collect();
        let extra_columns: Vec<&String> =
            names.into_iter().filter(|name| !["cpu", "rate"].contains(&name.as_str())).collect();
        let _ = write!(
            out,
            "\n## {} {}: {}\n\n| server | CPU {} | × {} | {} |",
            workload.name,
            mode(encrypted),
            workload.about,
            workload.cpu_unit,
            first.server.name(),
            workload.rate_unit
        );
        for name in &extra_columns {
            let _ = write!(out, " {name} |");
        }
        let _ = writeln!(out, "\n|---|{}", "---|".repeat(3 + extra_columns.len()));
        for row in &rows {
            let _ = write!(out, "| {} |", row.server.name());
            if let (None, Some(error)) = (row.rounds.first(), &row.error) {
                let _ = writeln!(out, " {} |", error.replace(['|', '\n'], " "));
                continue;
            }
            let cell = |summary: Option<Summary>| summary.map_or_else(String::new, |s| range(&s));
            let times = ratio(&row.values("cpu"), &first.values("cpu"));
            let times = times.map_or_else(String::new, |times| number(times.median));
            let _ = write!(out, " {} | {times} | {} |", cell(row.summary("cpu")), cell(row.summary("rate")));
            for name in &extra_columns {
                let value = row.summary(name).map_or_else(String::new, |s| number(s.median));
                let _ = write!(out, " {value} |");
            }
            out.push('\n');
        }
    }
}

fn mode(encrypted: bool) -> &'static str {
    if encrypted { "FTPS" } else { "FTP" }
}

/// Formats `median (least–most)`, or only the median if all values are equal.
fn range(summary: &Summary) -> String {
    let Summary { median, least, most } = *summary;
    if least == most {
        return number(median);
    }
    format!("{} ({}–{})", number(median), number(least), number(most))
}

/// Formats a number with about three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(workload: &'static str, server: ServerKind, figure: &str, values: &[f64]) -> Row {
        let rounds = values.iter().map(|value| Figures::from([(figure.to_owned(), *value)])).collect();
        Row { workload, encrypted: false, server, rounds, error: None }
    }

    fn results(rows: Vec<Row>) -> Results {
        let conditions = Conditions {
            cpu: "a CPU".to_owned(),
            cpus: 2,
            memory_gib: 1,
            kernel: "6".to_owned(),
            network: "own".to_owned(),
            pinning: "none".to_owned(),
            files: "tmpfs".to_owned(),
        };
        Results { revision: "r".to_owned(), date: "d".to_owned(), conditions, versions: Vec::new(), rows }
    }

    #[test]
    fn a_goal_compares_two_servers_round_by_round() {
        let text = results(vec![
            row("retr-1", ServerKind::Ftpd, "cpu", &[0.1, 0.2, 0.3]),
            row("retr-1", ServerKind::Null, "cpu", &[0.1, 0.2, 0.2]),
        ])
        .markdown();
        let met = "| retr-1 FTP | ftpd 0.200 s/GiB | null 0.200 | ≤ 1.05 × | 1.00 (1.00–1.50) × | met |";
        assert!(text.contains(met), "{text}");
        assert!(text.contains("| null | 0.200 (0.100–0.200) | 1.00 |"), "{text}");
    }

    #[test]
    fn a_missed_goal_is_marked_and_an_unmeasured_goal_is_left_out() {
        let text = results(vec![row("list", ServerKind::Ftpd, "first byte ms", &[7.0])]).markdown();
        assert!(
            text.contains("| list FTP | ftpd 7.00 first byte ms |  | ≤ 5 | 7.00 | **missed** |"),
            "{text}"
        );
        assert!(!text.contains("mlsd"), "{text}");
    }
}
