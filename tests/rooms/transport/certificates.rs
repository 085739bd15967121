//! Certificates: reloaded, required of clients, checked, generated for development, watched.

use super::*;

#[tokio::test]
async fn a_changed_certificate_serves_the_next_connection_and_a_bad_one_never() {
    let server = start("reload", ClientCertificates::Off, ConnectionLimits::default(), hello).await;
    let leaf = async || {
        let stream = server.h1().await;
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        (stream, leaf)
    };
    let (mut old_connection, old) = leaf().await;
    assert!(!server.tls.reload().unwrap(), "nothing changed");

    let key = std::fs::read(&server.files.key_file).unwrap();
    std::fs::write(&server.files.key_file, std::fs::read(server.dir.join("ca-key.pem")).unwrap()).unwrap();
    assert!(matches!(server.tls.reload(), Err(TlsError::Mismatch { .. })));
    std::fs::write(&server.files.key_file, "half a ke").unwrap();
    assert!(matches!(server.tls.reload(), Err(TlsError::NoKey { .. })));
    std::fs::remove_file(&server.files.key_file).unwrap();
    assert!(matches!(server.tls.reload(), Err(TlsError::Unreadable { .. })));
    assert_eq!(leaf().await.1, old, "the old pair still serves");

    std::fs::write(&server.files.key_file, key).unwrap();
    assert!(!server.tls.reload().unwrap(), "the same files again");
    dev_certificates(&server.dir, &["other.example".to_owned()], now()).unwrap();
    assert!(server.tls.reload().unwrap());
    assert!(!server.tls.reload().unwrap(), "taken up once");
    assert_ne!(leaf().await.1, old);
    assert!(
        ask(&mut old_connection, GET_AND_CLOSE).await.contains("hello"),
        "a standing connection is not disturbed"
    );
}

async fn whoami(_: Request<Incoming>, peer: Arc<Peer>) -> Response<Body> {
    Response::new(full(match &peer.certificate {
        Some(certificate) => format!(
            "{:?} {:?} {:?}",
            certificate.subject_cn, certificate.uri_sans, certificate.dns_sans
        ),
        None => "nobody".to_owned(),
    }))
}

/// A client certificate signed by the CA in `dir`.
fn client_certificate(dir: &Path, usage: ExtendedKeyUsagePurpose) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let mut ca = CertificateParams::default();
    let ca_file = CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap();
    let name = neural_guardian::transport::PeerCertificate::read(&ca_file)
        .unwrap()
        .subject_cn
        .unwrap();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, name);
    ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(dir.join("ca-key.pem")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "build bot");
    params.subject_alt_names = vec![
        SanType::URI("spiffe://example/bot".try_into().unwrap()),
        SanType::DnsName("bot.example".try_into().unwrap()),
    ];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    (
        certificate.der().clone(),
        PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    )
}

#[tokio::test]
async fn a_client_certificate_is_demanded_verified_and_handed_on() {
    let optional = start(
        "mtls-optional",
        ClientCertificates::Optional,
        ConnectionLimits::default(),
        whoami,
    )
    .await;
    assert!(ask(&mut optional.h1().await, GET_AND_CLOSE).await.ends_with("nobody"));
    let required = start(
        "mtls-required",
        ClientCertificates::Required,
        ConnectionLimits::default(),
        whoami,
    )
    .await;
    // In TLS 1.3 the client learns of the refusal when it first reads.
    let refused = match dial(required.address, trusting(&required.dir, &[])).await {
        Ok(mut stream) => {
            let _ = stream.write_all(GET_AND_CLOSE.as_bytes()).await;
            rest(&mut stream).await
        }
        Err(_) => String::new(),
    };
    assert_eq!(refused, "");
    for server in [&optional, &required] {
        let bot = client_certificate(&server.dir, ExtendedKeyUsagePurpose::ClientAuth);
        let config = configured(&server.dir, &["http/1.1"], Some(bot));
        for _ in 0..2 {
            let mut stream = dial(server.address, config.clone()).await.unwrap();
            let answer = ask(&mut stream, GET_AND_CLOSE).await;
            assert!(
                answer.ends_with(r#"Some("build bot") ["spiffe://example/bot"] ["bot.example"]"#),
                "{answer}"
            );
            assert_eq!(
                stream.get_ref().1.handshake_kind(),
                Some(rustls::HandshakeKind::Full),
                "no resumption with certificates"
            );
        }
        let stranger = client_certificate(&scratch_ca("mtls-stranger"), ExtendedKeyUsagePurpose::ClientAuth);
        let for_servers = client_certificate(&server.dir, ExtendedKeyUsagePurpose::ServerAuth);
        for bad in [stranger, for_servers] {
            let answer = match dial(server.address, configured(&server.dir, &[], Some(bad))).await {
                Ok(mut stream) => {
                    let _ = stream.write_all(GET_AND_CLOSE.as_bytes()).await;
                    rest(&mut stream).await
                }
                Err(_) => String::new(),
            };
            assert_eq!(answer, "", "a bad certificate is not the same as none");
        }
    }
}

#[tokio::test]
async fn without_client_certificates_a_session_may_be_resumed() {
    let server = start("resumption", ClientCertificates::Off, ConnectionLimits::default(), hello).await;
    let config = trusting(&server.dir, &["http/1.1"]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut stream = dial(server.address, config.clone()).await.unwrap();
        ask(&mut stream, GET_AND_CLOSE).await;
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
}

#[test]
fn each_thing_wrong_with_certificates_has_its_sentence() {
    let dir = scratch("check");
    let good = files(&dir, ClientCertificates::Required);
    assert_eq!(check_tls(&good, now()), Vec::<String>::new());
    assert_eq!(warnings(&good, now()), Vec::<String>::new());
    let year = Duration::from_secs(365 * 24 * 3_600);
    let day = Duration::from_secs(24 * 3_600);
    let problems = |files: &TlsConfig, at: Timestamp, expected: &[&str]| {
        let found = check_tls(files, at);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "`{found}` should say `{expected}`");
        }
    };
    problems(&good, now().plus(year * 3), &["expired on"]);
    problems(&good, now().minus(year), &["is not valid before"]);
    assert!(warnings(&good, now().plus(day * 820)).concat().contains("expires on"));

    let missing = TlsConfig {
        certificate_file: dir.join("missing.pem"),
        ..good.clone()
    };
    problems(&missing, now(), &["cannot read `"]);
    std::fs::write(dir.join("text.pem"), "not a certificate").unwrap();
    let text = dir.join("text.pem");
    let none = TlsConfig {
        certificate_file: text.clone(),
        key_file: text.clone(),
        client_ca_file: Some(text),
        ..good.clone()
    };
    problems(
        &none,
        now(),
        &["no PEM certificate", "no PEM private key", "no PEM certificate"],
    );
    let pair = TlsConfig {
        key_file: dir.join("ca-key.pem"),
        ..good.clone()
    };
    problems(&pair, now(), &["does not belong to the certificate"]);
    let no_ca = TlsConfig {
        client_ca_file: None,
        ..good
    };
    problems(&no_ca, now(), &["no `client_ca_file`"]);
}

