//! Bounds of the work and memory that one client can cause: sorted listings, work that continues after
//! a disconnect, checksums.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};

use cluster_tests::{DEADLINE, dialogue::Dialogue, eventually, node::Node, process::message_is};

/// A directory with `count` names of 240 bytes. All are hard links to one file, which is faster to
/// create.
fn big(root: &Path, count: usize) -> PathBuf {
    let directory = root.join("big");
    fs::create_dir(&directory).unwrap();
    let first = directory.join(format!("{:0>240}", 0));
    fs::File::create(&first).unwrap();
    for number in 1..count {
        fs::hard_link(&first, directory.join(format!("{number:0>240}"))).unwrap();
    }
    directory
}

/// Returns when the first byte has arrived, without reading it.
fn wait_for_data(data: &TcpStream) {
    data.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(data.peek(&mut [0]).unwrap(), 1);
}

#[test]
fn sorted_listings_share_bounded_memory_and_release_it() {
    const ENTRIES: usize = 20_000;
    const SESSIONS: usize = 60;
    let node = Node::standalone().setting("max_listing_memory", 8 << 20).start();
    big(node.root(), ENTRIES);
    let mut sessions: Vec<Dialogue> = (0..SESSIONS).map(|_| node.login("demo", "x")).collect();
    let unread: Vec<TcpStream> = sessions.iter_mut().map(|session| session.begin("LIST -t big")).collect();
    unread.iter().for_each(wait_for_data);
    assert!(node.metric("ftp_limit_reached_total{limit=\"max_listing_memory\"}").unwrap_or(0.0) >= 1.0);
    // 60 listings of 20,000 entries with 380 bytes each would be 456 MB.
    let peak = node.daemon.peak_memory();
    assert!(peak < 120 << 20, "{peak} bytes");
    drop((unread, sessions));
    node.wait_for_metric("ftp_transfers", |transfers| transfers == 0.0);
    eventually("the memory is given back", || (node.daemon.memory() < 60 << 20).then_some(()));
}

#[test]
fn listing_without_memory_to_sort_has_every_entry_once() {
    for memory in [0, 2000, 100_000] {
        let node = Node::standalone().setting("max_listing_memory", memory).start();
        big(node.root(), 500);
        let mut session = node.login("demo", "x");
        let text = String::from_utf8(session.receive("NLST -r big")).unwrap();
        let mut names: Vec<&str> = text.lines().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            (0..500).map(|number| format!("big/{number:0>240}")).collect::<Vec<_>>(),
            "{memory}"
        );
        // The entries that fit in memory are sorted, as beyond max_sorted_entries.
        let first: Vec<&str> = text.lines().take(3).collect();
        assert!(memory == 0 || first.is_sorted_by(|a, b| a > b), "{memory}: {first:?}");
    }
}

#[test]
fn pattern_filters_names_before_reading_their_status() {
    let node = Node::standalone().start();
    big(node.root(), 20_000);
    let mut session = node.login("demo", "x");
    let mut ticks_of = |run: &mut dyn FnMut(&mut Dialogue)| {
        let before = node.daemon.processor_ticks();
        (0..5).for_each(|_| run(&mut session));
        node.daemon.processor_ticks() - before
    };
    // Both read all names; only the first asks for the status of each.
    let all = ticks_of(&mut |session| {
        session.receive("NLST big");
    });
    let none = ticks_of(&mut |session| {
        session.command("STAT big/zzz*", 213);
        assert!(session.receive("NLST big/zzz*").is_empty());
    });
    assert!(none < all, "{none} ticks for twice the names, {all} with their status");
}

