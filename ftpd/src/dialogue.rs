//! The last part of each session's dialogue, kept in memory for administrators, without passwords.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{
    clock::{rfc3339_millis, since_epoch},
    live::DialogueLine,
    sync::lock,
};

use crate::metrics;

/// Verbs whose arguments are secrets.
const SECRET: [&str; 4] = ["PASS", "ACCT", "AUTH", "ADAT"];

/// Maximum bytes of a line's text. The rest is cut off.
const LONGEST_TEXT: usize = 1024;

/// Memory of a line beside its text.
const OVERHEAD: u64 = 48;

/// The settings of all dialogues, and the memory that they use together.
pub struct DialogueMemory {
    /// Bytes of one session (`dialogue_size`). 0: no dialogue is kept.
    size: u64,
    /// Bytes of all sessions (`dialogue_memory`).
    limit: u64,
    used: AtomicU64,
}

impl DialogueMemory {
    pub fn new(size: u64, limit: u64) -> Arc<Self> {
        Arc::new(Self { size, limit, used: AtomicU64::new(0) })
    }

    fn reserve(&self, bytes: u64) -> bool {
        let reserve = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).is_ok()
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The dialogue of one session. Its memory grows with its lines.
pub struct Dialogue {
    memory: Arc<DialogueMemory>,
    lines: Mutex<DialogueLines>,
}

#[derive(Default)]
struct DialogueLines {
    lines: VecDeque<KeptLine>,
    bytes: u64,
}

struct KeptLine {
    /// Since the Unix epoch.
    time: Duration,
    is_command: bool,
    text: Box<[u8]>,
}

impl KeptLine {
    fn cost(&self) -> u64 {
        self.text.len() as u64 + OVERHEAD
    }
}

impl Dialogue {
    pub fn new(memory: Arc<DialogueMemory>) -> Self {
        Self { memory, lines: Mutex::default() }
    }

    /// True if dialogues are kept.
    pub fn is_kept(&self) -> bool {
        self.memory.size > 0
    }

    /// Notes a line of the client. `verb`: the verb, if the line is a command with valid arguments. Of other
    /// lines only the length is kept, because a password may be in them.
    pub fn note_command(&self, line: &[u8], verb: Option<&'static str>) {
        match verb {
            _ if !self.is_kept() => {}
            None => self.note(true, format!("(invalid command of {} bytes)", line.len()).as_bytes()),
            Some(verb) if SECRET.contains(&verb) => self.note(true, format!("{verb} ***").as_bytes()),
            Some(_) => self.note(true, line),
        }
    }

    /// Notes an encoded reply.
    pub fn note_reply(&self, reply: &[u8]) {
        self.note(false, reply.trim_ascii_end());
    }

    fn note(&self, is_command: bool, text: &[u8]) {
        let text = text.get(..LONGEST_TEXT).unwrap_or(text);
        let line = KeptLine { time: since_epoch(), is_command, text: text.into() };
        let (cost, memory) = (line.cost(), &self.memory);
        let mut kept = lock(&self.lines);
        while kept.bytes + cost > memory.size || !memory.reserve(cost) {
            if kept.bytes + cost <= memory.size {
                metrics::limit_reached("dialogue_memory");
            }
            // Without memory for more, the newest lines replace the oldest ones of this session.
            let Some(oldest) = kept.lines.pop_front() else { return };
            kept.bytes -= oldest.cost();
            memory.release(oldest.cost());
        }
        kept.bytes += cost;
        kept.lines.push_back(line);
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<DialogueLine> {
        let kept = lock(&self.lines);
        let line = |line: &KeptLine| DialogueLine {
            time: rfc3339_millis(line.time),
            is_command: line.is_command,
            text: String::from_utf8_lossy(&line.text).into_owned(),
        };
        kept.lines.iter().map(line).collect()
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        self.memory.release(lock(&self.lines).bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(dialogue: &Dialogue) -> Vec<String> {
        dialogue.lines().into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn the_last_lines_are_kept_and_secrets_are_left_out() {
        let dialogue = Dialogue::new(DialogueMemory::new(3 * (OVERHEAD + 10), 1 << 20));
        dialogue.note_command(b"USER anna", Some("USER"));
        dialogue.note_command(b"PASS geheim", Some("PASS"));
        dialogue.note_command(b"acct geheim", Some("ACCT"));
        assert_eq!(texts(&dialogue), ["USER anna", "PASS ***", "ACCT ***"]);
        dialogue.note_reply(b"230 Hello\r\n");
        assert_eq!(texts(&dialogue), ["PASS ***", "ACCT ***", "230 Hello"]);
        dialogue.note_command(b"PASSgeheim", None);
        assert!(texts(&dialogue).iter().all(|text| !text.contains("geheim")));
        assert_eq!(texts(&dialogue).last().unwrap(), "(invalid command of 10 bytes)");
    }

    #[test]
    fn all_dialogues_together_keep_to_their_memory_and_give_it_back() {
        let memory = DialogueMemory::new(1000, 2 * (OVERHEAD + 4));
        let (first, second) = (Dialogue::new(Arc::clone(&memory)), Dialogue::new(Arc::clone(&memory)));
        for text in [b"NOO1", b"NOO2"] {
            first.note_command(text, Some("NOOP"));
        }
        second.note_command(b"NOO3", Some("NOOP"));
        assert!(texts(&second).is_empty());
        first.note_command(b"NOO4", Some("NOOP"));
        assert_eq!(texts(&first), ["NOO2", "NOO4"]);
        drop(first);
        second.note_command(b"NOO5", Some("NOOP"));
        assert_eq!(texts(&second), ["NOO5"]);
        drop(second);
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
        let off = Dialogue::new(DialogueMemory::new(0, 1000));
        off.note_command(b"NOOP", Some("NOOP"));
        off.note_reply(b"200 OK\r\n");
        assert!(texts(&off).is_empty());
    }
}
