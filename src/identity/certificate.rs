//! The principal that a client certificate names. TLS verified the chain; this reads the name and checks the validity
//! period again, because a connection can outlive the certificate that opened it.

use crate::domain::{
    AuthMethod, CERTIFICATE_ISSUER, Fingerprint, Issuer, IssuerAlias, Principal, PrincipalKind, Reason, Subject, Timestamp,
};
use crate::transport::PeerCertificate;

/// The subject is the URI name (`uri:…`), else the DNS name (`dns:…`), else the common name (`cn:…`). Two names of the
/// kind that counts are ambiguous and refused.
pub(super) fn certificate_principal(certificate: &PeerCertificate, now: Timestamp) -> Result<Principal, Reason> {
    if now < certificate.not_before || now > certificate.not_after {
        return Err(Reason::BadCertificate);
    }
    let subject = match (
        certificate.uri_sans.as_slice(),
        certificate.dns_sans.as_slice(),
        &certificate.subject_cn,
    ) {
        ([uri], ..) => format!("uri:{uri}"),
        ([], [dns], _) => format!("dns:{}", dns.to_ascii_lowercase()),
        ([], [], Some(name)) if !name.is_empty() => format!("cn:{name}"),
        _ => return Err(Reason::BadCertificate),
    };
    Ok(Principal {
        issued_at: Some(certificate.not_before),
        expires_at: Some(certificate.not_after),
        ..Principal::new(
            PrincipalKind::Service,
            Issuer::parse(CERTIFICATE_ISSUER).expect("a literal that is an issuer"),
            IssuerAlias::parse(CERTIFICATE_ISSUER).expect("a literal that is an alias"),
            Subject::parse(&subject).map_err(|_| Reason::BadCertificate)?,
            AuthMethod::Certificate,
            Fingerprint::of(&certificate.digest),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Digest;

    fn named(cn: Option<&str>, uris: &[&str], dns: &[&str]) -> PeerCertificate {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        PeerCertificate {
            digest: Digest::of(b"der"),
            subject_cn: cn.map(str::to_owned),
            uri_sans: owned(uris),
            dns_sans: owned(dns),
            not_before: Timestamp::from_secs(100),
            not_after: Timestamp::from_secs(200),
        }
    }

    fn subject(certificate: &PeerCertificate, now: i64) -> Result<String, Reason> {
        certificate_principal(certificate, Timestamp::from_secs(now)).map(|principal| principal.subject.to_string())
    }

    #[test]
    fn the_most_telling_name_counts_and_must_be_the_only_one_of_its_kind() {
        let uri = "spiffe://example/bot";
        assert_eq!(
            subject(&named(Some("Bot"), &[uri], &["a.example"]), 150),
            Ok(format!("uri:{uri}"))
        );
        assert_eq!(
            subject(&named(Some("Bot"), &[], &["A.example"]), 150),
            Ok("dns:a.example".to_owned())
        );
        assert_eq!(subject(&named(Some("Bot"), &[], &[]), 150), Ok("cn:Bot".to_owned()));
        for nobody in [
            named(None, &[], &[]),
            named(Some(""), &[], &[]),
            named(Some("a\nb"), &[], &[]),
            named(Some("Bot"), &[uri, "spiffe://example/root"], &[]),
            named(Some("Bot"), &[], &["a.example", "b.example"]),
        ] {
            assert_eq!(subject(&nobody, 150), Err(Reason::BadCertificate), "{nobody:?}");
        }
    }

    #[test]
    fn a_certificate_has_its_time() {
        let bot = named(Some("Bot"), &[], &[]);
        for (now, expected) in [(99, false), (100, true), (200, true), (201, false)] {
            assert_eq!(subject(&bot, now).is_ok(), expected, "{now}");
        }
    }
}
