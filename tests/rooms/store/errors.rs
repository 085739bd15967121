//! The messages when Postgres cannot be used, none of which contains a password.

use super::world::{env, open, postgres_at};
use crate::postgres::Database;
use neural_guardian::store::{Store, StoreError, StoreOpen};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::time::Duration;

/// Removes from messages what differs from run to run, and asserts that no password is in them.
struct Said {
    hide: Vec<(String, &'static str)>,
    password: String,
}

impl Said {
    async fn by(&self, url: &str) -> String {
        self.of(&open(url).await.expect_err("this cannot be opened"))
    }

    fn of(&self, error: &StoreError) -> String {
        let (text, debug) = (error.to_string(), format!("{error:?}"));
        assert!(!text.contains(&self.password) && !debug.contains(&self.password), "{debug}");
        self.hide.iter().fold(text, |text, (part, name)| text.replace(part, name))
    }
}

#[tokio::test]
async fn each_thing_that_can_be_wrong_has_its_sentence() {
    let mut database = Database::on_own_cluster().await;
    let login = database.login("", &[]).await;
    database
        .execute(&format!("CREATE ROLE checked; GRANT checked TO {}", login.role))
        .await;
    database
        .cluster()
        .reconfigure("", "host all +checked 127.0.0.1/32 scram-sha-256");
    let port = login
        .url
        .split("127.0.0.1:")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let hide = vec![
        (port.clone(), "PORT"),
        (login.role.clone(), "LOGIN"),
        (database.name.clone(), "DATABASE"),
    ];
    let said = Said {
        hide,
        password: login.password.clone(),
    };

    open(&login.url).await.unwrap();
    let wrong = login.url.replace(&login.password, &format!("{}x", login.password));
    assert_eq!(
        said.by(&wrong).await,
        "the Postgres database `DATABASE` at `127.0.0.1:PORT` refuses the login `LOGIN`: wrong password, or it may not connect"
    );
    let missing = login.url.replace(&database.name, "elsewhere");
    assert_eq!(
        said.by(&missing).await,
        "the Postgres database `elsewhere` at `127.0.0.1:PORT` does not exist"
    );
    let plain = format!(
        "postgres://{}:{}@127.0.0.1:{port}/{}",
        login.role, login.password, database.name
    );
    assert_eq!(
        said.by(&format!("{plain}?sslmode=verify-full")).await,
        "no trusted TLS connection to the Postgres database `DATABASE` at `127.0.0.1:PORT`: server does not support TLS"
    );
    let not_migrated = open(&login.url).await.unwrap().directory(&env()).await.unwrap_err();
    assert_eq!(
        said.of(&not_migrated),
        "the Postgres database `DATABASE` at `127.0.0.1:PORT` has no tables of this version yet: run `guardian db migrate`"
    );
    let store = open(&login.url).await.unwrap();
    assert!(!format!("{store:?} {}", store.location()).contains(&login.password));

    database.cluster().stop();
    let down = open(&login.url).await.unwrap_err();
    assert_eq!(
        said.of(&down),
        "cannot reach the Postgres database `DATABASE` at `127.0.0.1:PORT`: connection refused"
    );
    assert!(down.is_transient());
}

#[tokio::test]
async fn a_url_that_cannot_be_read_is_not_repeated() {
    let said = Said {
        hide: Vec::new(),
        password: "s3cr3t".into(),
    };
    let unreadable = "the store's URL cannot be read: it is `postgres://user:password@host:port/database`, with special characters in \
                      the password as %XX";
    let unknown = "the store's URL has a parameter that is not known here";
    let verify = "the store's URL has an `sslmode` that is none of disable, allow, prefer, require, verify-ca, verify-full";
    for (url, expected) in [
        ("mysql://u:s3cr3t@h/d", "the store's URL does not begin with `postgres://`"),
        ("postgres://u:s3cr3t@h:port/d", unreadable),
        ("postgres://u:/s3cr3t@h/d", unreadable),
        ("postgres://u:1?user=s3cr3t@h/d", unreadable),
        ("postgres://u:1#s3cr3t@h/d", unreadable),
        ("postgres://u:p@h/d?s3cr3t=1", unknown),
        ("postgres://u:p@h/d?sslmode=s3cr3t", verify),
        ("postgres://u:p@h/d?port=s3cr3t", unreadable),
        (
            "postgres://u:s3cr3t@aws-0.pooler.supabase.com:6543/d",
            "the store's URL names Supabase's transaction pooler (port 6543), which mixes up prepared statements: use port 5432",
        ),
    ] {
        assert_eq!(said.by(url).await, expected, "{url}");
    }
    let no_ca = StoreOpen::Postgres {
        url: "postgres://u:s3cr3t@h/d".into(),
        ca_file: Some("/no/such/ca.pem".into()),
        max_connections: 1,
        connect_timeout: Duration::from_secs(1),
    };
    let error = Store::open(&no_ca).await.unwrap_err();
    assert_eq!(
        said.of(&error),
        "cannot read the store's CA file `/no/such/ca.pem`: No such file or directory (os error 2)"
    );
    assert!(!format!("{no_ca:?}").contains("s3cr3t"));
}

#[tokio::test]
async fn tls_is_verified_by_name_against_the_given_ca() {
    let mut database = Database::on_own_cluster().await;
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    database.cluster().put("server.crt", &certificate.pem());
    database.cluster().put("server.key", &key.serialize_pem());
    database.cluster().reconfigure("ssl = on", "");
    let folder = super::world::Folder::new();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();

    let url = database.url().split('?').next().unwrap().to_owned();
    let verified = |host: &str, ca_file| {
        let url = format!("{}?sslmode=verify-full", url.replace("127.0.0.1", host));
        let StoreOpen::Postgres {
            url,
            max_connections,
            connect_timeout,
            ..
        } = postgres_at(&url)
        else {
            unreachable!()
        };
        StoreOpen::Postgres {
            url,
            ca_file,
            max_connections,
            connect_timeout,
        }
    };
    Store::open(&verified("localhost", Some(ca_file.clone())))
        .await
        .unwrap()
        .status()
        .await
        .unwrap();
    for (host, ca_file, why) in [
        ("localhost", None, "invalid peer certificate: UnknownIssuer"),
        (
            "127.0.0.1",
            Some(ca_file),
            "invalid peer certificate: certificate not valid for name",
        ),
    ] {
        let error = Store::open(&verified(host, ca_file)).await.unwrap_err();
        assert!(matches!(error, StoreError::Tls { .. }) && !error.is_transient(), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn an_outage_passes_without_opening_the_store_again() {
    let mut database = Database::on_own_cluster().await;
    let StoreOpen::Postgres {
        url,
        ca_file,
        max_connections,
        ..
    } = postgres_at(&database.url())
    else {
        unreachable!()
    };
    let connect_timeout = Duration::from_secs(2);
    let store = Store::open(&StoreOpen::Postgres {
        url,
        ca_file,
        max_connections,
        connect_timeout,
    })
    .await
    .unwrap();
    store.migrate(&mut |_| ()).await.unwrap();
    let before = store.directory(&env()).await.unwrap();

    database.cluster().stop();
    let error = store.directory(&env()).await.unwrap_err();
    assert!(
        error.is_transient() && matches!(error, StoreError::Unreachable { .. }),
        "{error:?}"
    );
    database.cluster().run();
    assert_eq!(store.directory(&env()).await.unwrap(), before);
}
