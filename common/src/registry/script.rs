//! Lua scripts that Redis runs even if its memory is used up.
//!
//! A script that renews, counts or releases must not stop at `maxmemory`: a write lease that is not renewed
//! lets a second writer in, and a release would free memory. Since version 7.0, the first line of a script
//! can exempt it. Older servers do not understand that line, so they get the script without it.

use redis::Script;

use super::RedisLink;

/// A script that Redis does not refuse at `maxmemory`. What it writes is bounded, or expires.
pub struct EssentialScript {
    exempt: Script,
    plain: Script,
}

impl EssentialScript {
    pub fn new(code: &str) -> Self {
        Self { exempt: Script::new(&format!("#!lua flags=allow-oom\n{code}")), plain: Script::new(code) }
    }

    /// The form that the server behind `link` understands. Before the first connection it is the plain one.
    pub fn on(&self, link: &RedisLink) -> &Script {
        if link.has_script_flags() { &self.exempt } else { &self.plain }
    }
}