#[test]
fn development_certificates_are_made_once_and_grow_with_the_names() {
    let dir = scratch("dev");
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let first = dev_certificates(&dir, &[], NOW).unwrap();
    assert!(first.made);
    for name in ["ca-key.pem", "server-key.pem"] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            std::fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777,
            0o600,
            "{name}"
        );
    }
    let (ca, server) = (read("ca.pem"), read("server.pem"));
    assert!(!dev_certificates(&dir, &[], NOW).unwrap().made);
    assert_eq!((read("ca.pem"), read("server.pem")), (ca.clone(), server.clone()));

    assert!(
        dev_certificates(&dir, &["mcp.test".to_owned(), "10.0.0.1".to_owned()], NOW)
            .unwrap()
            .made
    );
    assert_eq!(read("ca.pem"), ca, "the CA that clients trust stays");
    let grown = read("server.pem");
    assert_ne!(grown, server);
    assert!(!dev_certificates(&dir, &["mcp.test".to_owned()], NOW).unwrap().made);

    let two_years = Duration::from_secs(800 * 24 * 3_600);
    assert!(
        dev_certificates(&dir, &[], NOW.plus(two_years)).unwrap().made,
        "about to expire"
    );
    std::fs::remove_file(dir.join("ca-key.pem")).unwrap();
    std::fs::remove_file(dir.join("server.pem")).unwrap();
    assert!(dev_certificates(&dir, &[], NOW).is_err());
}

#[tokio::test]
async fn a_watch_tells_of_new_content_only() {
    let dir = scratch("watch");
    let file = dir.join("a.pem");
    std::fs::write(&file, "one").unwrap();
    let mut watch = watch(std::slice::from_ref(&file)).unwrap();
    let mut told = 0;
    for content in ["two", "three"] {
        std::fs::write(dir.join("new"), content).unwrap();
        std::fs::rename(dir.join("new"), &file).unwrap();
        soon(watch.changed()).await;
        told += 1;
    }
    assert_eq!(told, 2);
    std::fs::write(dir.join("unrelated"), "x").unwrap();
    std::fs::write(&file, "three").unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), watch.changed()).await.is_err());
    std::fs::write(&file, "four").unwrap();
    soon(watch.changed()).await;
}

#[tokio::test]
async fn only_events_that_matter_are_counted() {
    let dir = scratch("events");
    std::fs::write(dir.join("new"), "one").unwrap();
    let matters = |path: &Path| path.extension().is_some_and(|extension| extension == "cedar");
    let events = file_events(std::slice::from_ref(&dir), matters).unwrap();
    for content in 0..100 {
        std::fs::write(dir.join("unrelated"), content.to_string()).unwrap();
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
    std::fs::rename(dir.join("new"), dir.join("a.cedar")).unwrap();
    soon(events.next()).await;
    let count = events.count();
    assert!((1..10).contains(&count), "{count}");
    std::fs::remove_file(dir.join("a.cedar")).unwrap();
    soon(async {
        while events.count() == count {
            events.next().await;
        }
    })
    .await;
}
