//! AUTH, PBSZ, PROT, CCC (RFC 2228, RFC 4217), where there is TLS.

use crate::{
    protocol::{Code, Reply, command::ProtectionLevel},
    session::{Outcome, Session, State},
    tls::TlsPolicy,
};

/// AUTH: the handshake follows the reply. Everything that was said before it is void. `private_data`
/// stands for a PROT P after it.
pub fn auth(session: &mut Session, private_data: bool) -> Outcome {
    if session.security.is_encrypted() {
        return Reply::new(Code::BAD_SEQUENCE, "The connection is encrypted already").into();
    }
    if private_data && session.node.tls.as_ref().is_some_and(|tls| tls.settings.data == TlsPolicy::Off) {
        return Reply::new(Code::POLICY, "Data connections are not encrypted here").into();
    }
    session.security.is_private = private_data;
    Outcome::Encrypt(Reply::new(Code::SECURITY_ACCEPTED, "Go ahead with TLS"))
}

/// PBSZ: always 0 with TLS (RFC 4217 section 8).
pub fn pbsz(session: &mut Session) -> Reply {
    if !session.security.is_encrypted() {
        return Reply::new(Code::BAD_SEQUENCE, "AUTH TLS comes first");
    }
    session.security.has_buffer_size = true;
    Reply::new(Code::OK, "PBSZ=0")
}

/// PROT: clear or private data connections (RFC 4217 section 9).
pub fn prot(session: &mut Session, level: ProtectionLevel) -> Reply {
    if !session.security.has_buffer_size {
        return Reply::new(Code::BAD_SEQUENCE, "PBSZ comes before PROT");
    }
    let (node_requires, node_refuses) = match &session.node.tls {
        Some(tls) => (tls.settings.data == TlsPolicy::Required, tls.settings.data == TlsPolicy::Off),
        None => (false, true),
    };
    let user_requires = matches!(&session.state, State::LoggedIn(logged_in) if logged_in.account.tls.data);
    let is_private = match level {
        ProtectionLevel::Clear if node_requires || user_requires => {
            return Reply::new(Code::POLICY, "Data connections must be encrypted");
        }
        ProtectionLevel::Private if node_refuses => {
            return Reply::new(Code::POLICY, "Data connections are not encrypted here");
        }
        ProtectionLevel::Safe | ProtectionLevel::Confidential => {
            return Reply::new(Code::UNSUPPORTED_PROTECTION, "TLS is private or nothing");
        }
        ProtectionLevel::Clear => false,
        ProtectionLevel::Private => true,
    };
    session.security.is_private = is_private;
    if let State::LoggedIn(logged_in) = &mut session.state {
        logged_in.is_private = is_private;
    }
    Reply::new(
        Code::OK,
        if is_private { "Data connections are private" } else { "Data connections are clear" },
    )
}

/// CCC: passwords and names stay encrypted to the end.
pub fn ccc() -> Reply {
    Reply::new(Code::POLICY, "The control connection stays encrypted")
}

/// Whether a login must wait for encryption.
pub fn needs_encryption(session: &Session) -> bool {
    let required = session.node.tls.as_ref().is_some_and(|tls| tls.settings.control == TlsPolicy::Required);
    required && !session.security.is_encrypted()
}
