//! AUTH, PBSZ, PROT, CCC (RFC 2228, RFC 4217). The dispatch refuses them on a node without TLS.

use crate::{
    protocol::{Code, Reply, command::ProtectionLevel},
    session::{LoginState, Outcome, Session},
    tls::TlsPolicy,
};

/// AUTH: the handshake follows the reply and resets the session. `private_data` has the effect of a later
/// PROT P.
pub(super) fn auth(session: &mut Session, private_data: bool) -> Outcome {
    if session.security.is_encrypted() {
        return Reply::new(Code::BAD_SEQUENCE, "TLS is already active").into();
    }
    if private_data && session.node.tls.as_ref().is_some_and(|tls| tls.settings.data == TlsPolicy::Off) {
        return Reply::new(Code::POLICY, "Encrypted data connections are not available").into();
    }
    session.security.is_private = private_data;
    Outcome::Encrypt(Reply::new(Code::SECURITY_ACCEPTED, "Proceed with TLS negotiation"))
}

/// PBSZ: the size is always 0 with TLS (RFC 4217 section 8).
pub(super) fn pbsz(session: &mut Session) -> Reply {
    if !session.security.is_encrypted() {
        return Reply::new(Code::BAD_SEQUENCE, "Send AUTH TLS first");
    }
    session.security.has_buffer_size = true;
    Reply::new(Code::OK, "PBSZ=0")
}

/// PROT: plain or encrypted data connections (RFC 4217 section 9).
pub(super) fn prot(session: &mut Session, level: ProtectionLevel) -> Reply {
    if !session.security.has_buffer_size {
        return Reply::new(Code::BAD_SEQUENCE, "Send PBSZ before PROT");
    }
    let (node_requires, node_refuses) = match &session.node.tls {
        Some(tls) => (tls.settings.data == TlsPolicy::Required, tls.settings.data == TlsPolicy::Off),
        None => (false, true),
    };
    let user_requires =
        matches!(&session.state, LoginState::LoggedIn(logged_in) if logged_in.account.tls.data);
    let is_private = match level {
        ProtectionLevel::Clear if node_requires || user_requires => {
            return Reply::new(Code::POLICY, "PROT P is required");
        }
        ProtectionLevel::Private if node_refuses => {
            return Reply::new(Code::POLICY, "Encrypted data connections are not available");
        }
        ProtectionLevel::Safe | ProtectionLevel::Confidential => {
            return Reply::new(Code::UNSUPPORTED_PROTECTION, "Only PROT C and PROT P are supported");
        }
        ProtectionLevel::Clear => false,
        ProtectionLevel::Private => true,
    };
    session.security.is_private = is_private;
    if let LoginState::LoggedIn(logged_in) = &mut session.state {
        logged_in.is_private = is_private;
    }
    Reply::new(Code::OK, if is_private { "Protection level set to P" } else { "Protection level set to C" })
}

/// CCC: refused, so that passwords and file names stay encrypted.
pub(super) fn ccc() -> Reply {
    Reply::new(Code::POLICY, "CCC is not allowed; the control connection stays encrypted")
}

/// Returns true if the client has to send AUTH TLS before it may log in.
pub(super) fn needs_encryption(session: &Session) -> bool {
    let required = session.node.tls.as_ref().is_some_and(|tls| tls.settings.control == TlsPolicy::Required);
    required && !session.security.is_encrypted()
}
