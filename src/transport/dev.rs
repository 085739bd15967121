//! Development certificates: a local CA and a server certificate signed by it. Not for production. A certificate that
//! is still good is never overwritten.

use super::peer::PeerCertificate;
use super::pem;
use crate::domain::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3_600);
const CA_DAYS: u32 = 3_650;
/// The longest lifetime of a server certificate that Apple's systems accept.
const SERVER_DAYS: u32 = 825;
/// A server certificate with less time left than this is replaced.
const RENEW_DAYS: u32 = 30;
const ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Paths of the certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevCertificates {
    pub ca_file: PathBuf,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    /// Whether a new certificate was created.
    pub made: bool,
}

/// Why development certificates could not be created.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("cannot write `{}`", file.display())]
    Unwritable { file: PathBuf, source: std::io::Error },
    #[error("cannot make a certificate for {names:?}")]
    Unmakeable { names: Vec<String>, source: rcgen::Error },
    #[error("`{}` is there without its key: remove it, or put the key back", ca.display())]
    LostKey { ca: PathBuf },
}

/// Ensures that `dir` holds a CA (10 years) and a server certificate (825 days) for localhost and `names`.
pub fn dev_certificates(dir: &Path, names: &[String], now: Timestamp) -> Result<DevCertificates, DevError> {
    let names: Vec<String> = ALWAYS
        .iter()
        .map(|name| (*name).to_owned())
        .chain(names.iter().cloned())
        .collect();
    let files = DevCertificates {
        ca_file: dir.join("ca.pem"),
        certificate_file: dir.join("server.pem"),
        key_file: dir.join("server-key.pem"),
        made: false,
    };
    if serves(&files, &names, now) {
        return Ok(files);
    }
    std::fs::create_dir_all(dir).map_err(|source| DevError::Unwritable {
        file: dir.to_owned(),
        source,
    })?;
    let unmakeable = |source| DevError::Unmakeable {
        names: names.clone(),
        source,
    };
    let ca = authority(&files.ca_file, &dir.join("ca-key.pem"), now)?;
    let key = KeyPair::generate().map_err(unmakeable)?;
    let certificate = server_params(&names, now)
        .and_then(|params| params.signed_by(&key, &ca))
        .map_err(unmakeable)?;
    write(&files.key_file, &key.serialize_pem(), 0o600)?;
    write(&files.certificate_file, &certificate.pem(), 0o644)?;
    Ok(DevCertificates { made: true, ..files })
}

/// Whether the existing files can be used: key and certificate match, this CA signed it, it covers every name, and it
/// is valid for at least `RENEW_DAYS`.
fn serves(files: &DevCertificates, names: &[String], now: Timestamp) -> bool {
    let Ok(chain) = pem::certificates(&files.certificate_file) else {
        return false;
    };
    let (Ok(key), Ok(roots)) = (pem::key(&files.key_file), pem::roots(&files.ca_file)) else {
        return false;
    };
    let enough = now.plus(DAY * RENEW_DAYS);
    let timely = PeerCertificate::read(&chain[0]).is_some_and(|leaf| leaf.not_before <= now && leaf.not_after > enough);
    timely && covers(&chain[0], roots, names, now) && rustls::sign::CertifiedKey::from_der(chain, key, &super::provider()).is_ok()
}

fn covers(leaf: &rustls::pki_types::CertificateDer<'_>, roots: rustls::RootCertStore, names: &[String], now: Timestamp) -> bool {
    use rustls::client::danger::ServerCertVerifier;
    let Ok(verifier) = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), super::provider()).build()
    else {
        return false;
    };
    let at = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.secs()).unwrap_or(0)));
    names.iter().all(|name| {
        rustls::pki_types::ServerName::try_from(name.as_str())
            .is_ok_and(|name| verifier.verify_server_cert(leaf, &[], &name, &[], at).is_ok())
    })
}

/// The CA in `file`, or a new one if none exists or it would expire before a server certificate signed now.
fn authority(file: &Path, key_file: &Path, now: Timestamp) -> Result<Issuer<'static, KeyPair>, DevError> {
    let unmakeable = |source| DevError::Unmakeable {
        names: vec!["a CA".to_owned()],
        source,
    };
    let there = pem::certificates(file)
        .ok()
        .and_then(|chain| PeerCertificate::read(&chain[0]));
    if let Some(ca) = there
        && ca.not_after > now.plus(DAY * SERVER_DAYS)
    {
        let key = std::fs::read_to_string(key_file).map_err(|_| DevError::LostKey { ca: file.to_owned() })?;
        let key = KeyPair::from_pem(&key).map_err(unmakeable)?;
        return Ok(Issuer::new(ca_params(ca.subject_cn.unwrap_or_default(), now), key));
    }
    let key = KeyPair::generate().map_err(unmakeable)?;
    let mut serial = [0; 4];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| unmakeable(rcgen::Error::RingUnspecified))?;
    let name = format!("Neural Guardian development CA {:08x}", u32::from_be_bytes(serial));
    let params = ca_params(name, now);
    let certificate = params.self_signed(&key).map_err(unmakeable)?;
    write(key_file, &key.serialize_pem(), 0o600)?;
    write(file, &certificate.pem(), 0o644)?;
    Ok(Issuer::new(params, key))
}

fn ca_params(name: String, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.not_before = now.minus(DAY).to_datetime();
    params.not_after = now.plus(DAY * CA_DAYS).to_datetime();
    params
}

fn server_params(names: &[String], now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    for name in names {
        params.subject_alt_names.push(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    params.distinguished_name = common_name("Neural Guardian development".to_owned());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now.minus(DAY).to_datetime();
    params.not_after = now.plus(DAY * (SERVER_DAYS - 1)).to_datetime();
    Ok(params)
}

fn common_name(name: String) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Writes a temporary file and renames it, so that no reader sees a partial file.
fn write(file: &Path, text: &str, mode: u32) -> Result<(), DevError> {
    use std::os::unix::fs::OpenOptionsExt;
    let unwritable = |source| DevError::Unwritable {
        file: file.to_owned(),
        source,
    };
    let beside = file.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let mut options = std::fs::OpenOptions::new();
    let mut out = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(unwritable)?;
    out.write_all(text.as_bytes()).map_err(unwritable)?;
    std::fs::rename(&beside, file).map_err(unwritable)
}
