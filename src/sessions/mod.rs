//! What a client holds instead of a server's own words: session ids, sealed, and handles for opaque tokens. Both are bound to
//! the principal by one file of keys and need no table. Which session is open where is not known here.

mod handles;
mod keys;

pub use handles::{DecodedHandle, HandleKind, HandleOwner, claimed_server};
pub use keys::{Session, SessionKeys, SessionKeysError, UpstreamSessionId};
