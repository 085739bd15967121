//! What Guardian says about itself while it runs: log lines on standard error, numbers for `/metrics`.
//!
//! Neither holds a secret, a user or an argument; the audit trail is where those who may know look.

mod log;
mod metrics;

pub use log::{LogError, check, start};
pub use metrics::{Held, Metrics};
