//! Lines of the control connection: CRLF framing with a maximum length, without Telnet's commands.

use std::mem;

/// The longest command line in bytes, without its line end: two paths of `PATH_MAX`.
pub const MAX_LINE: usize = 8192;

/// What stands between two line ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Command(Vec<u8>),
    /// Longer than [`MAX_LINE`]. Nothing of it is kept, so that its tail cannot pass for a command.
    TooLong,
}

/// Collects what was read from a control connection and gives it back line by line.
///
/// Lines end with CRLF, with LF alone, or with CR CRLF, as text mode makes it of a client's own CRLF.
/// A CR elsewhere, also the `CR NUL` that RFC 854 has for a bare CR, and NUL stay in the line for the
/// parser to refuse.
///
/// Telnet commands (RFC 854) are recognised before a line's first byte alone, and all bytes above 127
/// are dropped there: clients put `IAC IP IAC DM` before ABOR, and of that balancers drop the byte that
/// was sent urgent. Within a line 255 is a byte of a name like any other, because most clients send
/// names as they are, and without what looks like a command two names could become one. Only two of
/// them stand for one, as RFC 854 writes the byte.
///
/// Some clients (Python's ftplib) send `ABOR CR LF` urgent as a whole: what is dropped then is the LF,
/// so that ABOR ends with CR, and an LF that follows belongs to it.
///
/// Holds at most [`MAX_LINE`] and what one call to [`extend`](Self::extend) brings, if lines are
/// taken out before more is put in; and no heap memory while empty.
#[derive(Debug, Default)]
pub struct LineBuffer {
    /// Lines, the last one perhaps unfinished: for each a byte that says whether it was too long
    /// ([`COMMAND`] or [`TOO_LONG`]), its bytes, and LF.
    lines: Vec<u8>,
    /// Where in `lines` the first line begins that was not taken yet.
    first: usize,
    /// Where in `lines` the unfinished line begins, if there is one.
    unfinished: Option<usize>,
    telnet: Telnet,
    /// Nothing but CR has come since the CR that ended an ABOR.
    after_abor: bool,
}

const COMMAND: u8 = 0;
const TOO_LONG: u8 = 1;

/// What the last byte was to Telnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Telnet {
    #[default]
    Text,
    /// IAC before a line.
    Command,
    /// One of WILL, WONT, DO, DONT after it: the option's number follows.
    Option,
    /// The byte 255 in a line. It has been taken; another one right after it is its double.
    Escape,
}

/// "Interpret as command".
const IAC: u8 = 0xff;
/// The lowest byte that IAC makes a command.
const FIRST_COMMAND: u8 = 0xf0;
const WILL: u8 = 0xfb;
const DONT: u8 = 0xfe;

impl LineBuffer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what was read.
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
                (Telnet::Escape, IAC) => Telnet::Text,
                (Telnet::Text, IAC) if self.unfinished.is_none() => Telnet::Command,
                (Telnet::Text, IAC) => {
                    self.push(IAC);
                    Telnet::Escape
                }
                (Telnet::Command, WILL..=DONT) => Telnet::Option,
                (Telnet::Command, FIRST_COMMAND..) | (Telnet::Option, _) => Telnet::Text,
                // The byte after IAC is not a command: that one was urgent, and lost.
                (Telnet::Text | Telnet::Escape | Telnet::Command, byte) => {
                    self.push(byte);
                    Telnet::Text
                }
            };
        }
        self.release();
    }

    /// The next complete line, if there is one.
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

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.lines.len() - self.first
    }

    /// Whether [`next_line`](Self::next_line) would give a line.
    pub fn has_line(&self) -> bool {
        self.first < self.unfinished.unwrap_or(self.lines.len())
    }

    /// Whether nothing was read that has not been given back: no line and no part of one.
    pub fn is_empty(&self) -> bool {
        self.first == self.lines.len() && self.telnet == Telnet::Text
    }

    /// Drops everything, as is due when the connection changes to TLS: what was sent before in the
    /// clear must not be obeyed after (CVE-2011-0411).
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes a byte of text.
    fn push(&mut self, byte: u8) {
        let start = match self.unfinished {
            Some(start) => start,
            // Not part of any verb, see the type.
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
            // Beyond what a line may have there are one or two CRs of its end.
            let beyond = self.lines.get(start + 1 + MAX_LINE..).unwrap_or_default();
            if beyond.len() > 2 || beyond.iter().any(|byte| *byte != b'\r') {
                self.lines.truncate(start);
                self.lines.push(TOO_LONG);
            }
        }
    }

    /// Gives the memory back once everything was taken.
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
    fn pipelined_lines_come_out_one_by_one_and_the_rest_waits() {
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
    fn an_over_long_line_is_dropped_to_its_end_and_told_once() {
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
    fn telnet_commands_are_taken_out_before_a_line_alone_rfc_854() {
        for (input, line) in [
            (&b"\xff\xf4\xff\xf2ABOR\r\n"[..], &b"ABOR"[..]), // IAC IP IAC DM
            (b"\xff\xf4\xffABOR\r\n", b"ABOR"),               // DM was urgent, and lost
            (b"\xf2ABOR\r\n", b"ABOR"),                       // all but DM was
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
    fn abor_ends_without_its_lf_which_was_urgent_and_lost() {
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
    fn clearing_forgets_lines_parts_of_lines_and_telnet_commands() {
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
            4 => prop::collection::vec(prop::sample::select(&b"AB \r\n\0\xff\xf0\xf2\xfb\xfe\xe4"[..]), 0..20),
            1 => any::<Vec<u8>>(),
            1 => (MAX_LINE - 3..MAX_LINE + 4).prop_map(|n| vec![b'x'; n]),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// However a client writes the byte 255, the name that arrives tells the names apart.
        #[test]
        fn a_name_in_a_line_loses_nothing_but_the_double_of_255(
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
        fn lines_are_the_same_however_the_input_is_cut(
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
