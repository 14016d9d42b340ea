//! The FTP node.
//!
//! `main` → [`server::run`] → one task per client: [`control`] reads a line, [`protocol`] parses it,
//! `commands` checks that the command may run now and calls its handler, which works on the `session`
//! and in the user's [`jail`], within the user's `access` rules. A `transfer` is an
//! [`activity`](work::activity): it runs on a worker (see [`work`]), over a connection from [`data`], while
//! the control connection is still read.

mod access;
mod active_mode;
mod audit;
pub mod auth;
pub mod balancers;
pub mod check;
pub mod client_address;
mod commands;
pub mod config;
pub mod connection_log;
pub mod connection_table;
pub mod control;
pub mod data;
pub mod dialogue;
pub mod events;
mod failure_log;
pub mod health;
mod health_check;
pub mod identity;
pub mod jail;
pub mod limits;
mod listener;
pub mod listing;
pub mod live;
mod metrics;
pub mod node;
mod node_address;
mod partial_sweeper;
pub mod protocol;
pub mod relay;
pub mod relay_role;
pub mod representation;
mod revocation;
pub mod server;
mod session;
pub mod settings;
pub mod tls;
mod transfer;
pub mod transfer_log;
pub mod virtual_path;
pub mod work;
