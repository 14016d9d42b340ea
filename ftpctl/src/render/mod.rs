//! Text for people: tables, sizes, durations, bars. Pure functions.

pub(crate) mod human;
pub(crate) mod table;
