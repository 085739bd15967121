//! Server-side TLS: the certificate a listener presents, the client certificates it demands, and how both are replaced
//! while connections run. It does not watch the files; the file watcher calls `reload`.

use super::peer::PeerCertificate;
use super::pem::{self, TlsError};
use super::provider;
use crate::config::{ClientCertificates, TlsConfig};
use crate::domain::{Digest, Sha256, Timestamp};
use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3_600);

/// The TLS configuration of one listener, replaced as a whole.
pub struct ServerTls {
    files: TlsConfig,
    current: ArcSwap<ServerConfig>,
    /// Digest of the files that `current` was built from.
    loaded: Mutex<Digest>,
}

impl ServerTls {
    /// Reads the files and builds the first configuration.
    pub fn load(files: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let digest = digest(files)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            current: ArcSwap::new(configure(files)?),
            loaded: Mutex::new(digest),
        }))
    }

    /// Loads changed files for new connections; returns `false` if nothing changed. On an error the old configuration
    /// stays.
    ///
    /// The whole `ServerConfig` is replaced, ticket keys included, so that no TLS session can be resumed across a
    /// change of certificate or CA.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let mut loaded = self.loaded.lock().expect("no holder of this lock panics");
        let digest = digest(&self.files)?;
        if *loaded == digest {
            return Ok(false);
        }
        self.current.store(configure(&self.files)?);
        *loaded = digest;
        Ok(true)
    }

    /// The files to watch for `reload`.
    pub fn files(&self) -> Vec<PathBuf> {
        let ca = self.files.client_ca_file.iter();
        [&self.files.certificate_file, &self.files.key_file]
            .into_iter()
            .chain(ca)
            .cloned()
            .collect()
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

/// Every problem for which `load` would fail or no client could connect, one sentence each.
pub fn check_tls(files: &TlsConfig, now: Timestamp) -> Vec<String> {
    let mut problems = Vec::new();
    let chain = pem::certificates(&files.certificate_file).map_err(|error| problems.push(advise(error)));
    let key = pem::key(&files.key_file).map_err(|error| problems.push(advise(error)));
    if let (Ok(chain), Ok(key)) = (&chain, key) {
        let pair = certified(files, chain.clone(), key);
        problems.extend(pair.err().map(advise));
    }
    if let Ok(chain) = chain {
        problems.extend(validity(files, &chain[0], now).err());
    }
    problems.extend(client_verifier(files).err().map(advise));
    problems
}

/// Problems that are about to arise: a certificate that expires within 14 days.
pub fn warnings(files: &TlsConfig, now: Timestamp) -> Vec<String> {
    let Some(leaf) = pem::certificates(&files.certificate_file)
        .ok()
        .and_then(|chain| PeerCertificate::read(&chain[0]))
    else {
        return Vec::new();
    };
    if leaf.not_after >= now && leaf.not_after < now.plus(EXPIRES_SOON) {
        vec![format!(
            "the certificate in `{}` expires on {}: renew it in time",
            files.certificate_file.display(),
            leaf.not_after
        )]
    } else {
        Vec::new()
    }
}

fn configure(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = pem::certificates(&files.certificate_file)?;
    let pair = certified(files, chain, pem::key(&files.key_file)?)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let resolver = Arc::new(SingleCertAndKey::from(pair));
    let mut config = match client_verifier(files)? {
        None => builder.with_no_client_auth().with_cert_resolver(resolver),
        Some(verifier) => builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    match files.client_certificates {
        ClientCertificates::Off => config.ticketer = Ticketer::new()?,
        // A resumed session skips verification of the client certificate, so resumption is off when client certificates
        // are on.
        ClientCertificates::Optional | ClientCertificates::Required => {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
    }
    Ok(Arc::new(config))
}

fn certified(
    files: &TlsConfig,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    if PeerCertificate::read(&chain[0]).is_none() {
        return Err(TlsError::BadCertificate {
            file: files.certificate_file.clone(),
        });
    }
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
            certificate: files.certificate_file.clone(),
            key: files.key_file.clone(),
        },
        source => TlsError::UnusableKey {
            file: files.key_file.clone(),
            source,
        },
    })
}

fn client_verifier(files: &TlsConfig) -> Result<Option<Arc<dyn rustls::server::danger::ClientCertVerifier>>, TlsError> {
    if files.client_certificates == ClientCertificates::Off {
        return Ok(None);
    }
    let file = files.client_ca_file.as_ref().ok_or(TlsError::NoClientCa)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(pem::roots(file)?), provider());
    let builder = match files.client_certificates {
        ClientCertificates::Optional => builder.allow_unauthenticated(),
        ClientCertificates::Off | ClientCertificates::Required => builder,
    };
    let unusable = |error| TlsError::UnusableCa {
        file: file.clone(),
        source: Box::new(error),
    };
    builder.build().map(Some).map_err(unusable)
}

fn validity(files: &TlsConfig, leaf: &[u8], now: Timestamp) -> Result<(), String> {
    let Some(leaf) = PeerCertificate::read(leaf) else {
        return Ok(());
    };
    let file = files.certificate_file.display();
    if leaf.not_after < now {
        return Err(format!(
            "the certificate in `{file}` expired on {}: put a renewed one in its place",
            leaf.not_after
        ));
    }
    if leaf.not_before > now {
        Err(format!(
            "the certificate in `{file}` is not valid before {}: check this machine's clock, or use another certificate",
            leaf.not_before
        ))
    } else {
        Ok(())
    }
}

/// An error as a sentence, with its cause and what to do.
fn advise(error: TlsError) -> String {
    let todo = match &error {
        TlsError::Unreadable { .. } => "check the path and the permissions",
        TlsError::NoCertificate { .. } => "it needs `-----BEGIN CERTIFICATE-----`, the server's own first",
        TlsError::NoKey { .. } => "it needs an unencrypted `-----BEGIN PRIVATE KEY-----`",
        TlsError::BadCertificate { .. } => "export it again",
        TlsError::Mismatch { .. } => "use the key that the certificate was made for",
        TlsError::UnusableKey { .. } => "use an ECDSA P-256, Ed25519 or RSA key",
        TlsError::NoClientCa => "name the CA, or set `client_certificates = \"off\"`",
        TlsError::UnusableCa { .. } => "export the CA again",
        TlsError::Refused(_) => "use another certificate",
    };
    match std::error::Error::source(&error) {
        Some(cause) => format!("{error} ({cause}): {todo}"),
        None => format!("{error}: {todo}"),
    }
}

/// SHA-256 over the digests of all files, to detect a change.
fn digest(files: &TlsConfig) -> Result<Digest, TlsError> {
    let paths = [
        Some(&files.certificate_file),
        Some(&files.key_file),
        files.client_ca_file.as_ref(),
    ];
    let mut hash = Sha256::new();
    for path in paths.into_iter().flatten() {
        hash = hash.update(Digest::of(&pem::read_file(path)?).as_bytes());
    }
    Ok(hash.finish())
}
