//! The coding of a file's bytes on the data connection.

/// The coding of a transfer: TYPE I or TYPE A (RFC 959 section 3.1.1). A further coding is a variant here,
/// with its two loops in [`copy`](super::copy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    /// The bytes of the file, unchanged.
    #[default]
    Image,
    /// Lines end in CRLF on the wire and in LF in the file.
    Ascii,
}

impl Coding {
    /// Returns true if the wire carries exactly the bytes of the file. Only then do offsets (REST), lengths
    /// (ALLO, SIZE) and copies inside the kernel work.
    pub fn keeps_bytes(self) -> bool {
        match self {
            Self::Image => true,
            Self::Ascii => false,
        }
    }
}
