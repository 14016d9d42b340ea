//! Benchmarks of the node's pure functions, which run for each command, entry or byte without a
//! system call. Run them with `cargo bench --package bench [FILTER]`.

use std::{hint::black_box, time::Duration};

use common::policy::Permissions;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ftpd::{
    data::ascii,
    listing::{
        Entry, EntryKind,
        machine::{self, EntryRole},
        unix,
    },
    protocol::{
        Code, Reply, command,
        facts::Facts,
        glob::Pattern,
        line::{Line, LineBuffer},
        proxy,
    },
    virtual_path::VirtualPath,
};

/// A Sunday in November 2026.
const NOW: i64 = 1_795_000_000;

fn commands(criterion: &mut Criterion) {
    let session: &[&[u8]] = &[
        b"USER bench",
        b"PASS secret",
        b"TYPE I",
        b"EPSV",
        b"RETR reports/2026/november.csv",
        b"STOR incoming/scan-0001.pdf",
        b"MLSD",
        b"LIST -la reports",
        b"PORT 192,0,2,1,200,10",
        b"QUIT",
    ];
    let mut group = criterion.benchmark_group("command");
    group.throughput(Throughput::Elements(session.len() as u64));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| {
            for line in session {
                let _ = black_box(command::parse(black_box(line)));
            }
        });
    });
    group.bench_function("from lines", |bencher| {
        let bytes: Vec<u8> = session.iter().flat_map(|line| [line, &b"\r\n"[..]].concat()).collect();
        let mut lines = LineBuffer::new();
        bencher.iter(|| {
            lines.extend(black_box(&bytes));
            while let Some(Line::Command(line)) = lines.next_line() {
                let _ = black_box(command::parse(&line));
            }
        });
    });
}

fn replies(criterion: &mut Criterion) {
    let mut out = Vec::with_capacity(256);
    criterion.bench_function("reply/one line", |bencher| {
        bencher.iter(|| {
            out.clear();
            Reply::new(black_box(Code::TRANSFER_COMPLETE), "Transfer complete").encode(&mut out);
        });
    });
    criterion.bench_function("reply/quoted path", |bencher| {
        bencher.iter(|| {
            out.clear();
            Reply::quoted_path(black_box(b"/reports/2026/a \"quoted\" name"), "is here").encode(&mut out);
        });
    });
}

fn paths(criterion: &mut Criterion) {
    let here = VirtualPath::root().join(b"reports/2026").expect("the path is valid");
    criterion.bench_function("path/join", |bencher| {
        bencher.iter(|| here.join(black_box(b"../2025/./november.csv")));
    });
    let pattern = Pattern::parse(b"report-*-[0-9]?.csv");
    criterion.bench_function("glob/match", |bencher| {
        bencher.iter(|| pattern.matches(black_box(b"report-2026-november-12.csv")));
    });
    let hard = Pattern::parse(b"*a*a*a*a*b");
    criterion.bench_function("glob/worst case", |bencher| {
        bencher.iter(|| hard.matches(black_box(&[b'a'; 255])));
    });
}

fn listings(criterion: &mut Criterion) {
    let entry = Entry {
        name: b"report-2026-00042.csv".to_vec(),
        kind: EntryKind::File,
        size: 123_456_789,
        modified: NOW - 86_400,
        mode: 0o640,
        links: 1,
        device: 66,
        inode: 1_234_567,
        link_target: None,
    };
    let mut out = Vec::with_capacity(256);
    let mut group = criterion.benchmark_group("listing");
    group.throughput(Throughput::Elements(1));
    group.bench_function("LIST", |bencher| {
        bencher.iter(|| {
            out.clear();
            unix::line(black_box(&entry), NOW, false, &mut out);
        });
    });
    let facts = Facts::default();
    group.bench_function("MLSD", |bencher| {
        bencher.iter(|| {
            out.clear();
            machine::line(facts, black_box(&entry), EntryRole::Member, &Permissions::default(), &mut out);
        });
    });
}

fn proxy_headers(criterion: &mut Criterion) {
    let first: &[u8] = b"PROXY TCP4 192.0.2.17 198.51.100.1 40000 21\r\n";
    let mut second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    second.extend([192, 0, 2, 17, 198, 51, 100, 1, 156, 64, 0, 21]);
    for (name, header) in [("proxy/version 1", first), ("proxy/version 2", &second)] {
        assert!(matches!(proxy::parse(header), Ok(proxy::ParsedHeader::Complete { .. })), "{name}");
        criterion.bench_function(name, |bencher| bencher.iter(|| proxy::parse(black_box(header))));
    }
}

fn text(criterion: &mut Criterion) {
    let line = b"a line of a text file that has sixty bytes, which is usual.\n";
    let file: Vec<u8> = line.iter().copied().cycle().take(256 << 10).collect();
    let mut wire = Vec::with_capacity(2 * file.len());
    ascii::Outgoing::default().convert(&file, &mut wire);
    let mut out = Vec::with_capacity(2 * file.len());
    let mut group = criterion.benchmark_group("ascii");
    group.throughput(Throughput::Bytes(file.len() as u64));
    group.bench_function("out", |bencher| {
        bencher.iter(|| {
            out.clear();
            ascii::Outgoing::default().convert(black_box(&file), &mut out);
        });
    });
    group.bench_function("in", |bencher| {
        bencher.iter(|| {
            out.clear();
            ascii::Incoming::default().convert(black_box(&wire), &mut out);
        });
    });
}

fn short() -> Criterion {
    let criterion = Criterion::default().without_plots();
    criterion.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

criterion_group!(
    name = pure;
    config = short();
    targets = commands, replies, paths, listings, proxy_headers, text
);
criterion_main!(pure);
