//! Tests of the real authd binary with a real Redis over real sockets.

mod api;
mod authorized;
mod bans;
mod groups;
mod login;
mod overrides;
mod process;
mod support;
