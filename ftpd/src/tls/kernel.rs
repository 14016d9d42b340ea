//! TLS encryption by the kernel (kTLS), so that a download uses `sendfile` as without TLS.
//!
//! Only for sending. Kernels before 6.14 cannot replace the receiving key: an upload would fail if the
//! client updates its key (RFC 8446 section 4.6.3). Besides, the kernel splices received data one record at
//! a time, which is not cheaper than decrypting many records in user space.

use std::{io, net::TcpStream, os::fd::AsRawFd, sync::LazyLock};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, setsockopt, socket,
        sockopt::{TcpTlsTx, TcpUlp, TlsCryptoInfo},
    },
};
use rustls::ConnectionTrafficSecrets;

use super::records::{Secrets, Version};

/// Use of kTLS for downloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTls {
    /// Used if the kernel supports it.
    Auto,
    Off,
}

impl std::str::FromStr for KernelTls {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("must be auto or off"),
        }
    }
}

/// Returns true if the running kernel supports kTLS. If kTLS is a module that is not loaded, the result is
/// false: a server without root cannot load it.
pub fn is_available() -> bool {
    /// The test uses an unconnected socket: a kernel with kTLS fails with ENOTCONN, a kernel without it with
    /// ENOENT.
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        matches!(
            socket.and_then(|socket| setsockopt(&socket, TcpUlp::default(), b"tls")),
            Ok(()) | Err(Errno::ENOTCONN)
        )
    });
    *AVAILABLE
}

/// Makes the kernel encrypt everything that is written to `socket` from now on.
///
/// # Errors
/// The kernel does not support it; the socket is unchanged.
pub fn seal(socket: &TcpStream, version: Version, secrets: &Secrets) -> Result<(), Errno> {
    let keys = crypto_info(version, secrets).ok_or(Errno::EOPNOTSUPP)?;
    setsockopt(socket, TcpUlp::default(), b"tls")?;
    setsockopt(socket, TcpTlsTx, &keys)
}

fn crypto_info(version: Version, secrets: &Secrets) -> Option<TlsCryptoInfo> {
    let number = match version {
        Version::Tls12 => libc::TLS_1_2_VERSION,
        Version::Tls13 => libc::TLS_1_3_VERSION,
    };
    let info = |cipher_type| libc::tls_crypto_info { version: number, cipher_type };
    let rec_seq = secrets.sequence.to_be_bytes();
    Some(match &secrets.keys {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
            let (salt, iv) = aes_gcm_nonce(version, iv.as_ref())?;
            let key = key.as_ref().try_into().ok()?;
            let info = info(libc::TLS_CIPHER_AES_GCM_128);
            TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 { info, iv, key, salt, rec_seq })
        }
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
            let (salt, iv) = aes_gcm_nonce(version, iv.as_ref())?;
            let key = key.as_ref().try_into().ok()?;
            let info = info(libc::TLS_CIPHER_AES_GCM_256);
            TlsCryptoInfo::Aes256Gcm(libc::tls12_crypto_info_aes_gcm_256 { info, iv, key, salt, rec_seq })
        }
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            let (key, iv) = (key.as_ref().try_into().ok()?, iv.as_ref().try_into().ok()?);
            let info = info(libc::TLS_CIPHER_CHACHA20_POLY1305);
            let salt = [];
            TlsCryptoInfo::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
                info,
                iv,
                key,
                salt,
                rec_seq,
            })
        }
        _ => return None,
    })
}

/// The two parts of the nonce: salt and explicit part. With TLS 1.2 the kernel increments the explicit part
/// for each record. For the records of the handshake, rustls has XORed the sequence number into its low bits.
/// Flipping the highest bit keeps the two sequences distinct: a repeated nonce would reveal the key.
fn aes_gcm_nonce(version: Version, iv: &[u8]) -> Option<([u8; 4], [u8; 8])> {
    let (salt, explicit) = iv.split_first_chunk::<4>()?;
    let mut explicit: [u8; 8] = explicit.try_into().ok()?;
    if version == Version::Tls12 {
        explicit[0] ^= 0x80;
    }
    Some((*salt, explicit))
}

/// Sends close_notify, encrypted by the kernel.
///
/// # Errors
/// The connection is broken.
pub fn send_close_notify(socket: &TcpStream) -> io::Result<()> {
    const ALERT: u8 = 21;
    let mut alert = [1_u8, 0];
    let mut part = libc::iovec { iov_base: alert.as_mut_ptr().cast(), iov_len: alert.len() };
    // `u64` gives the alignment of a cmsghdr; the size is more than CMSG_SPACE(1).
    let mut control = [0_u64; 8];
    // SAFETY: these functions only compute sizes and access no memory.
    let (space, length) = unsafe { (libc::CMSG_SPACE(1), libc::CMSG_LEN(1)) };
    // SAFETY: msghdr consists of integers and pointers; all-zero is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = space as _;
    // SAFETY: `control` has 64 bytes, of which msg_controllen (24) hold one header, to which CMSG_FIRSTHDR
    // points, and one byte of data after it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = length as _;
        *libc::CMSG_DATA(header) = ALERT;
    }
    loop {
        // SAFETY: `message` points to `part` and `control`, `part` points to `alert`; all outlive the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match Errno::result(sent) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_never_repeats_a_nonce_of_the_handshake() {
        let iv = [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(aes_gcm_nonce(Version::Tls13, &iv), Some(([1, 2, 3, 4], [0, 0, 0, 0, 0, 0, 0, 9])));
        assert_eq!(aes_gcm_nonce(Version::Tls12, &iv), Some(([1, 2, 3, 4], [0x80, 0, 0, 0, 0, 0, 0, 9])));
    }
}
