//! What one client can make the node do and hold: memory of listings, work that goes on after its client,
//! checksums.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};

use cluster_tests::{DEADLINE, dialogue::Dialogue, eventually, node::Node};

/// A directory with `count` names of 240 bytes each: of one file, which is faster to make.
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

/// Returns when the first byte has come. It stays unread.
fn wait_for_data(data: &TcpStream) {
    data.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(data.peek(&mut [0]).unwrap(), 1);
}

#[test]
fn sorted_listings_of_all_sessions_share_a_bounded_memory_and_give_it_back() {
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
fn without_memory_to_sort_a_listing_has_every_entry_once() {
    for memory in [0, 2000, 100_000] {
        let node = Node::standalone().setting("max_listing_memory", memory).start();
        big(node.root(), 500);
        let mut session = node.login("demo", "x");
        let text = String::from_utf8(session.receive("NLST -r big")).unwrap();
        let mut names: Vec<&str> = text.lines().collect();
        names.sort_unstable();
        assert_eq!(names, (0..500).map(|number| format!("big/{number:0>240}")).collect::<Vec<_>>(), "{memory}");
        // What fits is sorted, as beyond max_sorted_entries.
        let first: Vec<&str> = text.lines().take(3).collect();
        assert!(memory == 0 || first.is_sorted_by(|a, b| a > b), "{memory}: {first:?}");
    }
}

#[test]
fn a_pattern_is_applied_to_names_before_the_storage_is_asked_for_each() {
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
fn abor_ends_a_listing_while_its_entries_are_gathered() {
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
        // It is under way, and far from its end.
        eventually("it works", || (node.daemon.processor_ticks() > begun + whole / 10).then_some(()));
        session.command("ABOR", 426);
        session.expect(226);
    }
    let spent = node.daemon.processor_ticks() - before;
    assert!(spent < SESSIONS * whole / 2, "{spent} ticks, and {whole} for one whole listing");
    // STAT with a path, too, unless it is faster.
    one.send("STAT big");
    one.send("ABOR");
    let code = one.reply().code;
    assert!(matches!(code, 213 | 451), "{code}");
    one.expect(226);
}

#[test]
fn the_end_of_a_client_is_seen_behind_any_number_of_commands() {
    let node = Node::standalone().start();
    // A hole: it takes no space, and hours to read.
    fs::File::create(node.root().join("sparse")).unwrap().set_len(1 << 40).unwrap();
    for command in ["XSHA512 sparse", "HASH sparse"] {
        let mut session = node.login("demo", "x");
        session.send(command);
        // More than the node holds. None of them runs beside the checksum.
        session.send_bytes(&b"PWD\r\n".repeat(8 * 1024));
        drop(session);
        node.wait_for_metric("ftp_sessions", |sessions| sessions == 0.0);
    }
}
