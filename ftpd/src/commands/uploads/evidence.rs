//! The decision whether an upload is complete.
//!
//! The end of a TCP stream proves little: a client that is killed closes both its connections in the same
//! orderly way as a client that has sent everything, and nginx turns a reset into an orderly end. In doubt,
//! the upload counts as broken off, and the bytes that arrived stay for REST and APPE.

use crate::{
    data::{CopyError, stream::DataEnd},
    transfer::TransferFailure,
};

/// The facts that are known at the end of an upload's data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    pub end: DataEnd,
    /// The control connection was open when the end of the data was seen; for a partial file, also after
    /// `settle_time`.
    pub client_is_present: bool,
    /// With TLS, the client must send close_notify.
    pub close_notify_required: bool,
    /// The size that ALLO announced. `None` in TYPE A, where the wire does not carry the bytes of the file.
    pub announced: Option<u64>,
    /// The offset in the file at which the upload began.
    pub start: u64,
    /// The number of bytes that arrived.
    pub got: u64,
}

impl Evidence {
    /// Returns true if exactly the announced size has arrived. After REST some clients announce the rest,
    /// others the whole file.
    pub(super) fn meets_announcement(&self) -> bool {
        self.announced.is_some_and(|announced| announced == self.got || announced == self.start + self.got)
    }

    /// Decides whether the upload is complete.
    ///
    /// The first rule that applies decides:
    ///
    /// * If exactly the size that ALLO announced has arrived, the upload is complete. With TLS, ALLO came
    ///   over the encrypted control connection, so only the client can have announced it.
    /// * If a required close_notify is missing: not complete, because the network may have ended the stream.
    /// * If the client has left: not complete, not even after close_notify. A client that gives up (curl
    ///   after `--max-time`) sends close_notify, too, and then closes the control connection.
    /// * If fewer bytes than announced have arrived: not complete, but only if the end of the data proves
    ///   nothing. ALLO reserves room and need not announce the exact length (RFC 959 section 4.1.3).
    /// * Otherwise the upload is complete.
    ///
    /// # Errors
    /// The upload is not complete: the reason.
    pub(super) fn check(&self) -> Result<(), TransferFailure> {
        if self.meets_announcement() {
            return Ok(());
        }
        if self.end == DataEnd::WithoutCloseNotify && self.close_notify_required {
            return Err(CopyError::NoCloseNotify.into());
        }
        if !self.client_is_present {
            return Err(CopyError::ClientLeft.into());
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
            client_is_present: true,
            close_notify_required: false,
            announced: None,
            start: 0,
            got: 10,
        }
    }

    #[test]
    fn without_allo_an_upload_is_complete_if_the_control_connection_is_open() {
        for end in ENDS {
            assert!(evidence(end).check().is_ok(), "{end:?}");
            let left = Evidence { client_is_present: false, ..evidence(end) };
            let checked = left.check();
            assert!(matches!(checked, Err(TransferFailure::Copy(CopyError::ClientLeft))), "{end:?}");
        }
    }

    #[test]
    fn an_upload_of_exactly_the_announced_size_is_complete_even_if_the_client_has_left() {
        for end in ENDS {
            for (start, announced) in [(0, 10), (90, 10), (90, 100)] {
                let evidence =
                    Evidence { client_is_present: false, announced: Some(announced), start, ..evidence(end) };
                assert!(evidence.check().is_ok(), "{evidence:?}");
            }
        }
    }

    #[test]
    fn without_a_required_close_notify_only_allo_proves_a_complete_upload() {
        for client_is_present in [true, false] {
            let required = Evidence {
                client_is_present,
                close_notify_required: true,
                ..evidence(DataEnd::WithoutCloseNotify)
            };
            let checked = required.check();
            assert!(matches!(checked, Err(TransferFailure::Copy(CopyError::NoCloseNotify))));
            assert!(Evidence { announced: Some(10), ..required }.check().is_ok());
        }
    }

    #[test]
    fn fewer_bytes_than_announced_fail_only_if_the_end_of_the_data_proves_nothing() {
        for (end, is_complete) in [
            (DataEnd::CloseNotify, true),
            (DataEnd::OfClient, true),
            (DataEnd::WithoutCloseNotify, false),
            (DataEnd::OfBalancer, false),
        ] {
            let short = Evidence { announced: Some(11), ..evidence(end) }.check();
            assert_eq!(short.is_ok(), is_complete, "{end:?}");
            assert!(is_complete || matches!(short, Err(TransferFailure::Short { announced: 11, got: 10 })));
            // More bytes than announced do not show a broken upload.
            assert!(Evidence { announced: Some(9), ..evidence(end) }.check().is_ok(), "{end:?}");
        }
    }
}
