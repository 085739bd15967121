//! Where the directory comes from: the store, or in the tests of this room a script that plays one.

use crate::domain::{EnvironmentName, UserId};
use crate::store::{Anchor, CatchUp, Delta, Directory, Store, StoreError};

#[derive(Clone)]
pub(super) enum DirectorySource {
    Store {
        store: Store,
        environment: EnvironmentName,
    },
    #[cfg(test)]
    Fake(super::fake_store::FakeStore),
}

impl DirectorySource {
    pub(super) async fn directory(&self) -> Result<Directory, StoreError> {
        match self {
            DirectorySource::Store { store, environment } => store.directory(environment).await,
            #[cfg(test)]
            DirectorySource::Fake(store) => store.directory().await,
        }
    }

    pub(super) async fn catch_up(&self, anchor: &Anchor) -> Result<CatchUp, StoreError> {
        match self {
            DirectorySource::Store { store, environment } => store.catch_up(environment, anchor).await,
            #[cfg(test)]
            DirectorySource::Fake(store) => store.catch_up(anchor).await,
        }
    }

    pub(super) async fn members(&self, users: &[UserId], at: &Anchor) -> Result<Delta, StoreError> {
        match self {
            DirectorySource::Store { store, environment } => store.members(environment, users, at).await,
            #[cfg(test)]
            DirectorySource::Fake(store) => store.members(users, at).await,
        }
    }
}
