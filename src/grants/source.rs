//! Where the directory comes from: the store, or in the tests of this room a script that plays one.

use crate::domain::{EnvironmentName, UserId};
use crate::store::{Anchor, CatchUp, Delta, Directory, Store, StoreError};

pub(super) enum Source {
    Store {
        store: Store,
        environment: EnvironmentName,
    },
    #[cfg(test)]
    Script(super::script::Script),
}

impl Source {
    pub(super) async fn directory(&self) -> Result<Directory, StoreError> {
        match self {
            Source::Store { store, environment } => store.directory(environment).await,
            #[cfg(test)]
            Source::Script(script) => script.directory().await,
        }
    }

    pub(super) async fn catch_up(&self, anchor: &Anchor) -> Result<CatchUp, StoreError> {
        match self {
            Source::Store { store, environment } => store.catch_up(environment, anchor).await,
            #[cfg(test)]
            Source::Script(script) => script.catch_up(anchor).await,
        }
    }

    pub(super) async fn members(&self, users: &[UserId], at: &Anchor) -> Result<Delta, StoreError> {
        match self {
            Source::Store { store, environment } => store.members(environment, users, at).await,
            #[cfg(test)]
            Source::Script(script) => script.members(users, at).await,
        }
    }
}
