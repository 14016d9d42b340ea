//! Whether the end of an upload's data is believed: the one place that decides it, from evidence alone.
//!
//! An end of file is the word of whatever closed the connection. A client that is killed closes both its
//! connections in the same orderly way as one that has sent everything, and nginx turns a reset into an
//! orderly end. In doubt the upload broke off, and what arrived stays for REST and APPE.

use super::transfers::TransferFailure;
use crate::data::{stream::DataEnd, transfer::TransferError};

/// What is known when the end of the data has come.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    pub end: DataEnd,
    /// The control connection stood when the end of the data was seen. Where the answer decides whether
    /// a hidden file gets its name, it still stood after `settle_time`.
    pub client_stands: bool,
    /// The client must send close_notify where there is TLS.
    pub close_notify_required: bool,
    /// What ALLO announced; nothing in TYPE A, where the bytes on the wire are not those of the file.
    pub announced: Option<u64>,
    /// Where in the file the upload began.
    pub start: u64,
    /// Bytes that came.
    pub got: u64,
}

impl Evidence {
    /// Whether exactly what ALLO announced has come. After REST some clients announce what is to come,
    /// others the whole file.
    pub fn meets_announcement(&self) -> bool {
        self.announced.is_some_and(|announced| announced == self.got || announced == self.start + self.got)
    }

    /// Decides whether the upload is complete.
    ///
    /// * Exactly what ALLO announced has come: complete, whatever else is known. With TLS, ALLO came over
    ///   the encrypted control connection, so only the client can have announced it.
    /// * Without close_notify, where it is required, the network may have ended the stream.
    /// * Otherwise a client that has left is not believed, not even after close_notify: a client that
    ///   gives up (curl after `--max-time`) sends close_notify, too, and then closes the control
    ///   connection.
    /// * ALLO reserves room and announces no exact length (RFC 959 section 4.1.3). Fewer bytes than it
    ///   announced are a sign of a cut upload only where the end of the data proves nothing.
    ///
    /// # Errors
    /// Why it is not.
    pub fn believe(&self) -> Result<(), TransferFailure> {
        if self.meets_announcement() {
            return Ok(());
        }
        if self.end == DataEnd::WithoutCloseNotify && self.close_notify_required {
            return Err(TransferError::NoCloseNotify.into());
        }
        if !self.client_stands {
            return Err(TransferError::ClientLeft.into());
        }
        match (self.end, self.announced) {
            (DataEnd::OfBalancer | DataEnd::WithoutCloseNotify, Some(announced)) if self.got < announced => {
                Err(TransferFailure::Short { announced, got: self.got })
            }
            (
                DataEnd::CloseNotify | DataEnd::OfClient | DataEnd::OfBalancer | DataEnd::WithoutCloseNotify,
                _,
            ) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: [DataEnd; 4] =
        [DataEnd::CloseNotify, DataEnd::WithoutCloseNotify, DataEnd::OfClient, DataEnd::OfBalancer];

    fn evidence(end: DataEnd) -> Evidence {
        Evidence {
            end,
            client_stands: true,
            close_notify_required: false,
            announced: None,
            start: 0,
            got: 10,
        }
    }

    #[test]
    fn without_allo_the_end_is_believed_while_the_control_connection_stands() {
        for end in ENDS {
            assert!(evidence(end).believe().is_ok(), "{end:?}");
            let left = Evidence { client_stands: false, ..evidence(end) };
            let believed = left.believe();
            assert!(matches!(believed, Err(TransferFailure::Failed(TransferError::ClientLeft))), "{end:?}");
        }
    }

    #[test]
    fn exactly_what_allo_announced_is_complete_even_if_the_client_has_left() {
        for end in ENDS {
            for (start, announced) in [(0, 10), (90, 10), (90, 100)] {
                let evidence =
                    Evidence { client_stands: false, announced: Some(announced), start, ..evidence(end) };
                assert!(evidence.believe().is_ok(), "{evidence:?}");
            }
        }
    }

    #[test]
    fn without_a_required_close_notify_only_allo_proves_the_end() {
        for client_stands in [true, false] {
            let required = Evidence {
                client_stands,
                close_notify_required: true,
                ..evidence(DataEnd::WithoutCloseNotify)
            };
            let believed = required.believe();
            assert!(matches!(believed, Err(TransferFailure::Failed(TransferError::NoCloseNotify))));
            assert!(Evidence { announced: Some(10), ..required }.believe().is_ok());
        }
    }

    #[test]
    fn fewer_bytes_than_allo_announced_break_off_only_where_the_end_proves_nothing() {
        for (end, is_complete) in [
            (DataEnd::CloseNotify, true),
            (DataEnd::OfClient, true),
            (DataEnd::WithoutCloseNotify, false),
            (DataEnd::OfBalancer, false),
        ] {
            let short = Evidence { announced: Some(11), ..evidence(end) }.believe();
            assert_eq!(short.is_ok(), is_complete, "{end:?}");
            assert!(is_complete || matches!(short, Err(TransferFailure::Short { announced: 11, got: 10 })));
            // More than announced is no sign of a cut.
            assert!(Evidence { announced: Some(9), ..evidence(end) }.believe().is_ok(), "{end:?}");
        }
    }
}
