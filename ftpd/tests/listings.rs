//! LIST, NLST, MLSD and MLST: formats, sort orders, patterns, links and hidden names.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::PathBuf,
};

use cluster_tests::{dialogue::Dialogue, node::Node};

fn start() -> Node {
    Node::standalone().start()
}

fn at(node: &Node, name: impl AsRef<[u8]>) -> PathBuf {
    node.root().join(OsStr::from_bytes(name.as_ref()))
}

fn file(node: &Node, name: &str, content: &str, modified: u64) {
    let path = at(node, name);
    fs::write(&path, content).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(modified);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// The lines of a listing; asserts that each ends with CRLF.
fn lines(session: &mut Dialogue, command: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(&session.receive(command)).into_owned();
    let lines: Vec<String> = text.split("\r\n").map(str::to_owned).collect();
    assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{text:?}");
    assert_eq!(lines.last().map(String::as_str), Some(""), "{text:?}");
    lines[..lines.len() - 1].to_vec()
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// Name and facts of a line of MLSD or MLST.
fn facts(line: &str) -> (String, HashMap<String, String>) {
    let (facts, name) = line.split_once(' ').unwrap();
    let facts = facts.split_terminator(';').map(|fact| fact.split_once('=').unwrap());
    (name.to_owned(), facts.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

#[test]
fn empty_directory_gives_an_empty_listing() {
    let node = start();
    fs::create_dir(at(&node, "empty")).unwrap();
    let mut session = node.login("demo", "x");
    for command in ["LIST", "NLST", "LIST -A", "NLST *"] {
        session.command("CWD /empty", 250);
        if command == "NLST *" {
            // A pattern without a match in an existing directory gives an empty listing.
            assert!(session.receive(command).is_empty());
            continue;
        }
        assert!(session.receive(command).is_empty(), "{command}");
    }
    let dots: Vec<_> = lines(&mut session, "MLSD").iter().map(|line| facts(line).1["type"].clone()).collect();
    assert_eq!(sorted(dots), ["cdir", "pdir"]);
}

#[test]
fn missing_path_gets_550_and_mlsd_of_a_file_501() {
    let node = start();
    file(&node, "file", "content", 0);
    let mut session = node.login("demo", "x");
    for command in ["LIST", "NLST", "MLSD", "MLST", "STAT"] {
        session.epsv();
        session.command(&format!("{command} missing"), 550);
        session.epsv();
        session.command(&format!("{command} file/below"), 550);
    }
    session.epsv();
    session.command("LIST missing/*", 550);
    session.epsv();
    session.command("MLSD file", 501);
    assert_eq!(lines(&mut session, "NLST file"), ["file"]);
    assert!(lines(&mut session, "LIST file")[0].ends_with(" file"));
}

#[test]
fn list_lines_have_the_format_of_ls() {
    let node = start();
    file(&node, "file name", "12345", 1_000_000_000);
    fs::set_permissions(at(&node, "file name"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::create_dir(at(&node, "directory")).unwrap();
    fs::set_permissions(at(&node, "directory"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut session = node.login("demo", "x");
    for command in ["LIST", "LIST -l", "LIST -la .", "NLST -l", "LIST /", "LIST -- ."] {
        let shown = lines(&mut session, command);
        let line = |name: &str| shown.iter().find(|line| line.ends_with(name)).unwrap().clone();
        assert_eq!(line("file name"), "-rw-r-----   1 ftp      ftp             5 Sep  9  2001 file name");
        assert!(line("directory").starts_with("drwxr-xr-x   2 ftp      ftp  "), "{shown:?}");
        assert_eq!(shown.len(), if command.contains('a') { 4 } else { 2 }, "{shown:?}");
    }
    assert!(lines(&mut session, "LIST -F").iter().any(|line| line.ends_with(" directory/")));
    let itself = lines(&mut session, "LIST -d directory");
    assert!(
        matches!(&itself[..], [line] if line.starts_with('d') && line.ends_with(" directory")),
        "{itself:?}"
    );
}

#[test]
fn listing_order_follows_the_flags() {
    let node = start();
    for (name, content, modified) in [("a", "1", 300), ("b", "333", 100), ("c", "22", 200)] {
        file(&node, name, content, modified);
    }
    let mut session = node.login("demo", "x");
    for (flags, order) in [("-t", "acb"), ("-tr", "bca"), ("-S", "bca"), ("-S -r", "acb"), ("-r", "cba")] {
        assert_eq!(lines(&mut session, &format!("NLST {flags}")).concat(), order, "{flags}");
        let long: String =
            lines(&mut session, &format!("LIST {flags} .")).iter().map(|l| &l[l.len() - 1..]).collect();
        assert_eq!(long, order, "{flags}");
    }
}

#[test]
fn patterns_select_names() {
    let node = start();
    fs::create_dir(at(&node, "dir")).unwrap();
    for name in ["a.txt", "b.txt", "c.dat", "dir/d.txt", "*", "[x]"] {
        file(&node, name, "", 0);
    }
    let mut session = node.login("demo", "x");
    for (argument, names) in [
        ("*.txt", &["a.txt", "b.txt"][..]),
        ("?.txt", &["a.txt", "b.txt"]),
        ("[ab].txt", &["a.txt", "b.txt"]),
        ("[!a].*", &["b.txt", "c.dat"]),
        ("[b-c].*", &["b.txt", "c.dat"]),
        ("dir/*.txt", &["dir/d.txt"]),
        ("/dir/*", &["/dir/d.txt"]),
        ("nothing*", &[]),
        // An existing name is used literally even if it contains pattern characters.
        ("*", &["*"]),
        ("[x]", &["[x]"]),
        ("\\*?x*", &[]),
        ("[*]*", &["*"]),
    ] {
        let shown = sorted(lines(&mut session, &format!("NLST {argument}")));
        assert_eq!(shown, names, "{argument}");
    }
}

#[test]
fn pattern_matches_hidden_names_only_if_it_begins_with_a_dot() {
    let node = start();
    fs::create_dir(at(&node, "dir")).unwrap();
    for name in ["a", ".htaccess", ".ftpquota", "dir/b", "dir/.hidden"] {
        file(&node, name, "", 0);
    }
    let mut session = node.login("demo", "x");
    let hidden = [".ftpquota", ".htaccess"];
    for (argument, names) in [
        ("*", &["a", "dir"][..]),
        ("?*", &["a", "dir"]),
        ("[.a]*", &["a"]),
        ("*a*", &["a"]),
        ("dir/*", &["dir/b"]),
        (".*", &hidden),
        (".h*", &hidden[1..]),
        ("\\.*", &hidden),
        ("dir/.*", &["dir/.hidden"]),
        ("-a *", &[".ftpquota", ".htaccess", "a", "dir"]),
        ("-A *", &[".ftpquota", ".htaccess", "a", "dir"]),
        ("", &[".ftpquota", ".htaccess", "a", "dir"]),
    ] {
        assert_eq!(sorted(lines(&mut session, &format!("NLST {argument}"))), names, "NLST {argument}");
        let long = lines(&mut session, &format!("LIST {argument}"));
        assert_eq!(long.len(), names.len(), "LIST {argument}: {long:?}");
    }
    assert_eq!(session.command("STAT *", 213).details().len(), 2);
}

#[test]
fn nlst_names_are_paths_for_retr() {
    let node = start();
    fs::create_dir_all(at(&node, "dir/below")).unwrap();
    file(&node, "dir/a b", "ab", 0);
    file(&node, "dir/below/c", "c", 0);
    let mut session = node.login("demo", "x");
    for (command, names) in [
        ("NLST dir", &["dir/a b", "dir/below"][..]),
        ("NLST dir/", &["dir/a b", "dir/below"]),
        ("NLST /dir", &["/dir/a b", "/dir/below"]),
        ("NLST -R dir", &["dir/a b", "dir/below", "dir/below/c"]),
        ("NLST dir/a*", &["dir/a b"]),
        ("NLST dir/a b", &["dir/a b"]),
    ] {
        assert_eq!(sorted(lines(&mut session, command)), names, "{command}");
    }
    assert_eq!(session.retrieve("dir/a b"), b"ab");
}

#[test]
fn recursive_listing_has_the_format_of_ls_and_the_configured_depth() {
    let node = Node::standalone().setting("list_depth", 3).start();
    fs::create_dir_all(at(&node, "1/2/3/4/5")).unwrap();
    file(&node, "1/file", "", 0);
    let mut session = node.login("demo", "x");
    let shown = lines(&mut session, "LIST -R");
    let headings: Vec<_> = shown.iter().filter(|line| line.ends_with(':')).map(String::as_str).collect();
    assert_eq!(headings, [".:", "./1:", "./1/2:", "./1/2/3:"]);
    assert!(shown.iter().any(|line| line.ends_with(" 4")) && !shown.iter().any(|line| line.ends_with(" 5")));
}

#[test]
fn nfs_leftovers_and_partial_files_are_hidden() {
    let node = start();
    for name in [".nfs000001", ".ftpd-partial-0123", ".profile", "file"] {
        file(&node, name, "", 0);
    }
    let mut session = node.login("demo", "x");
    for command in ["NLST", "NLST -a", "NLST -A", "NLST .*", "NLST -R"] {
        let shown = lines(&mut session, command);
        assert!(shown.contains(&".profile".to_owned()), "{command}: {shown:?}");
        assert!(
            !shown.iter().any(|name| name.contains("nfs") || name.contains("partial")),
            "{command}: {shown:?}"
        );
    }
    for command in ["LIST -la", "MLSD", "LIST -R"] {
        let shown = lines(&mut session, command).concat();
        assert!(!shown.contains("nfs") && !shown.contains("partial"), "{command}: {shown}");
    }
    session.epsv();
    session.command("RETR .ftpd-partial-0123", 553);
    session.command("DELE .ftpd-partial-0123", 553);
}

/// Injection through names: ProFTPD #2052.
#[test]
fn control_characters_in_names_do_not_split_lines() {
    let node = start();
    let names: [&[u8]; 3] = [b"a\r\n-rw-r--r-- 1 ftp ftp 0 Jan 1 00:00 forged", b"b\x1b[2Jc", b"d\ne"];
    for name in names {
        fs::write(at(&node, name), "").unwrap();
    }
    fs::create_dir(at(&node, b"f\r\n226 done\r\n")).unwrap();
    let mut session = node.login("demo", "x");
    for (command, count) in [("LIST", 4), ("NLST", 4), ("MLSD", 6), ("LIST -R", 5), ("NLST -R", 4)] {
        let shown = lines(&mut session, command);
        assert_eq!(shown.iter().filter(|line| !line.is_empty()).count(), count, "{command}: {shown:?}");
    }
    assert_eq!(session.command("STAT .", 213).details().len(), 4);
}

#[test]
fn listings_show_every_byte_that_a_name_can_have() {
    let node = start();
    let name: Vec<u8> = (1..=u8::MAX).filter(|byte| !matches!(byte, b'\r' | b'\n' | b'/')).collect();
    fs::write(at(&node, &name), "").unwrap();
    let mut session = node.login("demo", "x");
    let ends_with_name = |shown: &[u8]| shown.ends_with(&[b" ", &name[..], b"\r\n"].concat());
    for command in ["LIST", "LIST *", "LIST -R", "MLSD"] {
        let shown = session.receive(command);
        assert!(shown.split_inclusive(|byte| *byte == b'\n').any(ends_with_name), "{command}");
    }
    assert_eq!(session.receive("NLST"), [&name[..], b"\r\n"].concat());
    let status = session.command("STAT .", 213).raw;
    assert!(status.split_inclusive(|byte| *byte == b'\n').any(ends_with_name));
}

#[test]
fn mlsd_and_mlst_show_the_selected_facts() {
    let node = start();
    file(&node, "file", "12345", 1_582_979_696);
    fs::set_permissions(at(&node, "file"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(at(&node, "dir")).unwrap();
    fs::hard_link(at(&node, "file"), at(&node, "same")).unwrap();
    let mut session = node.login("demo", "x");
    let shown: HashMap<_, _> = lines(&mut session, "MLSD").iter().map(|line| facts(line)).collect();
    assert_eq!(shown.len(), 5, "{shown:?}");
    let of = &shown["file"];
    for (key, value) in [
        ("type", "file"),
        ("size", "5"),
        ("modify", "20200229123456"),
        ("perm", "adfrw"),
        ("UNIX.mode", "0600"),
    ] {
        assert_eq!(of[key], value, "{key}");
    }
    assert_eq!(of["unique"], shown["same"]["unique"]);
    assert_ne!(of["unique"], shown["dir"]["unique"]);
    assert_eq!((&*shown["dir"]["type"], shown["dir"].get("size")), ("dir", None));
    assert_eq!((&*shown["."]["type"], &*shown[".."]["type"]), ("cdir", "pdir"));

    let single = session.command("MLST file", 250);
    let (name, one) = facts(&single.details()[0]);
    assert_eq!((name.as_str(), &one), ("/file", of));
    assert_eq!(facts(&session.command("MLST", 250).details()[0]).0, "/");

    assert_eq!(session.command("OPTS MLST size;Type;nonsense;", 200).message(), "MLST OPTS type;size;");
    assert_eq!(session.command("MLST file", 250).details(), ["type=file;size=5; /file"]);
    let features = session.command("FEAT", 211).details();
    assert!(features.contains(&"MLST type*;size*;modify;perm;unique;UNIX.mode;".to_owned()), "{features:?}");
    session.command("OPTS MLST", 200);
    assert!(sorted(lines(&mut session, "MLSD")).contains(&" file".to_owned()));
}

#[test]
fn links_are_listed_as_links_and_followed_when_named() {
    let node = start();
    file(&node, "file", "12345", 1_000_000_000);
    fs::create_dir(at(&node, "dir")).unwrap();
    file(&node, "dir/inside", "", 0);
    symlink(".", at(&node, "dir/self")).unwrap();
    for (name, target) in [
        ("to-file", "file"),
        ("to-dir", "/dir"),
        ("broken", "gone"),
        ("loop", "loop"),
        ("out", "/etc/passwd"),
        ("odd", "two words"),
        ("split", "a\r\n226 done"),
    ] {
        symlink(target, at(&node, name)).unwrap();
    }
    let mut session = node.login("demo", "x");

    let shown: HashMap<_, _> = lines(&mut session, "MLSD").iter().map(|line| facts(line)).collect();
    for (name, kind) in [
        ("to-file", "OS.unix=slink:file"),
        ("to-dir", "OS.unix=slink:/dir"),
        ("broken", "OS.unix=slink:gone"),
        ("loop", "OS.unix=slink:loop"),
        ("out", "OS.unix=slink:/etc/passwd"),
        // A target with characters that a fact must not contain is omitted.
        ("odd", "OS.unix=symlink"),
        ("split", "OS.unix=symlink"),
    ] {
        assert_eq!(shown[name]["type"], kind, "{name}");
        assert!(!shown[name].contains_key("size"), "{name}");
        let single = session.command(&format!("MLST {name}"), 250);
        assert_eq!(facts(&single.details()[0]), (format!("/{name}"), shown[name].clone()));
    }

    let status = session.command("STAT .", 213).details();
    for long in
        [lines(&mut session, "LIST"), lines(&mut session, "LIST -a"), lines(&mut session, "LIST *"), status]
    {
        for end in [
            "to-file -> file",
            "to-dir -> /dir",
            "broken -> gone",
            "loop -> loop",
            "out -> /etc/passwd",
            "odd -> two words",
            "split -> a??226 done",
        ] {
            let is_shown =
                |line: &String| line.starts_with("lrwxrwxrwx") && line.ends_with(&format!(" {end}"));
            assert!(long.iter().any(is_shown), "{end}: {long:?}");
        }
    }
    let names = sorted(lines(&mut session, "NLST"));
    assert_eq!(names, ["broken", "dir", "file", "loop", "odd", "out", "split", "to-dir", "to-file"]);
    let headings = lines(&mut session, "LIST -R").into_iter().filter(|line| line.ends_with(':'));
    assert_eq!(headings.collect::<Vec<_>>(), [".:", "./dir:"]);

    // A link that the client names is followed.
    for command in ["NLST to-dir/", "NLST to-dir"] {
        let names = sorted(lines(&mut session, command));
        assert_eq!(names, ["to-dir/inside", "to-dir/self"], "{command}");
    }
    for command in ["LIST to-dir", "LIST to-dir/", "LIST to-dir/self/self"] {
        let long = lines(&mut session, command);
        assert!(
            long.len() == 2 && long.iter().any(|line| line.ends_with(" self -> .")),
            "{command}: {long:?}"
        );
    }
    let members: HashMap<_, _> = lines(&mut session, "MLSD to-dir").iter().map(|line| facts(line)).collect();
    assert_eq!((&*members["."]["type"], &*members["inside"]["type"]), ("cdir", "file"));
    for command in ["LIST -d to-dir", "LIST to-file", "LIST broken", "LIST out"] {
        let long = lines(&mut session, command);
        assert!(matches!(&long[..], [line] if line.starts_with('l')), "{command}: {long:?}");
    }
    assert_eq!(session.size("to-file"), 5);
    assert_eq!(session.command("MDTM to-file", 213).message(), "20010909014640");
    assert_eq!(session.retrieve("to-file"), b"12345");
    session.epsv();
    session.command("MLSD to-file", 501);
    session.epsv();
    session.command("RETR out", 550);
    session.command("CWD to-dir", 250);
    assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), "/to-dir");
    assert!(lines(&mut session, "LIST -a").iter().any(|line| line.starts_with('d') && line.ends_with(" .")));
}

/// Listing DoS: CVE-2019-20176.
#[test]
fn ten_thousand_entries_are_listed_once_each() {
    let node = start();
    fs::create_dir(at(&node, "many")).unwrap();
    for i in 0..10_000 {
        fs::write(at(&node, format!("many/{i:05}")), "").unwrap();
    }
    let mut session = node.login("demo", "x");
    session.command("CWD many", 250);
    let wanted: Vec<String> = (0..10_000).map(|i| format!("{i:05}")).collect();
    assert!(sorted(lines(&mut session, "NLST")) == wanted);
    assert!(lines(&mut session, "NLST -r").iter().rev().eq(wanted.iter()));
    assert_eq!(lines(&mut session, "LIST").len(), 10_000);
    assert_eq!(lines(&mut session, "MLSD").len(), 10_002);
    assert_eq!(lines(&mut session, "NLST 0000*").len(), 10);
}

#[test]
fn listing_beyond_max_sorted_entries_is_complete() {
    let node = Node::standalone().setting("max_sorted_entries", 10).start();
    for i in 0..100 {
        file(&node, &i.to_string(), "", i);
    }
    let mut session = node.login("demo", "x");
    let shown = sorted(lines(&mut session, "NLST -t"));
    assert_eq!(shown, sorted((0..100).map(|i| i.to_string()).collect()));
}

#[test]
fn file_named_like_flags_can_be_listed_by_path() {
    let node = start();
    file(&node, "-la", "content", 0);
    let mut session = node.login("demo", "x");
    assert_eq!(lines(&mut session, "NLST ./-la"), ["./-la"]);
    assert_eq!(lines(&mut session, "NLST -- -la"), ["-la"]);
    assert_eq!(lines(&mut session, "NLST -la").len(), 3);
    assert_eq!(fs::metadata(at(&node, "-la")).unwrap().size(), 7);
}

#[test]
fn listings_do_not_open_fifos() {
    let node = start();
    let fifo = at(&node, "fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // This open waits for a reader.
    let (sender, opened) = std::sync::mpsc::channel();
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || sender.send(fs::File::options().write(true).open(fifo).is_ok())
    });
    let mut session = node.login("demo", "x");
    session.command("MLST fifo", 250);
    session.command("STAT fifo", 213);
    session.command("RNFR fifo", 350);
    for command in ["LIST fifo", "NLST fifo", "LIST", "MLSD"] {
        assert!(!lines(&mut session, command).is_empty(), "{command}");
    }
    assert!(opened.recv_timeout(std::time::Duration::from_millis(300)).is_err());
    drop(fs::File::open(fifo).unwrap());
    writer.join().unwrap().unwrap();
}
