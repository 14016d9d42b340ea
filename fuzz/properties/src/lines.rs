//! Properties of command lines and replies.

use ftpd::protocol::{
    AnyTimeCommand, Code, Command, LoggedInCommand, ParseError, Reply,
    line::{Line, LineBuffer, MAX_LINE},
    parse,
    reply::ReplyText,
    verbs,
};

/// Property of the bytes of a control connection. The first byte of the input sets the length of the
/// reads in which the other bytes arrive.
///
/// * The lines do not depend on the lengths of the reads.
/// * No line is longer than [`MAX_LINE`].
/// * The buffer never holds more than one line and the bytes of one read.
/// * Each line is a valid request, or gets one reply of one line.
/// * A line keeps every byte after the verb. Two consecutive bytes 255 become one (Telnet IAC).
pub fn command(input: &[u8]) {
    let (step, bytes) = match input.split_first() {
        Some((first, rest)) => (usize::from(*first) + 1, rest),
        None => (1, input),
    };
    let whole = lines(bytes, bytes.len().max(1));
    assert_eq!(whole, lines(bytes, step), "reads of {step} bytes give other lines");
    assert_eq!(whole, lines(bytes, 1), "reads of one byte give other lines");
    for line in &whole {
        match line {
            Line::Command(line) => check_line(line),
            Line::TooLong => check_rejection(ParseError::TooLong),
        }
    }
    let argument: Vec<u8> = bytes.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let line = [b"STOR ", &argument[..argument.len().min(MAX_LINE - 5)]].concat();
    let whole = lines(&[&line[..], b"\r\n"].concat(), step);
    assert_eq!(whole, [Line::Command(without_doubled_iac(&line))], "the argument has changed");
    let mut buffer = LineBuffer::new();
    buffer.extend(bytes);
    buffer.clear();
    buffer.extend(b"PWD\r\n");
    assert_eq!(buffer.next_line(), Some(Line::Command(b"PWD".to_vec())), "clear() has left bytes");
}

/// Returns `text` with each pair of bytes 255 replaced by one byte 255, from left to right.
fn without_doubled_iac(text: &[u8]) -> Vec<u8> {
    let mut single = Vec::new();
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        single.push(*byte);
        rest = if let ([255, ..], [255, after @ ..]) = (rest, after) { after } else { after };
    }
    single
}

/// Returns the lines of `bytes`, which arrive in reads of `step` bytes.
pub(crate) fn lines(bytes: &[u8], step: usize) -> Vec<Line> {
    let mut buffer = LineBuffer::new();
    let mut lines = Vec::new();
    for read in bytes.chunks(step) {
        buffer.extend(read);
        // The buffer stores two bytes for an empty line, which may arrive as one byte.
        assert!(buffer.len() <= MAX_LINE + 3 + 2 * read.len(), "the buffer holds {} bytes", buffer.len());
        while let Some(line) = buffer.next_line() {
            if let Line::Command(line) = &line {
                assert!(line.len() <= MAX_LINE && !line.contains(&b'\n'));
            }
            lines.push(line);
        }
        assert!(!buffer.has_line());
        // An unfinished line, one byte of state, and two CRs that may belong to the line's end.
        assert!(buffer.len() <= MAX_LINE + 3, "the buffer holds {} bytes of one line", buffer.len());
    }
    lines
}

/// Checks that a line is a valid request, or is rejected properly.
fn check_line(line: &[u8]) {
    let request = match parse(line) {
        Ok(request) => request,
        Err(error) => return check_rejection(error),
    };
    let argument = line.get(request.verb.name.len()..).unwrap_or_default();
    assert!(!argument.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')), "an argument holds NUL, CR or LF");
    // The first word is the verb or an alias of the verb.
    let word = line.split(|b| *b == b' ').next().unwrap_or_default();
    assert_eq!(verbs::find(word), Some(request.verb));
    match &request.command {
        // The debug format hides the password, so that no log can contain it.
        Command::AnyTime(AnyTimeCommand::Pass(_)) => {
            assert_eq!(format!("{:?}", request.command), "AnyTime(Pass([password]))")
        }
        Command::LoggedIn(LoggedInCommand::Allo(n) | LoggedInCommand::Rest(n)) => {
            assert!(i64::try_from(*n).is_ok())
        }
        Command::LoggedIn(LoggedInCommand::Rang(Some(range))) => {
            assert!(range.start <= range.end && i64::try_from(range.end).is_ok(), "{range:?}");
        }
        _ => {}
    }
}

/// Checks that an invalid line gets one reply of one line with an error code.
fn check_rejection(error: ParseError) {
    let Some(reply) = error.reply() else { return assert_eq!(error, ParseError::Foreign) };
    assert!(reply.code().is_rejection() || reply.code() == Code::UNSUPPORTED_FAMILY, "{reply:?}");
    let mut encoded = Vec::new();
    reply.encode(&mut encoded);
    assert_eq!(encoded.iter().filter(|b| **b == b'\n').count(), 1);
}

/// Property of replies: a reply made of any texts is one complete reply with one line for each text.
/// LF separates the texts in the input.
pub fn reply(input: &[u8]) {
    let mut texts: Vec<Vec<u8>> = input.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let quoted = Reply::quoted_path(input, "is the path");
    assert_eq!(whole_replies(&encoded(&quoted)), Ok(vec![257]));
    let first = texts.remove(0);
    let reply = match texts.pop() {
        None => Reply::new(Code::DONE, first),
        Some(last) => {
            // The texts in the middle contain CR and LF again, which must not end a line.
            let middle =
                texts.into_iter().map(|text| ReplyText::from([&text[..], b"\r\n"].concat())).collect();
            Reply::lines(Code::DONE, first, middle, last)
        }
    };
    let encoded = encoded(&reply);
    let count = input.iter().filter(|b| **b == b'\n').count() + 1;
    assert_eq!(encoded.iter().filter(|b| **b == b'\n').count(), count);
    assert_eq!(whole_replies(&encoded), Ok(vec![250]));
}

fn encoded(reply: &Reply) -> Vec<u8> {
    let mut out = Vec::new();
    reply.encode(&mut out);
    out
}

/// Returns the codes of complete replies (RFC 959 section 4.2). This is stricter than a client must
/// be: every line ends with CRLF and has no other CR and no NUL, and lines within a reply begin with
/// a space.
///
/// # Errors
/// The bytes are not complete replies. The text describes the first fault.
pub(crate) fn whole_replies(bytes: &[u8]) -> Result<Vec<u16>, String> {
    let mut codes = Vec::new();
    let mut open = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n').ok_or("the last line has no LF")?;
        let line = rest[..end].strip_suffix(b"\r").ok_or("a line ends with LF without CR")?;
        rest = &rest[end + 1..];
        if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return Err(format!("CR or NUL in {}", line.escape_ascii()));
        }
        let code = || str::from_utf8(line.get(..3)?).ok()?.parse::<u16>().ok();
        match (open, line.get(3)) {
            (Some(_), _) if line.starts_with(b" ") => {}
            (None, Some(b'-')) => open = Some(code().ok_or("the first line has no code")?),
            (None, Some(b' ')) => codes.push(code().ok_or("a reply has no code")?),
            (Some(first), Some(b' ')) if code() == Some(first) => {
                codes.push(first);
                open = None;
            }
            _ => return Err(format!("not a line of a reply: {}", line.escape_ascii())),
        }
    }
    match open {
        None => Ok(codes),
        Some(_) => Err("the last reply is incomplete".to_owned()),
    }
}
