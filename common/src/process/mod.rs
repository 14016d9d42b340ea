//! What both mains run: logging, signals, the admin address.
