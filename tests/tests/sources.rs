//! The source files keep the rules of CONTRIBUTING.md that a program can check.

mod sources {
    pub(crate) mod files;
    pub(crate) mod modules;
}

use std::collections::BTreeMap;

use self::sources::{
    files::{self, SourceFile},
    modules,
};

/// Longest line, in characters: rustfmt's `max_width`, which does not hold for comments and strings.
const MAX_WIDTH: usize = 110;

/// Crates whose top-level modules must not form a cycle.
const CRATES: [&str; 6] = ["authd", "bench", "common", "ftpctl", "ftpd", "tests"];

#[test]
fn top_level_modules_form_no_cycle() {
    for name in CRATES {
        let files = files::of_crate(name);
        assert!(!files.is_empty(), "{name} has no source files");
        let graph = modules::dependencies(&files);
        if let Some(cycle) = modules::cycle(&graph) {
            let steps: Vec<_> = cycle
                .iter()
                .zip(cycle.iter().cycle().skip(1))
                .map(|(from, to)| format!("{from} uses {to} in {}", graph[from][to].join(", ")))
                .collect();
            panic!("the modules of {name} form a cycle:\n  {}", steps.join("\n  "));
        }
    }
}

/// ARCHITECTURE.md draws the modules of `ftpd` in lines: a module uses only modules on lines below its own.
#[test]
fn the_layers_in_architecture_md_are_those_of_the_code() {
    let graph = modules::dependencies(&files::of_crate("ftpd"));
    let layers = layers(&files::read_text("ARCHITECTURE.md"));
    // `main` is not in the graph; modules that use nothing are named in the text below the lines.
    let drawn = |module: &str| layers.iter().position(|line| line.iter().any(|drawn| drawn == module));
    let mut wrong = Vec::new();
    for (module, used) in &graph {
        let Some(line) = drawn(module) else { continue };
        let is_above = |used: &&String| drawn(used).is_some_and(|used| used <= line);
        wrong.extend(used.keys().filter(is_above).map(|used| format!("{module} uses {used}")));
    }
    assert!(wrong.is_empty(), "ARCHITECTURE.md draws these the other way round: {wrong:#?}");
    let unknown: Vec<_> = layers.iter().flatten().filter(|module| !graph.contains_key(*module)).collect();
    assert_eq!(unknown, ["main"], "ARCHITECTURE.md draws modules that do not exist");
    let missing: Vec<_> = graph.keys().filter(|module| drawn(module).is_none()).collect();
    let named = ["active_mode", "connection_log", "node_address", "transfer_log"];
    assert_eq!(missing, named, "ARCHITECTURE.md lacks modules");
}

/// The names in each line of the drawing: the words before its explanation.
fn layers(text: &str) -> Vec<Vec<String>> {
    let section = text.split("## Module layers of `ftpd`").nth(1).expect("the section of layers");
    let drawing = section.split("```").nth(1).expect("the drawing");
    let names = |line: &str| line.split("   ").next().unwrap_or_default().to_owned();
    drawing.trim().lines().map(|line| names(line).split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn a_type_name_means_one_type_in_its_crate() {
    for name in CRATES {
        let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in files::of_crate(name) {
            for found in modules::type_names(&file.text) {
                defined.entry(found).or_default().push(file.path.clone());
            }
        }
        let twice: Vec<_> = defined.iter().filter(|(_, files)| files.len() > 1).collect();
        assert!(twice.is_empty(), "{name} has two types of one name: {twice:#?}");
    }
}

#[test]
fn lines_are_at_most_110_characters() {
    let long: Vec<_> = files::all().into_iter().flat_map(|file| long_lines(&file)).collect();
    assert!(long.is_empty(), "lines of more than {MAX_WIDTH} characters:\n{}", long.join("\n"));
}

/// Web addresses cannot be wrapped, and nixfmt leaves texts in Nix files as they are.
fn long_lines(file: &SourceFile) -> Vec<String> {
    let is_nix = file.path.ends_with(".nix");
    let may_be_long = |line: &str| line.contains("://") || is_nix && line.contains('"');
    let is_long = |line: &str| line.chars().count() > MAX_WIDTH && !may_be_long(line);
    let lines = file.text.lines().enumerate().filter(|(_, line)| is_long(line));
    lines.map(|(at, line)| format!("{}:{}: {}", file.path, at + 1, line.chars().count())).collect()
}

#[test]
fn each_rust_file_says_its_purpose_in_its_first_line() {
    for file in files::all().into_iter().filter(|file| file.path.ends_with(".rs")) {
        let first = file.text.lines().next().unwrap_or_default();
        let is_target_of_the_fuzzer = file.path.contains("fuzz_targets");
        assert!(first.starts_with("//!") || is_target_of_the_fuzzer, "{}: {first}", file.path);
    }
}

/// The checks above can fail.
mod checks {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.to_owned(), module: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_cycle_through_three_modules_is_found_with_its_files() {
        let files = [
            file("a.rs", "use crate::{b::{C, D}, e};"),
            file("b/mod.rs", "//! Nothing."),
            file("b/inner.rs", "fn f() -> super::super::c::X { crate::c::x() }"),
            file("c.rs", "use super::a::A;"),
            file("e.rs", "// use crate::a;\nfn f() {}\n#[cfg(test)]\nmod tests { use crate::a; }"),
        ];
        let graph = modules::dependencies(&files);
        assert_eq!(graph["b"]["c"], ["b/inner.rs"]);
        assert!(graph["e"].is_empty(), "comments and tests do not count: {graph:?}");
        let mut cycle = modules::cycle(&graph).expect("a uses b, b uses c, c uses a");
        cycle.sort();
        assert_eq!(cycle, ["a", "b", "c"]);
        assert_eq!(modules::cycle(&modules::dependencies(&files[..3])), None);
    }

    #[test]
    fn each_kind_of_type_is_found_but_no_associated_type() {
        let text = "pub(crate) struct A<T>(T);\nenum B {}\npub trait C {}\ntype D = u8;\n\
                    impl C for X {\n    type Err = ();\n}\nstruct E;\n";
        assert_eq!(modules::type_names(text), ["A", "B", "C", "D", "E"]);
    }

    #[test]
    fn a_long_line_is_found_by_its_characters() {
        let text = format!("{}\n{}\n", "ä".repeat(MAX_WIDTH), "a".repeat(MAX_WIDTH + 1));
        assert_eq!(long_lines(&file("a.rs", &text)), ["a.rs:2: 111"]);
    }
}
