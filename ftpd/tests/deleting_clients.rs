//! Clients that delete whole directories, or all files that match a pattern, with their own command
//! sequences: the storage must keep everything that was not meant to be deleted.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use cluster_tests::{
    clients::Clients,
    content::sha256,
    dialogue::Dialogue,
    node::{Node, NodeBuilder},
};

/// All paths below `directory` with their content. Symbolic links are not followed.
fn tree(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            let content = if kind.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                directories.push(path.clone());
                "directory".to_owned()
            } else {
                sha256(fs::read(&path).unwrap())
            };
            found.insert(path.strip_prefix(directory).unwrap().to_owned(), content);
        }
    }
    found
}

/// `tree` without `name` and everything below it.
fn without(mut tree: BTreeMap<PathBuf, String>, name: &str) -> BTreeMap<PathBuf, String> {
    tree.retain(|path, _| !path.starts_with(name));
    tree
}

/// A directory to delete, which contains links to another directory and to itself.
fn site_with_links() -> NodeBuilder {
    let builder = Node::standalone();
    let root = builder.root();
    for (name, content) in [("keep/important", "important"), ("site/f", "f"), ("site/inner/g", "g")] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), content).unwrap();
    }
    for (name, target) in [
        ("link", "../keep"),
        ("absolute", "/keep"),
        ("to-file", "../keep/important"),
        ("loop", "."),
        ("broken", "gone"),
        ("two words", "../keep/../keep ;type=dir; x"),
    ] {
        symlink(target, root.join("site").join(name)).unwrap();
    }
    builder
}

/// Runs `delete`, which removes `site`, and asserts that everything else is unchanged.
fn assert_only_the_site_is_removed(what: &str, delete: impl FnOnce(&Node)) {
    let node = site_with_links().start();
    let before = tree(node.root());
    delete(&node);
    assert_eq!(tree(node.root()), without(before, "site"), "{what}");
}

fn lftp(node: &Node, commands: &str) {
    let clients = Clients::with_home();
    let script = format!(
        "set ssl:verify-certificate no; set net:max-retries 1; set net:timeout 20; set cmd:fail-exit yes; \
         open -u demo,x -p {} {}; {commands}; bye",
        node.address.port(),
        node.address.ip()
    );
    clients.run("lftp", ["--norc", "-c", &script]);
}

fn rclone(node: &Node, arguments: &[&str]) -> String {
    let clients = Clients::with_home();
    let configuration = clients.write("rclone.conf", "");
    let (host, port) = (node.address.ip().to_string(), node.address.port().to_string());
    let password = clients.run("rclone", ["obscure", "x"]).text();
    let common = [
        "--config",
        configuration.to_str().unwrap(),
        "--retries=1",
        "--ftp-host",
        &host,
        "--ftp-port",
        &port,
        "--ftp-user=demo",
        "--ftp-pass",
        password.trim(),
    ];
    clients.run("rclone", arguments.iter().chain(&common)).text()
}

#[test]
fn lftp_rm_r_keeps_targets_of_links() {
    for mlsd in ["yes", "no"] {
        assert_only_the_site_is_removed(mlsd, |node| {
            lftp(node, &format!("set ftp:use-mlsd {mlsd}; rm -r site"))
        });
    }
}

#[test]
fn rclone_purge_keeps_targets_of_links() {
    for mlsd in ["--ftp-disable-mlsd=false", "--ftp-disable-mlsd=true"] {
        assert_only_the_site_is_removed(mlsd, |node| _ = rclone(node, &["purge", ":ftp:site", mlsd]));
    }
}

#[test]
fn rclone_recursive_listing_ends_despite_link_loops() {
    let node = site_with_links().start();
    for mlsd in ["--ftp-disable-mlsd=false", "--ftp-disable-mlsd=true"] {
        let shown = rclone(&node, &["lsf", "-R", ":ftp:", mlsd]);
        let mut directories: Vec<_> = shown.lines().filter(|line| line.ends_with('/')).collect();
        directories.sort_unstable();
        assert_eq!(directories, ["keep/", "site/", "site/inner/"], "{mlsd}: {shown}");
        for file in ["keep/important", "site/f", "site/inner/g"] {
            assert!(shown.lines().any(|line| line == file), "{mlsd}: {shown}");
        }
        // A link is shown in at most one line.
        assert!(shown.lines().count() <= tree(node.root()).len(), "{mlsd}: {shown}");
    }
}

/// The part of a LIST line after its eight columns: the name and, for a link, its target.
fn after_columns(line: &str) -> &str {
    let mut rest = line;
    for _ in 0..8 {
        rest = rest.trim_start();
        rest = &rest[rest.find(' ').unwrap()..];
    }
    &rest[1..]
}

