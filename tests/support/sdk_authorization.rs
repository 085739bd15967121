//! The process of `tests/clients/python/authorization_server.py`: an authorization server made with the Python SDK.

use super::wait::LONGEST;
use super::world::World;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

/// Ends with this value.
pub struct SdkAuthorizationServer {
    process: Child,
    said: mpsc::Receiver<String>,
    pub issuer: String,
}

/// The password with which Guardian introspects tokens, as the client `guardian`.
pub const INTROSPECTION_SECRET: &str = "only-guardian-knows";

impl SdkAuthorizationServer {
    /// Starts one with access tokens of this kind, `jwt` or `opaque`, for this user; the first has only the scopes `first`.
    pub fn start(world: &World, kind: &str, subject: &str, scopes: &str, first: &str) -> SdkAuthorizationServer {
        let folder = world.file(&format!("authorization-{kind}"));
        std::fs::create_dir_all(&folder).unwrap();
        world.authority.server().write(&folder, "server");
        std::fs::write(folder.join("introspection.secret"), INTROSPECTION_SECRET).unwrap();
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut process = Command::new(project.join("target/clients/python-v2/bin/python"))
            .arg(project.join("tests/clients/python/authorization_server.py"))
            .arg(&folder)
            .args([kind, subject, scopes, first])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`bash tests/clients/install` first");
        let out = BufReader::new(process.stdout.take().expect("it is piped"));
        let (tell, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The story may end before the server does.
                let _ = tell.send(line);
            }
        });
        let issuer = said.recv_timeout(LONGEST).expect("the authorization server to start");
        SdkAuthorizationServer { process, said, issuer }
    }

    /// Ends it, and returns what clients asked it, in order.
    pub fn end(mut self) -> Vec<String> {
        self.process.kill().expect("it is a child");
        std::iter::from_fn(|| self.said.recv_timeout(LONGEST).ok()).collect()
    }
}

impl Drop for SdkAuthorizationServer {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
