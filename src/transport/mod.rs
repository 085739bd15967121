//! TLS and HTTP connections: server listeners with a limit on every stage, the HTTP client, certificates. No other room
//! configures rustls; this room knows nothing of MCP, callers or the meaning of a request.

mod address;
mod body;
mod client;
mod connections;
mod dev;
mod exchange_end;
mod framing;
mod guarded_body;
mod h2_flood;
mod peer;
mod pem;
mod pool;
mod probed_stream;
mod serve;
mod shutdown;
mod tls;
mod watch;

pub use body::{Body, BodyError, BodyProblem, empty, full, read_body};
pub use client::{Client, ClientError, ClientSettings, ResponseBody};
pub use connections::{ConnectionCounts, Connections};
pub use dev::{DevCertificates, DevError, dev_certificates};
pub use exchange_end::{ConnectionEnd, ExchangeEnd};
pub use framing::{authority, framing};
pub use guarded_body::GuardedBody;
pub use peer::{Peer, PeerCertificate};
pub use pem::TlsError;
pub use serve::{serve, serve_counted};
pub use shutdown::{Shutdown, ShutdownHandle};
pub use tls::{ServerTls, check_tls, warnings};
pub use watch::{FileEvents, REREAD_INTERVAL, Watch, WatchError, file_events, watch};

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, OnceLock};

/// Installs aws-lc-rs as the process default, for dependencies that ask for one. Guardian's own code always names its
/// provider.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The aws-lc-rs provider, passed explicitly to every TLS configuration so that none depends on the process default.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .clone()
}
