//! The dependencies between a crate's top-level modules, read from the text of its files.

use std::collections::{BTreeMap, BTreeSet};

use super::files::SourceFile;

/// Module → modules that it uses → files in which it does.
pub(crate) type Graph = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// Reads paths that begin with `crate::`, or with as many `super::` as lead to the crate. The crate's root
/// (`lib.rs`, `main.rs`) and further programs (`bin/`) may use every module and are left out.
pub(crate) fn dependencies(files: &[SourceFile]) -> Graph {
    let mut graph = Graph::new();
    for file in files {
        let module = file.module.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        if ["lib", "main", "bin"].contains(&module.as_str()) {
            continue;
        }
        let used = graph.entry(module.clone()).or_default();
        for name in used_modules(&file.module, &code(&file.text)) {
            let files = used.entry(name.clone()).or_default();
            if name != module && !files.contains(&file.path) {
                files.push(file.path.clone());
            }
        }
        used.retain(|name, _| *name != module);
    }
    // Macros and items of the crate's root look like modules.
    let modules: BTreeSet<String> = graph.keys().cloned().collect();
    graph.values_mut().for_each(|used| used.retain(|name, _| modules.contains(name)));
    graph
}

/// The text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn used_modules(file: &str, code: &str) -> BTreeSet<String> {
    let is_directory_of_modules = file.ends_with("/mod.rs");
    let depth = file.matches('/').count() + usize::from(!is_directory_of_modules);
    let mut used = BTreeSet::new();
    for root in ["crate::".to_owned(), "super::".repeat(depth)] {
        let mut rest = code;
        while let Some(at) = rest.find(&root) {
            let before = rest[..at].chars().next_back();
            rest = &rest[at + root.len()..];
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                used.extend(first_names(rest));
            }
        }
    }
    used
}

/// `a` of `a::b`; `a` and `c` of `{a::{b, d}, c::e}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())].to_owned()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut names, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[begin..at]));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The modules of one cycle, each using the next and the last one the first; `None` if there is no cycle.
pub(crate) fn cycle(graph: &Graph) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| visit(graph, module, &mut Vec::new(), &mut done))
}

fn visit(
    graph: &Graph,
    module: &str,
    path: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(at) = path.iter().position(|earlier| earlier == module) {
        return Some(path[at..].to_vec());
    }
    if done.contains(module) {
        return None;
    }
    path.push(module.to_owned());
    let found = graph[module].keys().find_map(|used| visit(graph, used, path, done));
    path.pop();
    done.insert(module.to_owned());
    found
}

/// The names of structs, enums, traits and type aliases that stand at the beginning of a line.
pub(crate) fn type_names(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| {
        let line = match line.strip_prefix("pub") {
            Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
            Some(rest) => rest.trim_start(),
            None => line,
        };
        let name = ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| line.strip_prefix(kind))?;
        Some(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
    });
    names.collect()
}
