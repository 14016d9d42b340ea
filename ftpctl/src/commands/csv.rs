//! CSV (RFC 4180): fields in quotes may hold commas, line ends and doubled quotes.

/// A record and the line where it begins.
pub(crate) type CsvRecord = (usize, Vec<String>);

/// # Errors
/// A quote is not closed, or text follows a closing quote. The message names the line.
pub(crate) fn records(text: &str) -> Result<Vec<CsvRecord>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut characters = text.chars().peekable();
    let mut records = Vec::new();
    let mut line = 1;
    while characters.peek().is_some() {
        let start = line;
        let mut record = Vec::new();
        loop {
            let mut field = String::new();
            if characters.next_if_eq(&'"').is_some() {
                loop {
                    match characters.next() {
                        None => return Err(format!("line {start}: a quote is not closed")),
                        Some('"') if characters.next_if_eq(&'"').is_some() => field.push('"'),
                        Some('"') => break,
                        Some(character) => {
                            line += usize::from(character == '\n');
                            field.push(character);
                        }
                    }
                }
            } else {
                while let Some(character) = characters.next_if(|c| !matches!(c, ',' | '\n' | '\r')) {
                    field.push(character);
                }
            }
            record.push(field);
            let _ = characters.next_if_eq(&'\r');
            match characters.next() {
                Some(',') => {}
                None | Some('\n') => break,
                Some(_) => return Err(format!("line {line}: a comma or the end of the line is expected")),
            }
        }
        line += 1;
        if record != [""] {
            records.push((start, record));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_hold_commas_and_line_ends() {
        let read = records("name,home\r\n\"a,\"\"b\",\"x\ny\"\n\nc,\n").unwrap();
        let expected = [(1, vec!["name", "home"]), (2, vec!["a,\"b", "x\ny"]), (5, vec!["c", ""])];
        assert_eq!(read.len(), expected.len());
        for ((line, record), (expected_line, expected)) in read.iter().zip(expected) {
            assert_eq!((*line, record.iter().map(String::as_str).collect()), (expected_line, expected));
        }
        assert!(records("a,\"b").unwrap_err().contains("line 1"));
        assert!(records("\"a\"b").is_err());
    }

    proptest! {
        #[test]
        fn any_text_in_quotes_comes_back(fields in proptest::collection::vec(".*", 2..5)) {
            let quote = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let quoted: Vec<_> = fields.iter().map(quote).collect();
            prop_assert_eq!(records(&quoted.join(",")).unwrap(), vec![(1, fields)]);
        }
    }
}
