//! Transfers: what arrives, what stays when they break off, and what may happen meanwhile.

mod contents;
mod departures;
mod full_disk;
mod meanwhile;
mod representation;
mod support;