/// basic-ftp's `clearWorkingDir`: enters directories and deletes everything else.
fn clear_working_directory(session: &mut Dialogue, command: &str) {
    let listing = String::from_utf8(session.receive(command)).unwrap();
    for line in listing.lines() {
        let (name, is_directory) = match command {
            "MLSD" => {
                let (facts, name) = line.split_once(' ').unwrap();
                if facts.contains("type=cdir;") || facts.contains("type=pdir;") {
                    continue;
                }
                (name, facts.split(';').any(|fact| fact == "type=dir"))
            }
            _ => {
                let name = after_columns(line);
                if matches!(name, "." | "..") {
                    continue;
                }
                let name = if line.starts_with('l') { name.split(" -> ").next().unwrap() } else { name };
                (name, line.starts_with('d'))
            }
        };
        if is_directory {
            session.command(&format!("CWD {name}"), 250);
            clear_working_directory(session, command);
            session.command("CDUP", 250);
            session.command(&format!("RMD {name}"), 250);
        } else {
            session.command(&format!("DELE {name}"), 250);
        }
    }
}

#[test]
fn basic_ftp_remove_dir_keeps_targets_of_links() {
    for command in ["MLSD", "LIST -a", "LIST"] {
        assert_only_the_site_is_removed(command, |node| {
            let mut session = node.login("demo", "x");
            session.command("PWD", 257);
            session.command("CWD site", 250);
            clear_working_directory(&mut session, command);
            session.command("CDUP", 250);
            session.command("RMD site", 250);
            session.command("CWD /", 250);
            session.quit();
        });
    }
}

/// The commands of tnftp's `mdelete *` without confirmation.
#[test]
fn tnftp_mdelete_spares_hidden_names() {
    for command in ["NLST *", "NLST ?*"] {
        let node = site_with_links().start();
        for name in [".htaccess", ".ftpquota", "a", "b.txt"] {
            fs::write(node.root().join("site").join(name), name).unwrap();
        }
        let before = tree(node.root());
        let mut session = node.login("demo", "x");
        session.command("CWD site", 250);
        session.command("TYPE A", 200);
        let names = String::from_utf8(session.receive(command)).unwrap();
        for name in names.lines() {
            let code = if name == "inner" { 550 } else { 250 };
            session.command(&format!("DELE {name}"), code);
        }
        let is_left = |path: &PathBuf| {
            let below = path.strip_prefix("site").unwrap_or(path);
            path == below
                || below == Path::new("")
                || below.starts_with("inner")
                || below.starts_with(".htaccess")
                || below.starts_with(".ftpquota")
        };
        let expected: BTreeMap<_, _> = before.into_iter().filter(|(path, _)| is_left(path)).collect();
        assert_eq!(tree(node.root()), expected, "{command}");
    }
}

#[test]
fn removing_a_link_never_changes_its_target() {
    let node = site_with_links().start();
    let mut session = node.login("demo", "x");
    let before = tree(node.root());
    for link in ["link", "absolute", "loop", "to-file", "broken"] {
        session.command(&format!("RMD site/{link}"), 550);
        session.command(&format!("RMD site/{link}/"), 550);
        session.command(&format!("RMDA site/{link}"), 550);
        session.command(&format!("RMDA site/{link}/"), 550);
    }
    assert_eq!(tree(node.root()), before);
    for link in ["link", "absolute", "loop", "to-file", "broken"] {
        session.command(&format!("DELE site/{link}"), 250);
    }
    session.command("RMDA site", 250);
    assert_eq!(tree(node.root()), without(before, "site"));
}

#[test]
fn resolve_links_makes_listings_show_targets_of_links() {
    let node = site_with_links().setting("resolve_links", "true").start();
    let mut session = node.login("demo", "x");
    let shown = String::from_utf8(session.receive("MLSD site")).unwrap();
    for (name, kind) in [
        ("link", "dir"),
        ("absolute", "dir"),
        ("loop", "dir"),
        ("to-file", "file"),
        ("broken", "OS.unix=slink:gone"),
    ] {
        let line = shown.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        assert!(line.starts_with(&format!("type={kind};")), "{line}");
        let fact = session.command(&format!("MLST site/{name}"), 250).details()[0].clone();
        assert!(fact.starts_with(&format!("type={kind};")), "{fact}");
    }
    let shown = String::from_utf8(session.receive("LIST site")).unwrap();
    assert!(shown.lines().any(|line| line.starts_with('d') && line.ends_with(" link")), "{shown}");
    // LIST -R does not follow links anyway.
    let shown = String::from_utf8(session.receive("LIST -R")).unwrap();
    assert_eq!(shown.lines().filter(|line| line.ends_with(':')).count(), 4, "{shown}");
}
