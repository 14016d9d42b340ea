//! Results as Markdown: the goals first, then a table a workload. Pure.

use std::{collections::BTreeSet, fmt::Write as _};

use serde::{Serialize, Serializer};

use crate::{
    goals::{Bound, GOALS, Goal},
    machine::Conditions,
    servers::Kind,
    statistics::{Summary, ratio, summary},
    workloads::{Figures, WORKLOADS, Workload},
};

/// What a run measured, under which conditions.
#[derive(Serialize)]
pub struct Results {
    /// Of the repository.
    pub revision: String,
    /// UTC.
    pub date: String,
    pub conditions: Conditions,
    pub versions: Vec<String>,
    pub rows: Vec<Row>,
}

/// One server in one workload.
#[derive(Serialize)]
pub struct Row {
    pub workload: &'static str,
    pub encrypted: bool,
    #[serde(serialize_with = "by_name")]
    pub server: Kind,
    /// In order; rounds of the same number ran after each other.
    pub rounds: Vec<Figures>,
    /// Why there are no more.
    pub error: Option<String>,
}

fn by_name<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
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
    fn row(&self, workload: &str, encrypted: bool, server: Kind) -> Option<&Row> {
        let is = |row: &&Row| (row.workload, row.encrypted, row.server) == (workload, encrypted, server);
        self.rows.iter().find(is)
    }

    /// All of it.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let Conditions { cpu, cpus, memory_gib, kernel, network, pinning, files } = &self.conditions;
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "* Revision {}, {}\n* {cpu}, {cpus} CPUs, {memory_gib} GiB, Linux {kernel}, files on {files}\n\
             * Network: {network}\n* CPUs: {pinning}\n* Beside it: {}",
            self.revision,
            self.date,
            if self.versions.is_empty() { "nothing".to_owned() } else { self.versions.join(", ") },
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

    /// How much the machine did beside, and how far rounds differ.
    fn noise(&self) -> Option<String> {
        let other = summary(self.rows.iter().flat_map(|row| row.values("other cores")))?;
        let spread = |row: &Row| {
            let cpu = row.summary("cpu")?;
            (row.rounds.len() > 1).then(|| (cpu.most - cpu.least) / cpu.median)
        };
        let spread = summary(self.rows.iter().filter_map(spread));
        let spread = spread.map_or_else(String::new, |spread| {
            format!(
                "; CPU figures range over {:.0} % of their median, in the median (at worst {:.0} %)",
                100.0 * spread.median,
                100.0 * spread.most
            )
        });
        Some(format!(
            "Noise: other work took {} cores in the median round (at most {}){spread}",
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
            "\n## Goals\n\n| workload | ours | measured by | goal | is | |\n|---|---|---|---|---|---|\n",
        );
        out.extend(lines);
    }

    /// One line; `None` if it was not measured.
    fn goal(&self, goal: &Goal) -> Option<String> {
        let row = self.row(goal.workload, goal.encrypted, goal.of)?;
        let workload = WORKLOADS.iter().find(|workload| workload.name == goal.workload)?;
        let ours = row.summary(goal.figure)?;
        let unit = match goal.figure {
            "cpu" => workload.unit,
            "rate" => workload.rate,
            figure => figure,
        };
        let times = |kind: Kind| {
            let other = self.row(goal.workload, goal.encrypted, kind)?;
            let ratio = ratio(&row.values(goal.figure), &other.values(goal.figure))?;
            let measure = format!("{} {}", kind.name(), number(other.summary(goal.figure)?.median));
            Some((measure, (ratio, " ×")))
        };
        let (measure, wanted, is) = match goal.bound {
            Bound::Times(most, kind) => {
                let (measure, is) = times(kind)?;
                (measure, format!("≤ {most} ×"), is)
            }
            Bound::TimesAtLeast(least, kind) => {
                let (measure, is) = times(kind)?;
                (measure, format!("≥ {least} ×"), is)
            }
            Bound::AtMost(most) => (String::new(), format!("≤ {most}"), (ours, "")),
            Bound::AtLeast(least) => (String::new(), format!("≥ {least}"), (ours, "")),
        };
        let kept = if goal.bound.is_kept(is.0.median) { "met" } else { "**missed**" };
        Some(format!(
            "| {} {} | {} {} {unit} | {measure} | {wanted} | {}{} | {kept} |\n",
            goal.workload,
            mode(goal.encrypted),
            goal.of.name(),
            number(ours.median),
            range(&is.0),
            is.1,
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
        let beside: Vec<&String> =
            names.into_iter().filter(|name| !["cpu", "rate"].contains(&name.as_str())).collect();
        let _ = write!(
            out,
            "\n## {} {}: {}\n\n| server | CPU {} | × {} | {} |",
            workload.name,
            mode(encrypted),
            workload.about,
            workload.unit,
            first.server.name(),
            workload.rate
        );
        for name in &beside {
            let _ = write!(out, " {name} |");
        }
        let _ = writeln!(out, "\n|---|{}", "---|".repeat(3 + beside.len()));
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
            for name in &beside {
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

/// `median (least–most)`; the median alone if there is nothing else.
fn range(summary: &Summary) -> String {
    let Summary { median, least, most } = *summary;
    if least == most {
        return number(median);
    }
    format!("{} ({}–{})", number(median), number(least), number(most))
}

/// With as many digits as mean something.
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

    fn row(workload: &'static str, server: Kind, figure: &str, values: &[f64]) -> Row {
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
    fn a_goal_compares_rounds_with_each_other() {
        let text = results(vec![
            row("retr-1", Kind::Ftpd, "cpu", &[0.1, 0.2, 0.3]),
            row("retr-1", Kind::Null, "cpu", &[0.1, 0.2, 0.2]),
        ])
        .markdown();
        let met = "| retr-1 FTP | ftpd 0.200 s/GiB | null 0.200 | ≤ 1.05 × | 1.00 (1.00–1.50) × | met |";
        assert!(text.contains(met), "{text}");
        assert!(text.contains("| null | 0.200 (0.100–0.200) | 1.00 |"), "{text}");
    }

    #[test]
    fn a_missed_goal_says_so_and_one_that_was_not_measured_says_nothing() {
        let text = results(vec![row("list", Kind::Ftpd, "first byte ms", &[7.0])]).markdown();
        assert!(
            text.contains("| list FTP | ftpd 7.00 first byte ms |  | ≤ 5 | 7.00 | **missed** |"),
            "{text}"
        );
        assert!(!text.contains("mlsd"), "{text}");
    }
}
