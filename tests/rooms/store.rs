use crate::postgres::Database;
use neural_guardian::store::{Store, StoreOpen};
use std::time::Duration;

#[tokio::test]
async fn it_migrates() {
    let t = std::time::Instant::now();
    let database = Database::new().await;
    eprintln!("up {:?}", t.elapsed());
    let store = Store::open(&StoreOpen::Postgres {
        url: database.url().into(),
        ca_file: None,
        max_connections: 5,
        connect_timeout: Duration::from_secs(10),
    })
    .await
    .unwrap();
    store.migrate(&mut |s| eprintln!("{s}")).await.unwrap();
    eprintln!("migrated {:?}", t.elapsed());
    eprintln!("{:?}", store.status().await.unwrap());
    eprintln!("{:?}", store.self_check(&"default".parse().unwrap()).await.unwrap());
}
