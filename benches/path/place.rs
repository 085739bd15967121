//! Where everything stands: a scratch folder, free ports, and the core that a process gets.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A folder that goes when this is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// On the disk of the build, so that a sync is a sync.
    pub fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("path-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A command that keeps to one core, where there are several.
pub fn on_core(core: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1) && core > 0 {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

pub fn wait_for(address: SocketAddr) {
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until, "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
