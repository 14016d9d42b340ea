//! The registry of sessions and nodes.
