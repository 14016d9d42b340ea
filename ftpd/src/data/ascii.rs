//! The conversion of line ends in TYPE A: CRLF on the wire (RFC 959 section 3.1.1.1), LF in files. Pure.

/// Converts LF to CRLF, for downloads. A CRLF in the file stays CRLF.
#[derive(Debug, Default)]
pub struct Outgoing {
    after_cr: bool,
}

impl Outgoing {
    /// Appends the converted `input` to `output`: at most twice as many bytes.
    pub fn convert(&mut self, input: &[u8], output: &mut Vec<u8>) {
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            if let Some(text) = line.strip_suffix(b"\n") {
                let has_cr = text.last().map_or(self.after_cr, |last| *last == b'\r');
                output.extend_from_slice(text);
                output.extend_from_slice(if has_cr { b"\n" } else { b"\r\n" });
                self.after_cr = false;
            } else {
                output.extend_from_slice(line);
                self.after_cr = line.last() == Some(&b'\r');
            }
        }
    }
}

/// Converts CRLF to LF, for uploads. A CR before any other byte stays.
#[derive(Debug, Default)]
pub struct Incoming {
    /// The last byte was a CR; its meaning depends on the next byte.
    held_cr: bool,
}

impl Incoming {
    /// Appends the converted `input` to `output`: at most one byte more.
    pub fn convert(&mut self, input: &[u8], output: &mut Vec<u8>) {
        for piece in input.split_inclusive(|byte| *byte == b'\r') {
            if self.held_cr && piece.first() != Some(&b'\n') {
                output.push(b'\r');
            }
            let text = piece.strip_suffix(b"\r");
            self.held_cr = text.is_some();
            output.extend_from_slice(text.unwrap_or(piece));
        }
    }

    /// Appends a CR that was the last byte of the data.
    pub fn finish(&mut self, output: &mut Vec<u8>) {
        if std::mem::take(&mut self.held_cr) {
            output.push(b'\r');
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outgoing(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut converter, mut output) = (Outgoing::default(), Vec::new());
        chunks.iter().for_each(|chunk| converter.convert(chunk, &mut output));
        output
    }

    fn incoming(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut converter, mut output) = (Incoming::default(), Vec::new());
        chunks.iter().for_each(|chunk| converter.convert(chunk, &mut output));
        converter.finish(&mut output);
        output
    }

    #[test]
    fn lf_is_sent_as_crlf_and_crlf_is_not_doubled() {
        assert_eq!(outgoing(&[b"a\nb\r\nc\rd\n\n"]), b"a\r\nb\r\nc\rd\r\n\r\n");
        assert_eq!(outgoing(&[b"a\r", b"\nb"]), b"a\r\nb");
        assert_eq!(outgoing(&[b"a\r", b"", b"\nb"]), b"a\r\nb");
    }

    #[test]
    fn received_crlf_becomes_lf_and_a_lone_cr_stays() {
        assert_eq!(incoming(&[b"a\r\nb\nc\rd\r\r\ne\r"]), b"a\nb\nc\rd\r\ne\r");
        assert_eq!(incoming(&[b"a\r", b"\nb\r", b"c"]), b"a\nb\rc");
    }

    fn chunked() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
        let byte = prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()];
        (prop::collection::vec(byte, 0..64), prop::collection::vec(0..8usize, 0..64))
    }

    fn cut<'d>(data: &'d [u8], lengths: &[usize]) -> Vec<&'d [u8]> {
        let mut rest = data;
        let mut chunks = Vec::new();
        for length in lengths {
            let (chunk, after) = rest.split_at((*length).min(rest.len()));
            chunks.push(chunk);
            rest = after;
        }
        chunks.push(rest);
        chunks
    }

    proptest! {
        #[test]
        fn the_sizes_of_the_pieces_do_not_matter((data, lengths) in chunked()) {
            let chunks = cut(&data, &lengths);
            prop_assert_eq!(outgoing(&chunks), outgoing(&[&data]));
            prop_assert_eq!(incoming(&chunks), incoming(&[&data]));
        }

        #[test]
        fn sent_data_has_no_bare_lf((data, _) in chunked()) {
            let sent = outgoing(&[&data]);
            for (at, byte) in sent.iter().enumerate() {
                prop_assert!(*byte != b'\n' || (at > 0 && sent[at - 1] == b'\r'));
            }
        }

        #[test]
        fn a_file_without_cr_comes_back_as_it_went(text in "[a-c\n]{0,64}") {
            let sent = outgoing(&[text.as_bytes()]);
            prop_assert_eq!(incoming(&[&sent]), text.as_bytes());
        }
    }
}
