//! Command lines in, replies out.

use ftpd::protocol::{
    AnyTimeCommand, Code, Command, LoggedInCommand, ParseError, Reply,
    line::{Line, LineBuffer, MAX_LINE},
    parse,
    reply::ReplyText,
    verbs,
};

/// Lines of a control connection. The first byte says how the rest is cut into reads.
///
/// However it is cut, the same lines come out; none is longer than [`MAX_LINE`]; no more is held
/// than a line and what one read brought; and each line is a request, or has one reply of one line.
/// After a verb a line keeps every byte, and one 255 of each two.
pub fn command(input: &[u8]) {
    let (step, bytes) = match input.split_first() {
        Some((first, rest)) => (usize::from(*first) + 1, rest),
        None => (1, input),
    };
    let whole = lines(bytes, bytes.len().max(1));
    assert_eq!(whole, lines(bytes, step), "cut into reads of {step} bytes");
    assert_eq!(whole, lines(bytes, 1), "cut into single bytes");
    for line in &whole {
        match line {
            Line::Command(line) => understood(line),
            Line::TooLong => refused(ParseError::TooLong),
        }
    }
    let argument: Vec<u8> = bytes.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let line = [b"STOR ", &argument[..argument.len().min(MAX_LINE - 5)]].concat();
    let whole = lines(&[&line[..], b"\r\n"].concat(), step);
    assert_eq!(whole, [Line::Command(without_doubles(&line))], "a name has changed");
    let mut buffer = LineBuffer::new();
    buffer.extend(bytes);
    buffer.clear();
    buffer.extend(b"PWD\r\n");
    assert_eq!(buffer.next_line(), Some(Line::Command(b"PWD".to_vec())), "something outlived clear()");
}

/// `text` with one byte 255 for each two of them, from left to right.
fn without_doubles(text: &[u8]) -> Vec<u8> {
    let mut single = Vec::new();
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        single.push(*byte);
        rest = if let ([255, ..], [255, after @ ..]) = (rest, after) { after } else { after };
    }
    single
}

/// The lines of `bytes` that come in reads of `step` bytes.
pub(crate) fn lines(bytes: &[u8], step: usize) -> Vec<Line> {
    let mut buffer = LineBuffer::new();
    let mut lines = Vec::new();
    for read in bytes.chunks(step) {
        buffer.extend(read);
        // An empty line takes two bytes for one.
        assert!(buffer.len() <= MAX_LINE + 3 + 2 * read.len(), "{} bytes are held", buffer.len());
        while let Some(line) = buffer.next_line() {
            if let Line::Command(line) = &line {
                assert!(line.len() <= MAX_LINE && !line.contains(&b'\n'));
            }
            lines.push(line);
        }
        assert!(!buffer.has_line());
        // One for its state, and two CRs that may belong to its end.
        assert!(buffer.len() <= MAX_LINE + 3, "{} bytes are held of an unfinished line", buffer.len());
    }
    lines
}

fn understood(line: &[u8]) {
    let request = match parse(line) {
        Ok(request) => request,
        Err(error) => return refused(error),
    };
    let argument = line.get(request.verb.name.len()..).unwrap_or_default();
    assert!(!argument.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')), "a name can hold what no name may");
    // The verb's name and its older form are all of the first word.
    let word = line.split(|b| *b == b' ').next().unwrap_or_default();
    assert_eq!(verbs::find(word), Some(request.verb));
    match &request.command {
        // What is not shown cannot be logged.
        Command::AnyTime(AnyTimeCommand::Pass(_)) => {
            assert_eq!(format!("{:?}", request.command), "Pass([password])")
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

fn refused(error: ParseError) {
    let Some(reply) = error.reply() else { return assert_eq!(error, ParseError::Foreign) };
    assert!(reply.code().is_rejection() || reply.code() == Code::UNSUPPORTED_FAMILY, "{reply:?}");
    let mut encoded = Vec::new();
    reply.encode(&mut encoded);
    assert_eq!(encoded.iter().filter(|b| **b == b'\n').count(), 1);
}

/// Texts of a reply, with LF between them. Whatever they hold, the reply is one reply: as many
/// lines as texts, of which the last alone has code and space.
pub fn reply(input: &[u8]) {
    let mut texts: Vec<Vec<u8>> = input.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let quoted = Reply::quoted_path(input, "is the path");
    assert_eq!(whole_replies(&encoded(&quoted)), Ok(vec![257]));
    let first = texts.remove(0);
    let reply = match texts.pop() {
        None => Reply::new(Code::DONE, first),
        Some(last) => {
            // Text has LF in it again, and CR: neither may end a line.
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

/// The codes of complete replies, RFC 959 section 4.2. Stricter than a client has to be: every
/// line ends with CRLF and has no other CR and no NUL, and lines within a reply begin with a space.
///
/// # Errors
/// What is wrong with the bytes.
pub(crate) fn whole_replies(bytes: &[u8]) -> Result<Vec<u16>, String> {
    let mut codes = Vec::new();
    let mut open = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n').ok_or("a line has no end")?;
        let line = rest[..end].strip_suffix(b"\r").ok_or("a line ends with LF alone")?;
        rest = &rest[end + 1..];
        if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return Err(format!("CR or NUL in {}", line.escape_ascii()));
        }
        let code = || str::from_utf8(line.get(..3)?).ok()?.parse::<u16>().ok();
        match (open, line.get(3)) {
            (Some(_), _) if line.starts_with(b" ") => {}
            (None, Some(b'-')) => open = Some(code().ok_or("no code before -")?),
            (None, Some(b' ')) => codes.push(code().ok_or("no code")?),
            (Some(first), Some(b' ')) if code() == Some(first) => {
                codes.push(first);
                open = None;
            }
            _ => return Err(format!("no line of a reply: {}", line.escape_ascii())),
        }
    }
    match open {
        None => Ok(codes),
        Some(_) => Err("the last reply has no end".to_owned()),
    }
}
