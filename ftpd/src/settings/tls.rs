//! Settings of FTPS.

use common::settings::{DURATION, Form, Group, NUMBER, Setting};

use super::{PEM_FILE, PEM_FILES};

pub(super) static TLS: Group = Group {
    name: "TLS",
    about: "FTPS. Certificates are read again when their files change, and on SIGHUP; sessions go on.",
    settings: &[
        Setting::many(
            "tls_keys",
            PEM_FILES,
            "",
            "The private keys of `tls_certificates`, in the same order. If not set, each certificate file \
             must also hold its key.",
        ),
        Setting::one(
            "tls",
            Form::new("off|optional|required", "off, optional or required"),
            "optional",
            "Encryption of control connections. Needs `tls_certificates`. required: no \
             login without TLS; choose it where all clients support TLS.",
        ),
        Setting::one(
            "tls_data",
            Form::new("off|optional|required", "off, optional or required"),
            "optional",
            "Encryption of data connections (PROT P). required: no transfer without it.",
        ),
        Setting::one(
            "tls_data_reuse",
            Form::new("required|preferred|off", "required, preferred or off"),
            "preferred",
            "Resumption of the control connection's TLS session on data connections. It proves that both \
             come from the same client. required: data connections that do not resume get 522. preferred: \
             with TLS 1.2 they get 522 after one of the session has resumed; with TLS 1.3 they are \
             accepted, because a client may run out of tickets.",
        ),
        Setting::switch(
            "tls_close_notify",
            "true",
            "Require close_notify at the end of an encrypted upload. Without it the upload was cut off and \
             gets 426, unless ALLO announced exactly the bytes that arrived. Some clients never send it, \
             such as .NET's FtpWebRequest: switch it off for their users alone (`tls.close_notify` of \
             authd), or here for all.",
        ),
        Setting::one(
            "kernel_tls",
            Form::new("auto|off", "auto or off"),
            "auto",
            "Encryption of downloads by the kernel (kTLS), which saves copies. auto: if the kernel module \
             `tls` is loaded when ftpd starts. off: ftpd encrypts them itself.",
        ),
        Setting::one(
            "tls_minimum",
            Form::new("1.2|1.3", "1.2 or 1.3"),
            "1.2",
            "The oldest TLS version that is accepted. 1.2 is secure, and older clients have nothing newer.",
        ),
        Setting::one(
            "tls_tickets",
            NUMBER,
            "8",
            "Session tickets on a control connection of TLS 1.3. A data connection uses one ticket and \
             brings two new ones. After an upload they arrive only if the client reads until the node \
             closes. A client that does not can make this many uploads in a session if `tls_data_reuse` is \
             required: raise it for such clients.",
        ),
        Setting::one(
            "tls_ticket_rotation",
            DURATION,
            "12h",
            "The age at which the nodes replace the key that encrypts tickets. A ticket is accepted for up \
             to twice this time.",
        ),
        Setting::one(
            "tls_resumption_max_age",
            DURATION,
            "24h",
            "The time after a full handshake in which new control connections may resume its TLS session. \
             Data connections may resume as long as their session lasts.",
        ),
        Setting::one(
            "tls_handshake_timeout",
            DURATION,
            "10s",
            "The time limit of a TLS handshake. After it the connection is closed.",
        ),
        Setting::one(
            "tls_client_ca",
            PEM_FILE,
            "",
            "Authorities of client certificates. The node verifies a client's certificate against them and \
             sends it to authd, which may accept it instead of a password.",
        ),
        Setting::many(
            "tls_client_crls",
            PEM_FILES,
            "",
            "Certificate revocation lists of `tls_client_ca`. They are read again when they change, and on \
             SIGHUP. If any list is set, each authority in a client's chain needs one that has not \
             expired; otherwise the certificate is refused.",
        ),
    ],
};
