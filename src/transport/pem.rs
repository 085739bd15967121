//! Reads certificates and keys from PEM files; every error names its file. Beyond parsing, nothing is validated here.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};

/// Why a certificate, a key or the pair cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read `{}`", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("`{}` holds no PEM certificate", file.display())]
    NoCertificate { file: PathBuf },
    #[error("`{}` holds no PEM private key", file.display())]
    NoKey { file: PathBuf },
    #[error("`{}` holds a certificate that cannot be read", file.display())]
    BadCertificate { file: PathBuf },
    #[error("the key in `{}` does not belong to the certificate in `{}`", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("the key in `{}` is of a kind that TLS cannot use here", file.display())]
    UnusableKey { file: PathBuf, source: rustls::Error },
    #[error("`client_certificates` is on but no `client_ca_file` says whose certificates to accept")]
    NoClientCa,
    #[error("the CA in `{}` cannot be used", file.display())]
    UnusableCa {
        file: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("TLS cannot be configured")]
    Refused(#[from] rustls::Error),
}

pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|source| TlsError::Unreadable {
        file: file.to_owned(),
        source,
    })
}

pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let none = || TlsError::NoCertificate { file: file.to_owned() };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read_file(file)?)
        .collect::<Result<_, _>>()
        .map_err(|_| none())?;
    if chain.is_empty() { Err(none()) } else { Ok(chain) }
}

pub(super) fn key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read_file(file)?).map_err(|_| TlsError::NoKey { file: file.to_owned() })
}

pub(super) fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| TlsError::UnusableCa {
            file: file.to_owned(),
            source: Box::new(error),
        })?;
    }
    Ok(roots)
}