#[test]
fn abor_ends_a_listing_while_its_entries_are_read() {
    const SESSIONS: u64 = 10;
    let node = Node::standalone().start();
    big(node.root(), 20_000);
    let mut one = node.login("demo", "x");
    let before = node.daemon.processor_ticks();
    one.receive("LIST -t big");
    let whole = (node.daemon.processor_ticks() - before).max(1);
    let mut sessions: Vec<Dialogue> = (0..SESSIONS).map(|_| node.login("demo", "x")).collect();
    let before = node.daemon.processor_ticks();
    let mut unread = Vec::new();
    for session in &mut sessions {
        let begun = node.daemon.processor_ticks();
        unread.push(session.begin("LIST -t big"));
        // The listing has started and is far from its end.
        eventually("it works", || (node.daemon.processor_ticks() > begun + whole / 10).then_some(()));
        session.command("ABOR", 426);
        session.expect(226);
    }
    let spent = node.daemon.processor_ticks() - before;
    assert!(spent < SESSIONS * whole / 2, "{spent} ticks, and {whole} for one whole listing");
    // ABOR also ends STAT with a path, unless STAT ends first.
    one.send("STAT big");
    one.send("ABOR");
    let code = one.reply().code;
    assert!(matches!(code, 213 | 451), "{code}");
    one.expect(226);
}

/// A sparse file: it uses no space, and reading it takes hours.
fn sparse(root: &Path) {
    fs::File::create(root.join("sparse")).unwrap().set_len(1 << 40).unwrap();
}

#[test]
fn user_computes_one_checksum_at_a_time_independent_of_other_users() {
    let node = Node::standalone().start();
    sparse(node.root());
    fs::write(node.root().join("abc"), "abc").unwrap();
    let mut busy = node.login("demo", "x");
    busy.send("XSHA512 sparse");
    // STAT is answered while the checksum runs.
    busy.command("STAT", 211);
    let mut waiting = [node.login("demo", "x"), node.login("demo", "x")];
    for session in &mut waiting {
        session.send("XMD5 abc");
    }
    let waits = "ftp_limit_reached_total{limit=\"max_checksums_per_user\"}";
    node.wait_for_metric(waits, |waits| waits == 2.0);
    node.login("test", "x").command("XMD5 abc", 250);
    let [first, second] = &mut waiting;
    first.command("ABOR", 451);
    first.expect(226);
    busy.command("ABOR", 451);
    busy.expect(226);
    assert_eq!(second.expect(250).message(), "900150983cd24fb0d6963f7d28e17f72");
    first.command("XMD5 abc", 250);
}

#[test]
fn checksum_ends_at_checksum_timeout() {
    let node = Node::standalone().setting("checksum_timeout", "500ms").start();
    sparse(node.root());
    let mut session = node.login("demo", "x");
    assert!(session.command("XSHA512 sparse", 552).message().contains("checksum_timeout"));
    assert_eq!(node.metric("ftp_limit_reached_total{limit=\"checksum_timeout\"}"), Some(1.0));
    session.command("XCRC sparse 0 1000", 250);
}

#[test]
fn client_disconnect_is_noticed_behind_any_number_of_commands() {
    let node = Node::standalone().start();
    sparse(node.root());
    for command in ["XSHA512 sparse", "HASH sparse"] {
        let mut session = node.login("demo", "x");
        session.send(command);
        // More commands than the node buffers. None of them runs beside the checksum.
        session.send_bytes(&b"PWD\r\n".repeat(8 * 1024));
        drop(session);
        node.wait_for_metric("ftp_sessions", |sessions| sessions == 0.0);
    }
}

#[test]
fn log_lines_for_connections_without_login_are_limited() {
    let node = Node::standalone().setting("failure_log_limit", 3).start();
    for _ in 0..20 {
        let mut client = node.connect();
        client.send_bytes(b"GET / HTTP/1.1\r\n");
        client.expect_closed();
    }
    node.wait_for_metric("ftp_sessions_ended_total{reason=\"foreign_protocol\"}", |ended| ended == 20.0);
    // The line of this session comes after the lines of all other connections.
    node.login("demo", "x").quit();
    node.daemon.wait_for_message("session ended", &[("user", "demo")]);
    let lines = node.daemon.lines();
    let logged = lines.iter().filter(|line| message_is(line, "the client speaks another protocol"));
    assert_eq!(logged.count(), 3);
}
