//! Finds the credential of a request: exactly one. Query parameters and cookies are not read, and of two credentials
//! neither is chosen. Whether it is genuine is not checked here.

use super::key::ApiKeyText;
use crate::config::ClientCertificates;
use crate::domain::Reason;
use crate::transport::PeerCertificate;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::sync::Arc;

/// A longer credential is refused unread.
const MAX_BYTES: usize = 8 * 1024;
const ASSERTION: HeaderName = HeaderName::from_static("cf-access-jwt-assertion");

/// The one credential of a request.
#[derive(Clone)]
pub enum Credential<'a> {
    Token {
        text: &'a str,
        /// It came in `Cf-Access-Jwt-Assertion`, so its issuer must be a Cloudflare Access one.
        assertion: bool,
    },
    Key(ApiKeyText<'a>),
    Certificate(Arc<PeerCertificate>),
}

/// Which credentials this instance accepts.
#[derive(Debug, Clone, Copy)]
pub(super) struct CredentialRules {
    pub assertions: bool,
    pub client_certificates: ClientCertificates,
}

/// A certificate beside a token or API key is one credential too many, unless every connection must have one: then it
/// only opens the connection, and the token or key names the caller.
pub(super) fn extract_credential<'a>(
    headers: &'a HeaderMap,
    certificate: Option<&Arc<PeerCertificate>>,
    credential_rules: CredentialRules,
) -> Result<Credential<'a>, Reason> {
    let bearer = at_most_one(headers, &AUTHORIZATION)?;
    let assertion = if credential_rules.assertions {
        at_most_one(headers, &ASSERTION)?
    } else {
        None
    };
    let shown = match (bearer, assertion) {
        (Some(_), Some(_)) => return Err(Reason::SeveralCredentials),
        (Some(bearer), None) => Some(read_bearer(bearer)?),
        (None, Some(assertion)) => Some(Credential::Token {
            text: parse_token68(assertion.as_bytes())?,
            assertion: true,
        }),
        (None, None) => None,
    };
    match (shown, certificate, credential_rules.client_certificates) {
        (Some(shown), None, _) | (Some(shown), Some(_), ClientCertificates::Required) => Ok(shown),
        (Some(_), Some(_), ClientCertificates::Off | ClientCertificates::Optional) => Err(Reason::SeveralCredentials),
        (None, Some(certificate), _) => Ok(Credential::Certificate(certificate.clone())),
        (None, None, _) => Err(Reason::NoCredential),
    }
}

fn read_bearer(value: &HeaderValue) -> Result<Credential<'_>, Reason> {
    let (scheme, text) = value.as_bytes().split_at_checked(7).ok_or(Reason::MalformedCredential)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(Reason::MalformedCredential);
    }
    let text = parse_token68(text)?;
    if text.starts_with("ng_") {
        ApiKeyText::read(text).map(Credential::Key)
    } else {
        Ok(Credential::Token { text, assertion: false })
    }
}

/// Reads `token68` (RFC 9110, 11.2), whose alphabet has neither comma nor space: a second value cannot hide in it.
fn parse_token68(text: &[u8]) -> Result<&str, Reason> {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
    if (1..=MAX_BYTES).contains(&text.len()) && text.iter().all(fits) {
        std::str::from_utf8(text).map_err(|_| Reason::MalformedCredential)
    } else {
        Err(Reason::MalformedCredential)
    }
}

fn at_most_one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Reason> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(Reason::SeveralCredentials),
    }
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Token { .. } => f.write_str("Token(…)"),
            Credential::Key(key) => fmt::Debug::fmt(key, f),
            Credential::Certificate(certificate) => write!(f, "Certificate({})", certificate.digest.short()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Digest, Timestamp};
    use ClientCertificates::{Off, Optional, Required};

    fn shown(
        fields: &[(&'static str, &str)],
        certificate: bool,
        client_certificates: ClientCertificates,
    ) -> Result<String, Reason> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let certificate = certificate.then(|| {
            Arc::new(PeerCertificate {
                digest: Digest::ZERO,
                subject_cn: None,
                uri_sans: Vec::new(),
                dns_sans: Vec::new(),
                not_before: Timestamp::from_secs(0),
                not_after: Timestamp::from_secs(0),
            })
        });
        let credential_rules = CredentialRules {
            assertions: true,
            client_certificates,
        };
        extract_credential(&headers, certificate.as_ref(), credential_rules).map(|credential| match credential {
            Credential::Token { text, assertion: false } => text.to_owned(),
            Credential::Token { text, assertion: true } => format!("assertion {text}"),
            Credential::Key(key) => format!("key {}", key.id()),
            Credential::Certificate(_) => "certificate".to_owned(),
        })
    }

    #[test]
    fn there_is_exactly_one_credential() {
        let token = ("authorization", "Bearer a.b.c");
        let assertion = ("cf-access-jwt-assertion", "d.e.f");
        assert_eq!(shown(&[token], false, Off), Ok("a.b.c".to_owned()));
        assert_eq!(
            shown(&[("authorization", "bEaReR a.b.c")], false, Off),
            Ok("a.b.c".to_owned())
        );
        assert_eq!(shown(&[assertion], false, Off), Ok("assertion d.e.f".to_owned()));
        assert_eq!(shown(&[], true, Optional), Ok("certificate".to_owned()));
        assert_eq!(shown(&[], true, Required), Ok("certificate".to_owned()));
        assert_eq!(
            shown(&[token], true, Required),
            Ok("a.b.c".to_owned()),
            "it only opened the connection"
        );
        assert_eq!(shown(&[], false, Optional), Err(Reason::NoCredential));
        let elsewhere = [
            ("cookie", "token=a.b.c"),
            ("x-api-key", "a"),
            ("x-forwarded-user", "root"),
            ("cf-access-token", "d.e.f"),
        ];
        assert_eq!(shown(&elsewhere, false, Off), Err(Reason::NoCredential));
        for (fields, certificate) in [
            (&[token, token][..], false),
            (&[token, assertion], false),
            (&[assertion, assertion], false),
            (&[token], true),
            (&[assertion], true),
        ] {
            assert_eq!(
                shown(fields, certificate, Optional),
                Err(Reason::SeveralCredentials),
                "{fields:?}"
            );
        }
    }

    #[test]
    fn a_credential_of_another_shape_is_refused_and_not_overlooked() {
        let long = format!("Bearer {}", "a".repeat(MAX_BYTES + 1));
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer  a.b.c",
            "Bearer a.b.c d.e.f",
            "Bearer a.b.c, Bearer d.e.f",
            "Basic dXNlcjpwYXNz",
            "Digest a",
            "a.b.c",
            "Bearer\ta.b.c",
            "Bearer a\"b",
            "Bearer ng_short",
            &long,
        ] {
            let refused = shown(&[("authorization", value)], false, Off);
            assert!(
                matches!(refused, Err(Reason::MalformedCredential | Reason::BadKey)),
                "{value}: {refused:?}"
            );
        }
    }

    #[test]
    fn an_assertion_counts_only_where_an_issuer_makes_them() {
        let mut headers = HeaderMap::new();
        headers.insert("cf-access-jwt-assertion", "d.e.f".parse().unwrap());
        let credential_rules = CredentialRules {
            assertions: false,
            client_certificates: Off,
        };
        assert!(matches!(
            extract_credential(&headers, None, credential_rules),
            Err(Reason::NoCredential)
        ));
    }
}
