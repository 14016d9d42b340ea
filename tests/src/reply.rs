//! Parses FTP replies for clients.

use std::{fmt, net::SocketAddr};

/// A complete reply of one or several lines (RFC 959 section 4.2).
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    /// The bytes as received, with line ends.
    pub raw: Vec<u8>,
}

impl Reply {
    /// Removes the first complete reply from `buffer`. `None`: the buffer contains no complete reply yet.
    ///
    /// # Errors
    /// The bytes are not an FTP reply.
    pub fn take(buffer: &mut Vec<u8>) -> Result<Option<Self>, String> {
        let mut end = 0;
        let mut code = None;
        while let Some(length) = buffer[end..].iter().position(|b| *b == b'\n') {
            let line = &buffer[end..end + length];
            end += length + 1;
            let Some(line) = line.strip_suffix(b"\r") else {
                return Err(format!("a line without CR: {:?}", String::from_utf8_lossy(line)));
            };
            let begins =
                |mark: u8| line.len() >= 4 && line[..3].iter().all(u8::is_ascii_digit) && line[3] == mark;
            let number = || line[..3].iter().fold(0, |n, digit| n * 10 + u16::from(digit - b'0'));
            match code {
                None if begins(b' ') => code = Some(number()),
                None if begins(b'-') => {
                    code = Some(number());
                    continue;
                }
                Some(first) if begins(b' ') && number() == first => {}
                Some(_) => continue,
                None => return Err(format!("not a reply: {:?}", String::from_utf8_lossy(line))),
            }
            let raw = buffer.drain(..end).collect();
            return Ok(code.map(|code| Self { code, raw }));
        }
        Ok(None)
    }

    /// The reply as text, without the last line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.raw).trim_end().to_owned()
    }

    /// The text of the only or last line, without the code.
    pub fn message(&self) -> String {
        let text = self.text();
        text.lines().next_back().and_then(|line| line.get(4..)).unwrap_or_default().to_owned()
    }

    /// The lines between the first and the last of a multi-line reply, without their leading spaces.
    pub fn details(&self) -> Vec<String> {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        match lines.len() {
            0..=2 => vec![],
            n => {
                lines[1..n - 1].iter().map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned()).collect()
            }
        }
    }

    /// The address in a 227 reply (RFC 959 section 4.1.2).
    pub fn passive_address(&self) -> Option<SocketAddr> {
        let text = self.text();
        let inside = text.split_once('(')?.1.split_once(')')?.0;
        let n: Vec<u8> = inside.split(',').map(|n| n.parse()).collect::<Result<_, _>>().ok()?;
        let [a, b, c, d, high, low] = n[..] else { return None };
        Some(([a, b, c, d], u16::from_be_bytes([high, low])).into())
    }

    /// The port in a 229 reply (RFC 2428 section 3).
    pub fn extended_passive_port(&self) -> Option<u16> {
        self.text().split_once("(|||")?.1.split_once("|)")?.0.parse().ok()
    }

    /// The path in a 257 reply, with doubled quotes undone (RFC 959, appendix II).
    pub fn quoted_path(&self) -> Option<String> {
        let text = self.text();
        let rest = text.split_once('"')?.1;
        let mut path = String::new();
        let mut characters = rest.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '"' if characters.peek() == Some(&'"') => {
                    characters.next();
                    path.push('"');
                }
                '"' => return Some(path),
                c => path.push(c),
            }
        }
        None
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Option<Reply>, String> {
        Reply::take(&mut text.as_bytes().to_vec())
    }

    #[test]
    fn a_reply_ends_with_the_line_that_has_its_code_and_a_space() {
        let mut buffer = b"211-Features:\r\n UTF8\r\n 211 not yet\r\n211 End\r\n220 next\r\n2".to_vec();
        let reply = Reply::take(&mut buffer).unwrap().unwrap();
        assert_eq!((reply.code, reply.message()), (211, "End".to_owned()));
        assert_eq!(reply.details(), ["UTF8", "211 not yet"]);
        assert_eq!(Reply::take(&mut buffer).unwrap().unwrap().text(), "220 next");
        assert_eq!(Reply::take(&mut buffer), Ok(None));
        assert_eq!(buffer, b"2");
    }

    #[test]
    fn what_is_no_reply() {
        assert!(take("hello\r\n").is_err());
        assert!(take("220 hello\n").is_err());
        assert_eq!(take("220-hello\r\n"), Ok(None));
    }

    #[test]
    fn addresses_and_paths() {
        let reply = take("227 Entering Passive Mode (127,0,0,1,195,80).\r\n").unwrap().unwrap();
        assert_eq!(reply.passive_address(), Some(([127, 0, 0, 1], 50000).into()));
        let reply = take("229 Entering Extended Passive Mode (|||50010|)\r\n").unwrap().unwrap();
        assert_eq!(reply.extended_passive_port(), Some(50010));
        let reply = take("257 \"/a\"\"b\" is current directory\r\n").unwrap().unwrap();
        assert_eq!(reply.quoted_path().as_deref(), Some("/a\"b"));
    }
}
