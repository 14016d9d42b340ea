//! Tests of the real authd binary with a real Redis over real sockets.

mod administrators;
mod api;
mod audit;
mod authorized;
mod backup;
mod bans;
mod feed;
mod groups;
mod login;
mod overrides;
mod page;
mod process;
mod support;
