//! The remote end of a connection, as far as the socket and TLS prove it: address, client certificate, HTTP version.
//! What a certificate authorises is decided elsewhere.

use crate::domain::{Digest, Timestamp};
use std::net::SocketAddr;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The client at the other end of an accepted connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// The client certificate, verified against the client CA during the TLS handshake.
    pub certificate: Option<Arc<PeerCertificate>>,
    pub http2: bool,
}

/// The fields of a verified client certificate that Guardian uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// SHA-256 of the certificate's DER bytes.
    pub digest: Digest,
    pub subject_cn: Option<String>,
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl PeerCertificate {
    /// Parses a certificate; `None` if x509-parser cannot read the DER, so an unreadable certificate identifies nobody.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = match certificate.subject_alternative_name().ok()? {
            Some(extension) => extension.value.general_names.as_slice(),
            None => &[],
        };
        let pick = |wanted: fn(&GeneralName<'_>) -> Option<String>| names.iter().filter_map(wanted).collect();
        let validity = certificate.validity();
        Some(Self {
            digest: Digest::of(der),
            subject_cn: certificate
                .subject()
                .iter_common_name()
                .next()
                .and_then(|name| name.as_str().ok())
                .map(str::to_owned),
            uri_sans: pick(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }),
            dns_sans: pick(|name| match name {
                GeneralName::DNSName(dns) => Some((*dns).to_owned()),
                _ => None,
            }),
            not_before: Timestamp::from_secs(validity.not_before.timestamp()),
            not_after: Timestamp::from_secs(validity.not_after.timestamp()),
        })
    }
}
