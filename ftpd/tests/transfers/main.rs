//! Tests of transfers: contents, interruptions, full disks, commands during a transfer, line ends.

mod contents;
mod departures;
mod full_disk;
mod meanwhile;
mod representation;
mod support;
