//! Replies on the control connection and their encoding (RFC 959 section 4.2).

use std::borrow::Cow;

use super::failure::Failure;

/// A reply code. The first digit tells success from failure (RFC 959 section 4.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Code(u16);

impl Code {
    pub const OPENING_DATA_CONNECTION: Self = Self(150);
    pub const OK: Self = Self(200);
    pub const SUPERFLUOUS: Self = Self(202);
    pub const SYSTEM_STATUS: Self = Self(211);
    pub const FILE_STATUS: Self = Self(213);
    pub const HELP: Self = Self(214);
    pub const SYSTEM_TYPE: Self = Self(215);
    pub const READY: Self = Self(220);
    pub const CLOSING: Self = Self(221);
    pub const TRANSFER_COMPLETE: Self = Self(226);
    pub const PASSIVE: Self = Self(227);
    /// RFC 2428.
    pub const EXTENDED_PASSIVE: Self = Self(229);
    pub const LOGGED_IN: Self = Self(230);
    /// RFC 2228.
    pub const SECURITY_ACCEPTED: Self = Self(234);
    pub const DONE: Self = Self(250);
    pub const PATHNAME: Self = Self(257);
    pub const NEED_PASSWORD: Self = Self(331);
    pub const PENDING: Self = Self(350);
    /// The server closes the control connection after this reply.
    pub const SERVICE_UNAVAILABLE: Self = Self(421);
    pub const NO_DATA_CONNECTION: Self = Self(425);
    pub const TRANSFER_ABORTED: Self = Self(426);
    pub const FILE_BUSY: Self = Self(450);
    pub const LOCAL_ERROR: Self = Self(451);
    pub const NO_SPACE: Self = Self(452);
    pub const UNKNOWN_COMMAND: Self = Self(500);
    pub const BAD_ARGUMENTS: Self = Self(501);
    pub const NOT_IMPLEMENTED: Self = Self(502);
    pub const BAD_SEQUENCE: Self = Self(503);
    pub const UNSUPPORTED_PARAMETER: Self = Self(504);
    /// RFC 4217 section 10: the data connection must be protected, but is not.
    pub const PROTECTION_REQUIRED: Self = Self(521);
    /// RFC 2428: the network protocol of EPRT or EPSV is not supported.
    pub const UNSUPPORTED_FAMILY: Self = Self(522);
    pub const NOT_LOGGED_IN: Self = Self(530);
    /// RFC 2228: the server's policy forbids the request.
    pub const POLICY: Self = Self(534);
    /// RFC 2228: the protection level is not supported.
    pub const UNSUPPORTED_PROTECTION: Self = Self(536);
    pub const FILE_UNAVAILABLE: Self = Self(550);
    pub const QUOTA_EXCEEDED: Self = Self(552);
    pub const BAD_NAME: Self = Self(553);
    /// RFC 3659 section 5: the restart offset cannot be used.
    pub const BAD_OFFSET: Self = Self(554);

    pub fn value(self) -> u16 {
        self.0
    }

    /// Returns true for 4xx and 5xx: the command failed.
    pub fn is_failure(self) -> bool {
        self.0 >= 400
    }

    /// Returns true if the command was unknown, malformed, unsupported, out of sequence, or needed a
    /// login. Such a command is refused without access to the storage.
    pub fn is_rejection(self) -> bool {
        matches!(self.0, 500..=504 | 530)
    }
}

/// One line of a reply without code and line end: a constant, or bytes that contain names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyText(Cow<'static, [u8]>);

impl From<&'static str> for ReplyText {
    fn from(text: &'static str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }
}

impl From<String> for ReplyText {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text.into_bytes()))
    }
}

impl From<Vec<u8>> for ReplyText {
    fn from(text: Vec<u8>) -> Self {
        Self(Cow::Owned(text))
    }
}

/// The reply to a command: a code and one or more lines of text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    code: Code,
    first: ReplyText,
    further: Option<Box<FurtherLines>>,
    /// For the log and the metrics; not sent to the client.
    failure: Option<Box<Failure>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct FurtherLines {
    middle: Vec<ReplyText>,
    last: ReplyText,
}

impl Reply {
    pub fn new(code: Code, text: impl Into<ReplyText>) -> Self {
        Self { code, first: text.into(), further: None, failure: None }
    }

    /// A reply of several lines: `first` after the code, each of `middle` on a line without code, and
    /// `last` after the code again.
    pub fn lines(
        code: Code,
        first: impl Into<ReplyText>,
        middle: Vec<ReplyText>,
        last: impl Into<ReplyText>,
    ) -> Self {
        let further = FurtherLines { middle, last: last.into() };
        Self { code, first: first.into(), further: Some(Box::new(further)), failure: None }
    }

