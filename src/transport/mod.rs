//! The only room that knows TLS and sockets: listeners with a bound on every stage, outgoing connections to checked
//! addresses, certificates. It knows nothing of MCP, of callers or of what a request means.

mod address;
mod body;
mod client;
mod connections;
mod dev;
mod framing;
mod lines;
mod pace;
mod peer;
mod pem;
mod serve;
mod stop;
mod tls;
mod watch;
mod wire;

pub use body::{Body, BodyError, BodyProblem, empty, full, read_body};
pub use client::{Answered, Client, ClientError, ClientSettings};
pub use connections::{ConnectionCounts, Connections};
pub use dev::{DevCertificates, DevError, dev_certificates};
pub use framing::{authority, framing};
pub use peer::{Peer, PeerCertificate};
pub use pem::TlsError;
pub use serve::{serve, serve_counted};
pub use stop::{Stop, StopHandle};
pub use tls::{ServerTls, check, warnings};
pub use watch::{Watch, WatchError, watch};

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, OnceLock};

/// Makes aws-lc-rs the cryptography of libraries that ask for the process default. Ours never do.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// aws-lc-rs, named wherever TLS is configured so that no default decides.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .clone()
}
