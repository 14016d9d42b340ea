//! Tests of reading directories and trees.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use super::*;
use crate::listing::{Entry, EntryKind};
use crate::work::progress::Progress;

fn listed(site: &Site, directory: &str) -> Vec<Entry> {
    let mut entries: Vec<_> = site.jail.entries(&path(directory)).unwrap().collect::<Result<_, _>>().unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

#[test]
fn entries_omit_internal_names_and_agree_with_mlst() {
    let site = Site::new();
    fs::create_dir_all(site.home("sub/dir")).unwrap();
    fs::write(site.home("sub/file"), "12345").unwrap();
    fs::write(site.home("sub/.hidden-by-users"), "").unwrap();
    fs::write(site.home("sub/.nfs000123"), "").unwrap();
    fs::write(site.home("sub/.ftpd-partial-7"), "").unwrap();
    symlink("file", site.home("sub/link")).unwrap();
    symlink("/sub/dir", site.home("sub/link-to-dir")).unwrap();
    symlink("../../outside", site.home("sub/out")).unwrap();
    nix::unistd::mkfifo(&site.home("sub/fifo"), Mode::S_IRWXU).unwrap();
    let seen: Vec<_> = listed(&site, "/sub")
        .into_iter()
        .map(|entry| (String::from_utf8(entry.name).unwrap(), entry.kind, entry.link_target))
        .collect();
    let expected = [
        (".hidden-by-users", EntryKind::File, None),
        ("dir", EntryKind::Directory, None),
        ("fifo", EntryKind::Other, None),
        ("file", EntryKind::File, None),
        ("link", EntryKind::Symlink, Some(b"file".to_vec())),
        ("link-to-dir", EntryKind::Symlink, Some(b"/sub/dir".to_vec())),
        ("out", EntryKind::Symlink, Some(b"../../outside".to_vec())),
    ]
    .map(|(name, kind, target)| (name.to_owned(), kind, target));
    assert_eq!(seen, expected);
    for entry in listed(&site, "/sub") {
        let name = path("/sub").join(&entry.name).unwrap();
        assert_eq!(site.jail.entry(&name).unwrap(), entry, "MLST and MLSD agree");
    }
    let kinds = |site: &Site| listed(site, "/sub").into_iter().map(|entry| entry.kind).collect::<Vec<_>>();
    let mut site = site;
    site.jail.resolve_links();
    let (file, directory) = (EntryKind::File, EntryKind::Directory);
    assert_eq!(kinds(&site), [file, directory, EntryKind::Other, file, file, directory, EntryKind::Symlink]);
    for entry in listed(&site, "/sub") {
        let name = path("/sub").join(&entry.name).unwrap();
        assert_eq!(site.jail.entry(&name).unwrap(), entry, "MLST and MLSD agree");
    }
    let root = site.jail.entry(&VirtualPath::root()).unwrap();
    assert_eq!((root.name.as_slice(), root.kind), (&b"/"[..], EntryKind::Directory));
}

#[test]
fn large_directory_returns_every_name_once() {
    let site = Site::new();
    let names: BTreeSet<_> = (0..1500).map(|n| format!("a name of some length {n}")).collect();
    names.iter().for_each(|name| fs::write(site.home(name), "x").unwrap());
    let seen: Vec<_> = listed(&site, "/");
    assert_eq!(seen.len(), names.len());
    let seen: BTreeSet<_> = seen.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect();
    assert_eq!(seen, names);
}

#[test]
fn entries_removed_during_the_iteration_are_omitted() {
    let site = Site::new();
    (0..10).for_each(|n| fs::write(site.home(&n.to_string()), "x").unwrap());
    let mut entries = site.jail.entries(&VirtualPath::root()).unwrap();
    let first = entries.next().unwrap().unwrap();
    fs::remove_dir_all(site.home("")).unwrap();
    assert_eq!(first.kind, EntryKind::File);
    assert_eq!(entries.count(), 0);
}

#[test]
fn only_returns_entries_that_the_filter_accepts() {
    let site = Site::new();
    for name in ["a", "b", "ab"] {
        fs::write(site.home(name), "x").unwrap();
    }
    let entries = site.jail.entries(&VirtualPath::root()).unwrap().only(|name| name.starts_with(b"a"));
    let names: BTreeSet<_> = entries.map(|entry| String::from_utf8(entry.unwrap().name).unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["a".to_owned(), "ab".to_owned()]));
}

#[test]
fn cancelled_iteration_fails_even_if_the_filter_accepts_no_name() {
    let site = Site::new();
    fs::create_dir_all(site.home("a/b")).unwrap();
    let progress = Progress::default();
    let root = VirtualPath::root();
    let mut entries = site.jail.entries(&root).unwrap().only(|_| false).until_cancelled(&progress);
    let mut walk = site.jail.walk(&root, 9, &progress, |_| true).unwrap();
    // The root, then its only entry.
    assert!(walk.by_ref().take(2).all(|step| step.is_ok()));
    progress.cancel();
    assert!(matches!(entries.next(), Some(Err(FileError::Cancelled))));
    assert!(matches!(walk.next(), Some(Err(FileError::Cancelled))));
}

#[test]
fn walk_enters_directories_down_to_max_depth_but_no_links() {
    let site = Site::new();
    fs::create_dir_all(site.home("a/b/c/d")).unwrap();
    fs::create_dir(site.home("e")).unwrap();
    fs::write(site.home("a/file"), "x").unwrap();
    symlink("/a", site.home("a/b/loop")).unwrap();
    let walk = |depth| {
        let mut lines: Vec<(String, BTreeSet<String>)> = Vec::new();
        for step in site.jail.walk(&VirtualPath::root(), depth, &Progress::default(), |_| true).unwrap() {
            match step.unwrap() {
                WalkStep::Directory(path) => lines.push((path.to_string(), BTreeSet::new())),
                WalkStep::Entry(entry) => {
                    let name = String::from_utf8(entry.name).unwrap();
                    assert!(lines.last_mut().unwrap().1.insert(name));
                }
            }
        }
        lines
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let all: Vec<(String, BTreeSet<String>)> = walk(10);
    let depth_first: Vec<_> =
        all.iter().map(|(path, _)| path.as_str()).filter(|path| path.starts_with("/a")).collect();
    assert_eq!(depth_first, ["/a", "/a/b", "/a/b/c", "/a/b/c/d"]);
    assert_eq!(all.len(), 6);
    assert_eq!(all[0], ("/".into(), set(&["a", "e"])));
    assert!(all.contains(&("/a".into(), set(&["b", "file"]))));
    assert!(all.contains(&("/a/b".into(), set(&["c", "loop"]))));
    let paths = |depth| walk(depth).into_iter().map(|(path, _)| path).collect::<BTreeSet<_>>();
    assert_eq!(paths(0), set(&["/"]));
    assert_eq!(paths(1), set(&["/", "/a", "/e"]));
    assert_eq!(paths(2), set(&["/", "/a", "/e", "/a/b"]));
}
