//! Properties that must hold for any bytes that a peer sends. Each property is a function that takes
//! an input and panics if the property does not hold.
//!
//! The fuzz targets (`./dev fuzz`) try inputs until they are stopped. `tests/corpus.rs` tries the
//! seeds in `fuzz/corpus`, and random changes of them, on every test run.

mod copies;
mod lines;
mod names;
mod proxy;
mod session;
mod tickets;
mod tls_records;

pub use self::{
    copies::copy,
    lines::{command, reply},
    names::{glob_and_listing, timestamp},
    proxy::proxy_header,
    session::session,
    tickets::ticket,
    tls_records::tls_records,
};

/// A property, and the name of its fuzz target and of its directory of seeds.
pub struct Target {
    pub name: &'static str,
    pub property: fn(&[u8]),
    /// Number of changed seeds that a test run tries. A session takes a thousand times as long as a
    /// line, so it gets fewer.
    pub cases: u32,
}

/// All properties.
pub static TARGETS: [Target; 9] = [
    Target { name: "command", property: command, cases: 2000 },
    Target { name: "copy", property: copy, cases: 1000 },
    Target { name: "glob_and_listing", property: glob_and_listing, cases: 2000 },
    Target { name: "proxy_header", property: proxy_header, cases: 2000 },
    Target { name: "reply", property: reply, cases: 2000 },
    Target { name: "session", property: session, cases: 120 },
    Target { name: "ticket", property: ticket, cases: 2000 },
    Target { name: "timestamp", property: timestamp, cases: 2000 },
    Target { name: "tls_records", property: tls_records, cases: 1000 },
];
