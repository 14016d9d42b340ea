//! The real authd, with a real Redis, over real sockets.

mod api;
mod login;
mod process;
mod support;
