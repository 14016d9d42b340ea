//! Lines of the control connection: CRLF framing with a maximum length, and removal of Telnet commands.

use std::mem;

/// Longest command line in bytes without its line end: two paths of `PATH_MAX` (4096 bytes).
pub const MAX_LINE: usize = 8192;

/// One line of the control connection, without its line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Command(Vec<u8>),
    /// Longer than [`MAX_LINE`]. The whole line is discarded, so that its tail is not taken for a command.
    TooLong,
}

/// Collects bytes read from a control connection and splits them into lines.
///
/// Lines end with CRLF, with LF, or with CR CR LF, which a client sends if text mode converts its own
/// CRLF. A CR elsewhere (also in `CR NUL`, RFC 854) and NUL stay in the line; the parser refuses them.
///
/// Telnet commands (RFC 854) are recognised only before the first byte of a line, and all bytes above
/// 127 are dropped there: clients send `IAC IP IAC DM` before ABOR, and balancers lose the byte that was
/// sent as urgent data. Within a line, 255 is an ordinary byte of a name, because most clients do not
/// escape it; removing apparent commands could make two names equal. Only the pair 255 255 becomes one
/// 255, the escape of RFC 854.
///
/// Some clients (Python's ftplib) send `ABOR CR LF` as urgent data. Its last byte, the LF, is then lost,
/// so ABOR already ends at CR, and an LF after that CR is ignored.
///
/// Holds at most [`MAX_LINE`] bytes and the bytes of one call to [`extend`](Self::extend), if the caller
/// takes all lines out before it calls `extend` again. Holds no heap memory while empty.
#[derive(Debug, Default)]
pub struct LineBuffer {
    /// Encoded lines; the last one may be unfinished. Each is a tag byte ([`COMMAND`] or [`TOO_LONG`]),
    /// its bytes, and LF.
    lines: Vec<u8>,
    /// Start, in `lines`, of the first line that was not taken yet.
    first: usize,
    /// Start, in `lines`, of the unfinished line, if there is one.
    unfinished: Option<usize>,
    telnet: TelnetState,
    /// After the CR that ended an ABOR, nothing or only further CRs have arrived.
    after_abor: bool,
}

const COMMAND: u8 = 0;
const TOO_LONG: u8 = 1;

/// State of the Telnet decoder after the last byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TelnetState {
    #[default]
    Text,
    /// After IAC before a line.
    Command,
    /// After IAC and one of WILL, WONT, DO and DONT. The number of the option follows.
    Option,
    /// After the byte 255 within a line, which was kept. A second 255 is dropped.
    Escape,
}

/// Telnet's "interpret as command".
const IAC: u8 = 0xff;
/// Lowest byte that is a command after IAC.
const FIRST_COMMAND: u8 = 0xf0;
const WILL: u8 = 0xfb;
const DONT: u8 = 0xfe;

