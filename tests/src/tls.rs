//! FTPS for tests: an authority that signs certificates, and a client with configurable behaviour.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, SignatureAlgorithm,
};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SignatureScheme, StreamOwned,
    SupportedProtocolVersion,
    client::{ResolvesClientCert, Resumption, Tls12Resumption},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    sign::CertifiedKey,
};
use tempfile::TempDir;

use crate::{DEADLINE, dialogue::Dialogue, proxy::Connector, reply::Reply};

/// A certificate authority with the files of the certificates that it signed. They pass strict
/// verification by RFC 5280 (sections 4.2.1.1 and 4.2.1.3), which Python 3.13 and later request from
/// OpenSSL.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate chain and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// # Panics
    /// A temporary directory cannot be created.
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new([]).expect("no names are right names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        parameters.distinguished_name.push(DnType::CommonName, "Authority of a test");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(parameters, key).expect("a certificate");
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("a file");
        Self { issuer, directory }
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate for a host, in files named after the host.
    pub fn sign(&self, host: &str) -> CertificateFiles {
        self.sign_with(host, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
    }

    /// As [`Self::sign`], with another kind of key and changes to the certificate.
    ///
    /// # Panics
    /// The parameters are invalid.
    pub fn sign_with(
        &self,
        host: &str,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateFiles {
        let mut parameters = CertificateParams::new([host.to_owned()]).expect("a host name");
        parameters.distinguished_name.push(DnType::CommonName, host);
        parameters.use_authority_key_identifier_extension = true;
        change(&mut parameters);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let files = CertificateFiles {
            chain: self.directory.path().join(format!("{host}.pem")),
            key: self.directory.path().join(format!("{host}.key")),
        };
        replace(&files.chain, &certificate.pem());
        replace(&files.key, &key.serialize_pem());
        files
    }

    /// A client that trusts this authority and resumes TLS sessions.
    pub fn client(&self) -> TlsClient {
        TlsClient::new(self, None, &[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    /// A client of one TLS version.
    pub fn client_of(&self, version: &'static SupportedProtocolVersion) -> TlsClient {
        TlsClient::new(self, None, &[version])
    }

    /// Writes a revocation list with these serial numbers. It expires after this many hours; a negative
    /// number means that it has expired.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn revoke(&self, serials: &[u64], hours: i64) -> PathBuf {
        let now = time::OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - time::Duration::DAY,
            next_update: now + time::Duration::hours(hours),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.directory.path().join("crl.pem");
        replace(&path, &list.signed_by(&self.issuer).expect("a list").pem().expect("PEM"));
        path
    }

    /// A client of one TLS version that trusts this authority and presents a certificate.
    pub fn client_of_with(
        &self,
        version: &'static SupportedProtocolVersion,
        files: &CertificateFiles,
    ) -> TlsClient {
        TlsClient::new(self, Some(files), &[version])
    }

    /// A client that presents a certificate of this authority.
    pub fn client_with(&self, files: &CertificateFiles) -> TlsClient {
        TlsClient::new(self, Some(files), &[&rustls::version::TLS13, &rustls::version::TLS12])
    }
}

/// Replaces a file atomically, as certificate tools do.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("a file");
    fs::rename(&new, path).expect("a file");
}

/// TLS configuration of a client. Clones share their ticket store.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    host: ServerName<'static>,
    shown: Option<Arc<Shown>>,
}

/// The certificate that a client presents, unless it is hidden.
#[derive(Debug)]
struct Shown {
    pair: Arc<CertifiedKey>,
    hidden: AtomicBool,
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = self.pair.key.choose_scheme(schemes).is_some() && !self.hidden.load(Ordering::Relaxed);
        usable.then(|| Arc::clone(&self.pair))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl TlsClient {
    fn new(
        authority: &Authority,
        certificate: Option<&CertificateFiles>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.issuer.der().clone()).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        let shown = certificate.map(|files| {
            let chain = vec![CertificateDer::from(pem(&files.chain))];
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pem(&files.key)));
            let pair = CertifiedKey::from_der(chain, key, builder.crypto_provider()).expect("a pair");
            Arc::new(Shown { pair: Arc::new(pair), hidden: AtomicBool::new(false) })
        });
        let mut config = match &shown {
            None => builder.with_no_client_auth(),
            Some(shown) => builder.with_client_cert_resolver(Arc::clone(shown) as _),
        };
        config.resumption = Resumption::in_memory_sessions(64);
        Self { config: Arc::new(config), host: "localhost".try_into().expect("a name"), shown }
    }

    /// Presents no certificate in full handshakes from now on. Earlier TLS sessions with the certificate can
    /// still be resumed.
    pub fn hide_certificate(&self) {
        if let Some(shown) = &self.shown {
            shown.hidden.store(true, Ordering::Relaxed);
        }
    }

    /// A client that resumes TLS 1.2 sessions by session id, without tickets.
    #[must_use]
    pub fn without_tickets(&self) -> Self {
        let mut config = (*self.config).clone();
        config.resumption =
            Resumption::in_memory_sessions(64).tls12_resumption(Tls12Resumption::SessionIdOnly);
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// The same client for another host name.
    ///
    /// # Panics
    /// `host` is not a valid name.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned().try_into().expect("a name");
        self
    }

    /// A client that resumes no TLS sessions.
    #[must_use]
    pub fn forgetful(&self) -> Self {
        let mut config = (*self.config).clone();
        config.resumption = Resumption::disabled();
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// A client that offers these protocols by ALPN.
    #[must_use]
    pub fn protocols(&self, protocols: &[&str]) -> Self {
        let mut config = (*self.config).clone();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// Performs the client's side of a handshake.
    ///
    /// # Errors
    /// The handshake fails, or the server does not respond in time.
    pub fn encrypt(&self, stream: TcpStream) -> io::Result<TlsStream> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let connection =
            ClientConnection::new(Arc::clone(&self.config), self.host.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

fn pem(path: &Path) -> Vec<u8> {
    use rustls::pki_types::pem::{PemObject, SectionKind};
    let (_, bytes): (SectionKind, Vec<u8>) = PemObject::from_pem_file(path).expect("a PEM file");
    bytes
}

/// A connection with TLS.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// An FTPS session, line by line. Panics with the dialogue so far if something unexpected arrives.
pub struct SecureDialogue {
    pub client: TlsClient,
    connector: Connector,
    control: TlsStream,
    received: Vec<u8>,
    transcript: String,
}

impl SecureDialogue {
    /// Explicit FTPS: AUTH TLS, then the handshake.
    pub fn explicit(client: &TlsClient, address: SocketAddr) -> Self {
        Self::explicit_with(client, &Connector::new(), address)
    }

    /// As [`Self::explicit`], with every connection made by `connector`.
    pub fn explicit_with(client: &TlsClient, connector: &Connector, address: SocketAddr) -> Self {
        Self::upgrade(client, connector, Dialogue::connect_with(connector, address))
    }

    /// Explicit FTPS on a control connection after the greeting.
    pub fn upgrade(client: &TlsClient, connector: &Connector, mut clear: Dialogue) -> Self {
        clear.command("AUTH TLS", 234);
        let control = clear.control().try_clone().expect("a descriptor");
        Self::over(client, connector, control)
    }

    /// Implicit FTPS: first the handshake, then the greeting.
    pub fn implicit(client: &TlsClient, address: SocketAddr) -> Self {
        let connector = Connector::new();
        let control = connector.connect(address).expect("a connection");
        let mut dialogue = Self::over(client, &connector, control);
        dialogue.expect(220);
        dialogue
    }

    /// Performs the handshake on a control connection.
    pub fn over(client: &TlsClient, connector: &Connector, control: TcpStream) -> Self {
        let control = client.encrypt(control).expect("a TLS handshake");
        let (client, connector) = (client.clone(), connector.clone());
        Self { client, connector, control, received: Vec::new(), transcript: String::new() }
    }

    /// USER and PASS, then PBSZ and PROT P.
    pub fn login(&mut self, user: &str, password: &str) {
        self.command(&format!("USER {user}"), 331);
        self.command(&format!("PASS {password}"), 230);
        self.command("PBSZ 0", 200);
        self.command("PROT P", 200);
        self.command("TYPE I", 200);
    }

    /// Returns true if the control connection resumed an earlier TLS session.
    pub fn is_resumed(&self) -> bool {
        self.control.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The server's certificate.
    pub fn certificate(&self) -> Vec<u8> {
        let chain = self.control.conn.peer_certificates();
        chain.and_then(|chain| chain.first()).expect("a certificate").to_vec()
    }

    pub fn send(&mut self, line: &str) {
        self.transcript += &format!("> {line}\n");
        let sent = self.control.write_all(format!("{line}\r\n").as_bytes());
        sent.unwrap_or_else(|error| self.fail(&format!("cannot send: {error}")));
    }

    pub fn command(&mut self, line: &str, code: u16) -> Reply {
        self.send(line);
        self.expect(code)
    }

    pub fn expect(&mut self, code: u16) -> Reply {
        let reply = self.reply();
        if reply.code != code {
            self.fail(&format!("expected {code}"));
        }
        reply
    }

    pub fn reply(&mut self) -> Reply {
        loop {
            match Reply::take(&mut self.received) {
                Ok(Some(reply)) => {
                    self.transcript += &format!("< {reply:?}\n");
                    return reply;
                }
                Ok(None) => {}
                Err(error) => self.fail(&format!("no reply: {error}")),
            }
            let mut bytes = [0; 4096];
            match self.control.read(&mut bytes) {
                Ok(0) => self.fail("the connection was closed"),
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) => self.fail(&format!("cannot read: {error}")),
            }
        }
    }

    /// Address for the next data connection.
    pub fn epsv(&mut self) -> SocketAddr {
        let reply = self.command("EPSV", 229);
        let port = reply.extended_passive_port().unwrap_or_else(|| self.fail("no port"));
        SocketAddr::new(self.control.sock.peer_addr().expect("a peer").ip(), port)
    }

    /// Sends a transfer command and connects, without a TLS handshake yet.
    pub fn begin_clear(&mut self, command: &str) -> TcpStream {
        let address = self.epsv();
        let stream = self.connector.connect(address).expect("a data connection");
        self.send(command);
        stream
    }

    /// Sends a transfer command, connects, performs the handshake and waits for 150.
    pub fn begin(&mut self, command: &str) -> TlsStream {
        let stream = self.begin_clear(command);
        self.expect(150);
        let client = self.client.clone();
        client.encrypt(stream).unwrap_or_else(|error| self.fail(&format!("data connection: {error}")))
    }

    /// Performs a whole download or listing.
    pub fn receive(&mut self, command: &str) -> Vec<u8> {
        let mut data = self.begin(command);
        let mut content = Vec::new();
        if let Err(error) = data.read_to_end(&mut content) {
            self.fail(&format!("after {} bytes: {error}", content.len()));
        }
        self.expect(226);
        content
    }

    /// Performs a whole upload.
    pub fn transmit(&mut self, command: &str, content: &[u8]) {
        let mut data = self.begin(command);
        data.write_all(content).unwrap_or_else(|error| self.fail(&format!("cannot send data: {error}")));
        end(data);
        self.expect(226);
    }

    fn fail(&self, reason: &str) -> ! {
        panic!("{reason}; said so far:\n{}", self.transcript)
    }
}

/// Ends a connection properly: close_notify, then the end of the stream.
pub fn end(mut stream: TlsStream) {
    stream.conn.send_close_notify();
    let _ = stream.flush();
    let _ = stream.sock.shutdown(Shutdown::Write);
    // Reads until the server has closed, too: new tickets arrive before that.
    let _ = io::copy(&mut stream, &mut io::sink());
}

/// Ends a connection as curl does: sends close_notify and closes at once without reading. The kernel
/// sends the remaining data.
pub fn hang_up(mut stream: TlsStream) {
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

/// Ends a connection without close_notify, as a network failure or an attacker does.
pub fn cut(mut stream: TlsStream) {
    let _ = stream.flush();
    let _ = stream.sock.shutdown(Shutdown::Both);
}
