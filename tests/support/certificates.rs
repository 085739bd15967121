//! Certificates made by the tests: an authority, and leaves that are valid, expired or for another name.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

/// An authority that signs leaves; `pem` is its certificate.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for a server on this machine.
    pub fn server(&self) -> Pair {
        self.server_named(&["localhost", "127.0.0.1"])
    }

    pub fn server_named(&self, hosts: &[&str]) -> Pair {
        self.leaf("localhost", hosts, &[], ExtendedKeyUsagePurpose::ServerAuth, valid())
    }

    pub fn expired_server(&self) -> Pair {
        let past = (days_from_now(-30), days_from_now(-1));
        self.leaf(
            "localhost",
            &["localhost", "127.0.0.1"],
            &[],
            ExtendedKeyUsagePurpose::ServerAuth,
            past,
        )
    }

    /// A client certificate whose subject is the URI; with several URIs it names nobody.
    pub fn client(&self, name: &str, uris: &[&str]) -> Pair {
        self.leaf(name, &[], uris, ExtendedKeyUsagePurpose::ClientAuth, valid())
    }

    /// A root store with only this authority.
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        Arc::new(roots)
    }

    fn leaf(
        &self,
        name: &str,
        hosts: &[&str],
        uris: &[&str],
        usage: ExtendedKeyUsagePurpose,
        (from, to): (OffsetDateTime, OffsetDateTime),
    ) -> Pair {
        let mut params = CertificateParams::new(hosts.iter().map(|host| host.to_string()).collect::<Vec<_>>()).unwrap();
        params
            .subject_alt_names
            .extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (from, to);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Pair {
    /// Writes `<name>.pem` and `<name>.key` into the folder.
    pub fn write(&self, folder: &Path, name: &str) {
        std::fs::write(folder.join(format!("{name}.pem")), &self.certificate).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), &self.key).unwrap();
    }

    fn parsed(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        (chain, PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap())
    }

    /// The leaf as the peer of a connection sees it.
    pub fn leaf(&self) -> CertificateDer<'static> {
        self.parsed().0.remove(0)
    }
}

/// The TLS configuration of a test server: the recorder, or an issuer's key set.
pub fn server_tls(pair: &Pair, clients_of: Option<&Authority>) -> Arc<ServerConfig> {
    let (chain, key) = pair.parsed();
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients_of {
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(authority.roots(), provider())
                .build()
                .unwrap(),
        ),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// The TLS configuration of a test client, which offers exactly one of `h2` and `http/1.1`.
pub fn client_tls(trusts: &Authority, presents: Option<&Pair>, alpn: &str) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = builder.with_root_certificates(trusts.roots());
    let mut config = match presents.map(Pair::parsed) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Arc::new(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn valid() -> (OffsetDateTime, OffsetDateTime) {
    (days_from_now(-1), days_from_now(30))
}

fn days_from_now(days: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::days(days)
}
