//! The documents that decisions were made by, each once under its hash, and the random bytes that each person's key for
//! recorded arguments is derived from.

use super::engine::{Arg, Sql, args};
use super::ship::DURABLE_COMMIT;
use super::{Store, StoreError};
use crate::domain::{Digest, DocumentKind, EnvironmentName, InputSalt, KeptDocument, UserId};

const INSERT: Sql = Sql {
    postgres: "INSERT INTO policy_documents (environment, kind, digest, content)
               SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[]) ON CONFLICT DO NOTHING",
    sqlite: "INSERT INTO policy_documents (environment, kind, digest, content) VALUES {rows} ON CONFLICT DO NOTHING",
};

const CONTENT: Sql = Sql::same("SELECT content FROM policy_documents WHERE environment = $1 AND kind = $2 AND digest = $3");

const KINDS: Sql = Sql::same("SELECT kind FROM policy_documents WHERE environment = $1 AND digest = $2 ORDER BY kind");

const SALT: Sql = Sql {
    postgres: "SELECT salt FROM audit_salts WHERE environment = $1 AND user_id = $2::uuid",
    sqlite: "SELECT salt FROM audit_salts WHERE environment = $1 AND user_id = $2",
};

const GIVE_SALTS: Sql = Sql {
    postgres: "SELECT give_salts($1)",
    sqlite: "INSERT INTO audit_salts (environment, user_id, salt)
             SELECT u.environment, u.id, randomblob(32) FROM users u WHERE u.environment = $1 AND NOT EXISTS
               (SELECT 1 FROM audit_salts s WHERE s.environment = u.environment AND s.user_id = u.id)",
};

/// One statement takes documents of this length together, and at least one.
const MOST_BYTES: usize = 4 * 1024 * 1024;

impl Store {
    /// Stores documents; those that are there already stay as they are. Returns how many are new.
    pub async fn ship_documents(&self, env: &EnvironmentName, documents: &[KeptDocument]) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        if let Store::Postgres(_) = self {
            tx.fetch(&DURABLE_COMMIT, &[]).await?;
        }
        let (mut inserted, mut rest) = (0, documents);
        while !rest.is_empty() {
            let these;
            (these, rest) = rest.split_at(at_once(rest));
            let row = |document: &KeptDocument| -> Vec<Arg> {
                args![
                    env.as_str(),
                    document.kind.as_str(),
                    &document.digest.as_bytes()[..],
                    document.text.as_bytes(),
                ]
                .to_vec()
            };
            let rows: Vec<Vec<Arg>> = these.iter().map(row).collect();
            inserted += tx.insert_rows(&INSERT, &rows).await?;
        }
        tx.commit().await?;
        Ok(inserted)
    }

    /// The document with this hash. What is stored under it and has another one is an error.
    pub async fn document(
        &self,
        env: &EnvironmentName,
        kind: DocumentKind,
        digest: &Digest,
    ) -> Result<Option<KeptDocument>, StoreError> {
        let args = args![env.as_str(), kind.as_str(), &digest.as_bytes()[..]];
        let rows = self.query(&CONTENT, args).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let document = String::from_utf8(row.get("content")?).map(|text| KeptDocument::new(kind, text));
        match document {
            Ok(document) if document.digest == *digest => Ok(Some(document)),
            _ => {
                let what = format!("the document `{digest}` is not what its hash says: it was changed after it was stored");
                Err(StoreError::broken(self.location(), what))
            }
        }
    }

    /// As what kinds a document of this hash is stored.
    pub async fn document_kinds(&self, env: &EnvironmentName, digest: &Digest) -> Result<Vec<DocumentKind>, StoreError> {
        let rows = self.query(&KINDS, args![env.as_str(), &digest.as_bytes()[..]]).await?;
        let names: Vec<String> = rows.iter().map(|row| row.get("kind")).collect::<Result<_, _>>()?;
        let is_among = |kind: &DocumentKind| names.iter().any(|name| name == kind.as_str());
        Ok(DocumentKind::ALL.into_iter().filter(is_among).collect())
    }

    /// What this person's keys are made of; `None` where it was erased. Only the proxy's login may read it.
    pub async fn input_salt(&self, env: &EnvironmentName, user: &UserId) -> Result<Option<InputSalt>, StoreError> {
        let rows = self.query(&SALT, args![env.as_str(), user.as_str()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let salt = row.get::<Vec<u8>>("salt")?.try_into();
        let broken = |_| StoreError::broken(self.location(), format!("the salt of user `{user}` is not 32 bytes long"));
        salt.map(|salt| Some(InputSalt(salt))).map_err(broken)
    }

    /// Gives their random bytes to the users who have none: those that came by a way that no trigger sees.
    pub async fn give_salts(&self, env: &EnvironmentName) -> Result<(), StoreError> {
        self.execute(&GIVE_SALTS, args![env.as_str()]).await.map(drop)
    }
}

/// How many of the first documents go into one statement.
fn at_once(documents: &[KeptDocument]) -> usize {
    let mut bytes = 0;
    let fits = documents.iter().take_while(|document| {
        bytes += document.text.len();
        bytes <= MOST_BYTES
    });
    fits.count().max(1)
}
