//! The findings of `ftpctl doctor`: one name for each fault that it can tell, with the remedy.

use serde::Serialize;

/// A fault that the doctor names. JSON shows the name in snake_case; `docs/doctor.md` lists all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finding {
    NameUnresolved,
    AuthdUnreachable,
    TokenRefused,
    AuthdSlow,
    RedisAway,
    NoNodes,
    NodeDraining,
    DependencyFailing,
    NoPassivePorts,
    VersionsDiffer,
    RedisSlow,
    StorageHangs,
    PortRefused,
    PortSilent,
    PortUnreachable,
    NoGreeting,
    ClosedWithoutGreeting,
    HeaderNotTrusted,
    NoTls,
    TlsFailed,
    CertificateUntrusted,
    CertificateExpired,
    CertificateExpiresSoon,
    CertificateWrongName,
    CertificatesDiffer,
    NotResumed,
    DataNotResumed,
    LoginRefused,
    LoginUnavailable,
    SomeConnectionsFail,
    NodeNotReached,
    ClientAddressHidden,
    ClientAddressTranslated,
    PassiveAddressWrong,
    PassivePortRefused,
    PassivePortSilent,
    PassivePortClosed,
    PassivePortsUsedUp,
    ListingFailed,
    NotWritable,
    QuotaUsedUp,
    StorageFull,
    UploadFailed,
    StorageDiffers,
    SeenLate,
    TwoWriters,
    OpenFileLost,
    LargePacketsLost,
    ResetConfirmed,
    UploadSlow,
    ClockApart,
    SilentControlCut,
    SilentControlDropped,
    SilentDataCut,
    FilesLeft,
}