    /// `257 "path" text`, the reply to PWD and MKD. A quote in the path is doubled (RFC 959
    /// appendix II).
    pub fn quoted_path(path: &[u8], text: &str) -> Self {
        let mut line = Vec::with_capacity(path.len() + text.len() + 3);
        line.push(b'"');
        for byte in path {
            if *byte == b'"' {
                line.push(b'"');
            }
            line.push(*byte);
        }
        line.extend_from_slice(b"\" ");
        line.extend_from_slice(text.as_bytes());
        Self::new(Code::PATHNAME, line)
    }

    /// The reply to NOOP.
    pub fn ok() -> Self {
        Self::new(Code::OK, "OK")
    }

    /// The reply to QUIT.
    pub fn goodbye() -> Self {
        Self::new(Code::CLOSING, "Goodbye")
    }

    /// The reply to a command that needs a login.
    pub fn please_log_in() -> Self {
        Self::new(Code::NOT_LOGGED_IN, "Please log in with USER and PASS")
    }

    /// The reply to a command that the user has no permission for. It does not reveal whether the path
    /// exists.
    pub fn permission_denied() -> Self {
        Self::new(Code::FILE_UNAVAILABLE, "Permission denied").because(Failure {
            detail: Some("the account or an access rule for this path does not permit it".into()),
            ..Failure::from("permission")
        })
    }

    /// Adds the reason of the failure, for the log and the metrics.
    #[must_use]
    pub fn because(mut self, failure: impl Into<Failure>) -> Self {
        self.failure = Some(Box::new(failure.into()));
        self
    }

    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_deref()
    }

    /// The first line's text, for the log.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.first.0).into_owned()
    }

    pub fn code(&self) -> Code {
        self.code
    }

    /// Appends the encoded reply to `out`.
    ///
    /// Middle lines begin with a space, so that a client cannot mistake one for the last line (RFC 959
    /// section 4.2, RFC 2389 section 3.2). CR, LF and NUL become `?`, because a name chosen by a client
    /// or found on the storage must not end a line. All other bytes are kept, so that a client can use
    /// the path from PWD in CWD.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.further {
            None => self.line(b' ', &self.first, out),
            Some(further) => {
                self.line(b'-', &self.first, out);
                for text in &further.middle {
                    out.push(b' ');
                    push_line(text, out);
                }
                self.line(b' ', &further.last, out);
            }
        }
    }

    fn line(&self, separator: u8, text: &ReplyText, out: &mut Vec<u8>) {
        let Code(code) = self.code;
        debug_assert!((100..1000).contains(&code));
        out.extend([code / 100, code / 10 % 10, code % 10].map(|digit| b'0' + digit as u8));
        out.push(separator);
        push_line(text, out);
    }
}

/// Appends a name or text. CR, LF and NUL become `?`, so that it cannot end a line or begin another; no
/// client can name a path with these bytes anyway. All other bytes stay as they are.
pub fn push_line_safe(name: &[u8], out: &mut Vec<u8>) {
    out.extend(name.iter().map(|b| if matches!(b, b'\r' | b'\n' | 0) { b'?' } else { *b }));
}

fn push_line(text: &ReplyText, out: &mut Vec<u8>) {
    push_line_safe(&text.0, out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(reply: &Reply) -> Vec<u8> {
        let mut out = Vec::new();
        reply.encode(&mut out);
        out
    }

    #[test]
    fn replies_of_one_and_of_several_lines_have_the_form_of_rfc_959_4_2() {
        assert_eq!(encoded(&Reply::new(Code::DONE, "Done.")), b"250 Done.\r\n");
        let several = Reply::lines(Code::SYSTEM_STATUS, "State:", vec!["211 no end".into()], "End");
        assert_eq!(encoded(&several), b"211-State:\r\n 211 no end\r\n211 End\r\n");
    }

    #[test]
    fn quotes_in_a_quoted_path_are_doubled_rfc_959_appendix_ii() {
        let reply = Reply::quoted_path(b"/a\"b\r\n\t\xff", "created");
        assert_eq!(encoded(&reply), b"257 \"/a\"\"b??\t\xff\" created\r\n");
    }

    proptest! {
        #[test]
        fn no_text_can_end_a_reply_or_start_another(
            first: Vec<u8>,
            middle: Vec<Vec<u8>>,
            last: Vec<u8>,
        ) {
            let count = middle.len();
            let middle = middle.into_iter().map(ReplyText::from).collect();
            let out = encoded(&Reply::lines(Code::FILE_STATUS, first, middle, last));
            let lines: Vec<_> = out.strip_suffix(b"\r\n").unwrap().split(|b| *b == b'\n').collect();
            prop_assert_eq!(lines.len(), count + 2);
            for (i, line) in lines.iter().enumerate() {
                let start: &[u8] = match i {
                    0 => b"213-",
                    _ if i == count + 1 => b"213 ",
                    _ => b" ",
                };
                prop_assert!(line.starts_with(start));
                let line = if i <= count { line.strip_suffix(b"\r").unwrap() } else { line };
                prop_assert!(!line.iter().any(|byte| matches!(byte, b'\r' | 0)));
            }
        }
    }
}
