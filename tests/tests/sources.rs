//! Properties of the source code that the compiler does not check.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The top-level modules of a crate. Each has the modules that it uses, with a file that does.
type ModuleUses = BTreeMap<String, BTreeMap<String, PathBuf>>;

#[test]
fn the_top_level_modules_of_a_crate_form_no_cycle() {
    for package in ["common", "ftpd", "authd"] {
        let uses = module_uses(&workspace().join(package).join("src"));
        assert!(uses.len() > 5, "{package} has only these modules: {uses:?}");
        let mut checked = BTreeSet::new();
        for module in uses.keys() {
            let cycle = find_cycle(&uses, module, &mut Vec::new(), &mut checked);
            assert!(cycle.is_none(), "modules of {package} use each other: {}", cycle.unwrap_or_default());
        }
    }
}

#[test]
fn a_cycle_is_found_and_shows_its_files() {
    let uses = |module: &str, used: &str| {
        (module.to_owned(), BTreeMap::from([(used.to_owned(), PathBuf::from(format!("{module}.rs")))]))
    };
    let modules = BTreeMap::from([uses("a", "b"), uses("b", "c"), uses("c", "b")]);
    let cycle = find_cycle(&modules, "a", &mut Vec::new(), &mut BTreeSet::new());
    assert_eq!(cycle.as_deref(), Some("b -> c (b.rs), c -> b (c.rs)"));
    let used: Vec<_> = used_modules("use crate::{a, b::{c, d}, e::F}; crate::g::h()").collect();
    assert_eq!(used, ["a", "b", "e", "g"]);
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns a cycle that can be reached from `module`. `path`: the modules on the way there; `checked`: modules
/// from which no cycle can be reached.
fn find_cycle<'u>(
    uses: &'u ModuleUses,
    module: &'u str,
    path: &mut Vec<&'u str>,
    checked: &mut BTreeSet<&'u str>,
) -> Option<String> {
    if let Some(start) = path.iter().position(|other| *other == module) {
        let cycle = path[start..].iter().zip(path[start + 1..].iter().chain([&module]));
        let edges = cycle.map(|(from, to)| format!("{from} -> {to} ({})", uses[*from][*to].display()));
        return Some(edges.collect::<Vec<_>>().join(", "));
    }
    if checked.contains(module) {
        return None;
    }
    path.push(module);
    for used in uses.get(module).into_iter().flat_map(BTreeMap::keys) {
        let cycle = find_cycle(uses, used, path, checked);
        if cycle.is_some() {
            return cycle;
        }
    }
    path.pop();
    checked.insert(module);
    None
}

fn module_uses(source: &Path) -> ModuleUses {
    let mut files = Vec::new();
    rust_files(source, &mut files);
    let mut uses = ModuleUses::new();
    for file in files {
        let relative = file.strip_prefix(source).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if matches!(module.as_str(), "main" | "lib") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
        let code = code.join("\n");
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let known = uses.entry(module.clone()).or_default();
        for used in used_modules(code).filter(|used| *used != module) {
            known.entry(used.to_owned()).or_insert_with(|| relative.to_owned());
        }
    }
    uses
}

/// Collects the files below `directory`, without unit tests.
fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() && name != "tests" {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs" {
            files.push(path);
        }
    }
}

/// The modules in `crate::module` and `crate::{module, other::{…}}`.
fn used_modules(code: &str) -> impl Iterator<Item = &str> {
    code.split("crate::").skip(1).flat_map(|path| match path.strip_prefix('{') {
        Some(group) => modules_of_group(group),
        None => vec![identifier(path)],
    })
}

/// The first identifiers of the items of a group, up to its closing brace.
fn modules_of_group(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut modules) = (0, 0, Vec::new());
    for (position, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                modules.push(identifier(&group[start..position]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                modules.push(identifier(&group[start..position]));
                start = position + 1;
            }
            _ => {}
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

fn identifier(path: &str) -> &str {
    let path = path.trim_start();
    let end = path.find(|character: char| !character.is_alphanumeric() && character != '_');
    &path[..end.unwrap_or(path.len())]
}