impl Finding {
    /// What to do about it, in one or two sentences.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::NameUnresolved => "correct HOST, or its record in the DNS",
            Self::AuthdUnreachable => {
                "is authd running (systemctl status authd), and does a firewall drop its port? See also --url"
            }
            Self::TokenRefused => {
                "use a token that authd knows (admin_token_file, administrators_file): --token-file"
            }
            Self::AuthdSlow => "is the host of authd or of Redis overloaded? Password checks take its CPU",
            Self::RedisAway => "is Redis running, and is redis_url of authd right? See authd's log",
            Self::NoNodes => "start ftpd; a node that runs and is not listed cannot reach Redis (redis_url)",
            Self::NodeDraining => {
                "if it is to stay: ftpctl undrain NODE, or start it again when it has ended"
            }
            Self::DependencyFailing => "see docs/troubleshooting.md, and curl NODE:9121/readyz",
            Self::NoPassivePorts => {
                "more nodes than blocks, or the node cannot reach Redis: see passive_block_ports and the \
                 node's log"
            }
            Self::VersionsDiffer => "finish the upgrade",
            Self::RedisSlow => {
                "check the host of Redis: SLOWLOG, swapping, the network between it and the node"
            }
            Self::StorageHangs => "check the file server and its network; ftpctl problems; ftpctl drain NODE",
            Self::PortRefused => {
                "nothing listens there, or a firewall rejects: start the balancer; compare its listen \
                 address and port with the published ones"
            }
            Self::PortSilent => {
                "a firewall drops the packets, or the address belongs to no host: open the port for clients"
            }
            Self::PortUnreachable => "there is no route to it from here: check routes and the address",
            Self::NoGreeting => {
                "the node waits for a PROXY header that the balancer does not send (trusted_balancers), or \
                 the balancer reaches no node"
            }
            Self::ClosedWithoutGreeting => {
                "the balancer reaches no node: are the nodes running, and are their addresses and ports \
                 right in its configuration? Or the node waits for a PROXY header that the balancer does not \
                 send"
            }
            Self::HeaderNotTrusted => {
                "the balancer sends a PROXY header to a node that does not trust it: add the balancer's \
                 address to trusted_balancers"
            }
            Self::NoTls => "set tls_certificates and tls_keys on every node",
            Self::TlsFailed => {
                "the port speaks no TLS, or nothing that this client accepts: see the node's log"
            }
            Self::CertificateUntrusted => {
                "send the whole chain (tls_certificates: the certificate, then the intermediate ones); for \
                 an authority of your own: --ca FILE"
            }
            Self::CertificateExpired => "renew it; the nodes load a changed file by themselves",
            Self::CertificateExpiresSoon => "renew it; does the automatic renewal work?",
            Self::CertificateWrongName => {
                "get a certificate with this name, or give clients the name that the certificate has"
            }
            Self::CertificatesDiffer => "copy the same certificate and key to every node",
            Self::NotResumed => {
                "the nodes share no ticket key: does the node reach Redis, and do the clocks agree? Clients \
                 that require resumption fail there"
            }
            Self::DataNotResumed => "with tls_data_reuse = required, such data connections get 522",
            Self::LoginRefused => "ftpctl explain USER names the reason; is the password right?",
            Self::LoginUnavailable => {
                "no authd answers the nodes: check authd, authd_urls and the node token"
            }
            Self::SomeConnectionsFail => {
                "the balancer sends clients to a node that does not answer: take it out, or start it"
            }
            Self::NodeNotReached => {
                "add it to the balancer's nodes; with source affinity, run the doctor from another address"
            }
            Self::ClientAddressHidden => {
                "let the balancer send a PROXY header, and set trusted_balancers: else bans, allow_from and \
                 limits by address apply to all clients together"
            }
            Self::ClientAddressTranslated => {
                "right if a NAT on the way changes this host's address; wrong if it is one of the balancer's"
            }
            Self::PassiveAddressWrong => "set external_address to the address that clients reach",
            Self::PassivePortRefused => {
                "nothing listens on these ports: compare the balancer's range (relay, nginx, nft) with \
                 passive_port_min and _max, and open the firewall"
            }
            Self::PassivePortSilent => {
                "a firewall drops the packets to these ports: open passive_port_min to _max for clients"
            }
            Self::PassivePortClosed => {
                "the connection arrives, and not at the node: the balancer sends the ports to another node, \
                 or from another client address (PROXY header)"
            }
            Self::PassivePortsUsedUp => {
                "widen passive_port_min to _max; see ftp_passive_ports_exhausted_total"
            }
            Self::ListingFailed => "see the node's log at this time",
            Self::NotWritable => {
                "give the user write and mkdir, or the node's user the directory: ftpctl explain USER; \
                 ls -ld of the home on the node"
            }
            Self::QuotaUsedUp => "ftpctl quota USER; use a user for the doctor that has room",
            Self::StorageFull => "free space on the storage",
            Self::UploadFailed => "see the node's log at this time; ftpctl problems",
            Self::StorageDiffers => {
                "the nodes do not have the same storage: compare findmnt --target ROOT on both; a share that \
                 is not mounted leaves an empty directory"
            }
            Self::SeenLate => {
                "the storage caches attributes: mount it so that a file is seen when it is closed (NFS: \
                 lookupcache=positive)"
            }
            Self::TwoWriters => {
                "do both nodes use the same Redis and redis_prefix? Do file locks reach all nodes? See \
                 docs/one-writer.md"
            }
            Self::OpenFileLost => {
                "the storage does not keep a replaced file for those who read it: downloads break when a \
                 file is replaced. Use NFS 4, CephFS or a local file system"
            }
            Self::LargePacketsLost => {
                "full packets do not arrive (MTU): allow ICMP `fragmentation needed`, or clamp the MSS, or \
                 lower the MTU of the tunnel"
            }
            Self::ResetConfirmed => {
                "the balancer turns a client's reset into an orderly end, so a cut upload looks whole: carry \
                 data connections by ftp-relay or the kernel (nginx/kernel)"
            }
            Self::UploadSlow => "fsync of the storage is slow: ftpctl nodes; docs/performance.md",
            Self::ClockApart => {
                "synchronise it (chronyc tracking): login hours, bans, TLS tickets and times of files are \
                 wrong there"
            }
            Self::SilentControlCut => {
                "raise the limit of what stands between (balancer: control_timeout; NAT; firewall) above \
                 idle_timeout, so that clients get the node's 421"
            }
            Self::SilentControlDropped => {
                "a NAT or a firewall forgets silent connections: raise its limit for TCP above idle_timeout, \
                 or lower idle_timeout"
            }
            Self::SilentDataCut => {
                "raise the balancer's limit for silent data connections above stall_timeout (5 min)"
            }
            Self::FilesLeft => "remove it by hand",
        }
    }
}