impl LineBuffer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that were read.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.first > 0 {
            self.lines.drain(..self.first);
            self.unfinished = self.unfinished.map(|at| at - self.first);
            self.first = 0;
        }
        for byte in bytes {
            if self.after_abor {
                self.after_abor = *byte == b'\r';
                if matches!(byte, b'\r' | b'\n') {
                    continue;
                }
            }
            self.telnet = match (self.telnet, *byte) {
                (TelnetState::Escape, IAC) => TelnetState::Text,
                (TelnetState::Text, IAC) if self.unfinished.is_none() => TelnetState::Command,
                (TelnetState::Text, IAC) => {
                    self.push(IAC);
                    TelnetState::Escape
                }
                (TelnetState::Command, WILL..=DONT) => TelnetState::Option,
                (TelnetState::Command, FIRST_COMMAND..) | (TelnetState::Option, _) => TelnetState::Text,
                // Text directly after IAC: the command between them was urgent data and was lost.
                (TelnetState::Text | TelnetState::Escape | TelnetState::Command, byte) => {
                    self.push(byte);
                    TelnetState::Text
                }
            };
        }
        self.release();
    }

    /// Takes out the next complete line.
    pub fn next_line(&mut self) -> Option<Line> {
        let complete = &self.lines[self.first..self.unfinished.unwrap_or(self.lines.len())];
        let end = complete.iter().position(|b| *b == b'\n')?;
        let line = match complete[..end] {
            [COMMAND, ref line @ ..] => {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                Line::Command(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
            }
            _ => Line::TooLong,
        };
        self.first += end + 1;
        self.release();
        Some(line)
    }

    /// Number of bytes held.
    pub fn len(&self) -> usize {
        self.lines.len() - self.first
    }

    /// Returns true if [`next_line`](Self::next_line) would return a line.
    pub fn has_line(&self) -> bool {
        self.first < self.unfinished.unwrap_or(self.lines.len())
    }

    /// Returns true if no line, no part of a line and no part of a Telnet command is held.
    pub fn is_empty(&self) -> bool {
        self.first == self.lines.len() && self.telnet == TelnetState::Text
    }

    /// Drops everything. Called when the connection changes to TLS: commands sent in the clear before
    /// the handshake must not run after it (CVE-2011-0411).
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds one byte of text.
    fn push(&mut self, byte: u8) {
        let start = match self.unfinished {
            Some(start) => start,
            // A remainder of a Telnet command; no verb begins with such a byte.
            None if byte >= 0x80 => return,
            None => {
                self.lines.push(COMMAND);
                *self.unfinished.insert(self.lines.len() - 1)
            }
        };
        let text = &self.lines[start + 1..];
        self.after_abor = byte == b'\r' && text.eq_ignore_ascii_case(b"ABOR");
        if byte == b'\n' || self.after_abor {
            self.lines.push(b'\n');
            self.unfinished = None;
        } else if self.lines[start] == COMMAND {
            self.lines.push(byte);
            // After MAX_LINE bytes, only the one or two CRs of the line end may follow.
            let beyond = self.lines.get(start + 1 + MAX_LINE..).unwrap_or_default();
            if beyond.len() > 2 || beyond.iter().any(|byte| *byte != b'\r') {
                self.lines.truncate(start);
                self.lines.push(TOO_LONG);
            }
        }
    }

    /// Frees the memory once all lines were taken.
    fn release(&mut self) {
        if self.first == self.lines.len() {
            drop(mem::take(&mut self.lines));
            self.first = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(buffer: &mut LineBuffer) -> Vec<Line> {
        std::iter::from_fn(|| buffer.next_line()).collect()
    }

    fn read(input: &[u8]) -> Vec<Line> {
        let mut buffer = LineBuffer::new();
        buffer.extend(input);
        lines(&mut buffer)
    }

    fn command(line: &[u8]) -> Line {
        Line::Command(line.to_vec())
    }

    #[test]
    fn pipelined_lines_come_out_one_by_one_and_a_partial_line_waits() {
        let mut buffer = LineBuffer::new();
        buffer.extend(b"USER a\r\nPASS b\nQU");
        assert!(buffer.has_line());
        assert_eq!(lines(&mut buffer), [command(b"USER a"), command(b"PASS b")]);
        assert!(!buffer.has_line() && !buffer.is_empty());
        buffer.extend(b"IT\r\n");
        assert_eq!(lines(&mut buffer), [command(b"QUIT")]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn an_idle_buffer_holds_no_memory() {
        let mut buffer = LineBuffer::new();
        buffer.extend(b"\xff\xf1NOOP\r\n\xff\xf1");
        assert_eq!(lines(&mut buffer), [command(b"NOOP")]);
        assert_eq!((buffer.lines.capacity(), buffer.is_empty()), (0, true));
    }

    #[test]
    fn a_too_long_line_is_dropped_to_its_end_and_reported_once() {
        let name = vec![b'a'; MAX_LINE];
        assert_eq!(read(&[&name, &b"\r\n"[..]].concat()), [command(&name)]);
        let hidden = [&name, &b"a"[..], &name, b"\0DELE x\r\nNOOP\r\n"].concat();
        assert_eq!(read(&hidden), [Line::TooLong, command(b"NOOP")]);
        assert_eq!(read(&[&name, &b"\r\r\nNOOP\n"[..]].concat()), [command(&name), command(b"NOOP")]);
        assert_eq!(read(&[&name, &b"\r\r\r\nNOOP\n"[..]].concat()), [Line::TooLong, command(b"NOOP")]);
    }

    #[test]
    fn an_endless_line_does_not_grow_memory() {
        let mut buffer = LineBuffer::new();
        for _ in 0..1000 {
            buffer.extend(&[b'a'; 4096]);
            assert!(buffer.lines.capacity() <= 4 * MAX_LINE);
        }
        assert_eq!(buffer.lines.len(), 1);
    }

    #[test]
    fn telnet_commands_are_removed_only_before_a_line_rfc_854() {
        for (input, line) in [
            (&b"\xff\xf4\xff\xf2ABOR\r\n"[..], &b"ABOR"[..]), // IAC IP IAC DM
            (b"\xff\xf4\xffABOR\r\n", b"ABOR"),               // DM was urgent data and lost
            (b"\xf2ABOR\r\n", b"ABOR"),                       // all but DM was lost
            (b"\xff\xfb\x01\xff\xfe\x0aNOOP\r\n", b"NOOP"),   // WILL ECHO, DONT 10
            (b"\xff\xff\xff\xf1\xffNOOP\r\n", b"NOOP"),
            (b"CWD a\xff\xffb\r\n", b"CWD a\xffb"),
            (b"CWD a\xffb\r\n", b"CWD a\xffb"),
            (b"CWD \xe4\xf6\r\n", b"CWD \xe4\xf6"),
            (b"CWD \xff\r\n", b"CWD \xff"),
            (b"CWD \xff\xf4\xff\xf2\r\n", b"CWD \xff\xf4\xff\xf2"),
            (b"CWD \xff\xfb\x01\r\n", b"CWD \xff\xfb\x01"),
            (b"CWD \xff\xff\xff\xf0\r\n", b"CWD \xff\xff\xf0"),
            (b"CWD \xff\xff\xff\xff\xff\r\n", b"CWD \xff\xff\xff"),
            (b"NO\xff\xf1OP\r\n", b"NO\xff\xf1OP"),
        ] {
            assert_eq!(read(input), [command(line)], "{}", input.escape_ascii());
        }
    }

    #[test]
    fn abor_ends_at_cr_because_its_urgent_lf_may_be_lost() {
        let mut buffer = LineBuffer::new();
        buffer.extend(b"abor\r");
        assert_eq!(lines(&mut buffer), [command(b"abor")]);
        assert!(buffer.is_empty());
        buffer.extend(b"\nABOR\rNOOP\r\nABOR\r\n\r\nABORT\r\nABOR\r\r\nPWD\r\n");
        let expected = [&b"ABOR"[..], b"NOOP", b"ABOR", b"", b"ABORT", b"ABOR", b"PWD"].map(command);
        assert_eq!(lines(&mut buffer), expected);
    }

    #[test]
    fn a_line_may_end_with_cr_cr_lf() {
        assert_eq!(read(b"NOOP\r\r\nCWD a\r\r\n"), [command(b"NOOP"), command(b"CWD a")]);
        assert_eq!(read(b"CWD a\r\r\r\n"), [command(b"CWD a\r")]);
    }

    #[test]
    fn cr_nul_stays_in_the_line_for_the_parser_to_refuse() {
        assert_eq!(read(b"CWD a\r\0b\r\n"), [command(b"CWD a\r\0b")]);
        assert_eq!(read(b"CWD a\0\r\r\n"), [command(b"CWD a\0")]);
    }

    #[test]
    fn clear_drops_lines_partial_lines_and_telnet_commands() {
        let mut buffer = LineBuffer::new();
        for input in [&b"AUTH TLS\r\nNOOP\r\n"[..], b"NO", b"\xff", &[b'a'; MAX_LINE + 2]] {
            buffer.extend(input);
            buffer.clear();
            assert!(buffer.is_empty() && !buffer.has_line());
            buffer.extend(b"PWD\r\n");
            assert_eq!(lines(&mut buffer), [command(b"PWD")]);
        }
    }

    fn input() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::collection::vec(
                prop::sample::select(&b"AB \r\n\0\xff\xf0\xf2\xfb\xfe\xe4"[..]),
                0..20,
            ),
            1 => any::<Vec<u8>>(),
            1 => (MAX_LINE - 3..MAX_LINE + 4).prop_map(|n| vec![b'x'; n]),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// Escaped (255 255) and unescaped names arrive intact.
        #[test]
        fn a_name_in_a_line_loses_only_the_second_byte_of_255_255(
            name in prop::collection::vec(
                prop::sample::select(&b"a \xff\xff\xf0\xf2\xf4\xfb\xfc\xfd\xfe\xef"[..]), 1..20),
        ) {
            let sent = |name: &[u8]| read(&[b"STOR ", name, b"\r\n"].concat());
            let line = |name: &[u8]| [command(&[b"STOR ", name].concat())];
            let times = |byte: u8| if byte == IAC { 2 } else { 1 };
            let doubled = name.iter().flat_map(|byte| std::iter::repeat_n(*byte, times(*byte)));
            let doubled: Vec<u8> = doubled.collect();
            prop_assert_eq!(sent(&doubled), line(&name));
            if !name.windows(2).any(|pair| pair == [IAC, IAC]) {
                prop_assert_eq!(sent(&name), line(&name));
            }
        }

        #[test]
        fn lines_do_not_depend_on_how_the_input_is_split(
            input in input(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let whole = read(&input);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let mut buffer = LineBuffer::new();
            let mut parts = Vec::new();
            for cut in cuts.windows(2) {
                buffer.extend(&input[cut[0]..cut[1]]);
                while buffer.has_line() {
                    parts.extend(buffer.next_line());
                }
                prop_assert_eq!(buffer.next_line(), None);
            }
            prop_assert_eq!(&parts, &whole);
            for line in whole {
                if let Line::Command(line) = line {
                    prop_assert!(line.len() <= MAX_LINE && !line.contains(&b'\n'));
                    prop_assert!(line.first().is_none_or(u8::is_ascii));
                }
            }
        }
    }
}
