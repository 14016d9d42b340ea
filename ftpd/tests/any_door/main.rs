//! Data connections that arrive at another node than the one of their session.

mod headers;
mod membership;
mod support;
mod transfers;
