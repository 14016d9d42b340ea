//! The FTP node.
//!
//! `main` → [`server::run`] → one task per client: [`control`] reads a line, [`protocol`] parses it,
//! [`commands`] checks that the command may run now and calls its handler, which works on the [`session`]
//! and in the user's [`jail`], within the user's [`access`]. A transfer is an [`activity`]: it runs on a
//! thread of its own, over a connection from [`data`], while the control connection is still read.

pub mod access;
pub mod activity;
pub mod auth;
pub mod blocking;
pub mod check;
pub mod commands;
pub mod config;
pub mod connection_log;
pub mod connections;
pub mod control;
pub mod data;
mod descriptors;
mod ephemeral;
pub mod failure;
pub mod governor;
pub mod health;
pub mod health_check;
pub mod jail;
pub mod listener;
pub mod listing;
pub mod metrics;
pub mod node;
mod own_addresses;
mod place;
pub mod protocol;
pub mod proxy_protocol;
pub mod quota;
pub mod representation;
pub mod revocation;
pub mod scratch;
pub mod server;
pub mod session;
pub mod settings;
mod sweeper;
pub mod tls;
pub mod transfer_log;
pub mod turns;
pub mod workers;
