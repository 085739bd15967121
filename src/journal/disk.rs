//! The operations that the journal needs from a disk (`Disk`), and their real implementation: files in one folder that
//! one process locks.
//!
//! Handles no faults: every error but EINTR is returned as it is, and nothing is retried.

use super::JournalError;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Makes a write that reaches `ulimit -f` fail with an error, which the journal and the store handle. Without a handler, the
/// signal that comes with it (SIGXFSZ) ends the process.
pub fn survive_file_size_limit() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // The handler stays installed after this is dropped.
    let _handler = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    Ok(())
}

/// A folder of files. The other implementor is the simulated disk of the tests.
pub(super) trait Disk: Send + Sync {
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates an empty file; fails if the name exists.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_folder(&self) -> io::Result<()>;
    /// The file's path, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// An open file, read and written at offsets.
pub(super) trait DiskFile: Send + Sync {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes the data durable, and the metadata needed to read it back (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Truncates the file and makes that durable.
    fn cut(&self, length: u64) -> io::Result<()>;
    fn size(&self) -> io::Result<u64>;
}

/// Writes all bytes. A short write is an error, because a full disk shows itself that way.
pub(super) fn write_whole(file: &dyn DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    loop {
        match file.write_at(bytes, offset) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(written) => {
                let short = format!("only {written} of {} bytes were written", bytes.len());
                return Err(io::Error::new(io::ErrorKind::WriteZero, short));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Fills `bytes`, or stops at the end of the file; returns how much was read.
pub(super) fn read_up_to(file: &dyn DiskFile, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Replaces a small file atomically: after a crash the old or the new content is there, whole.
pub(super) fn replace(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&temporary)?;
    write_whole(&*file, bytes, 0)?;
    file.sync()?;
    disk.rename(&temporary, name)?;
    disk.sync_folder()
}

/// A real folder. Opened for writing, it holds the lock for as long as it lives.
pub(super) struct DiskFolder {
    path: PathBuf,
    handle: File,
    write: bool,
    _lock: Option<File>,
}

impl DiskFolder {
    /// Opens the folder for writing by this process alone, and creates it if it is missing.
    pub fn lock(path: &Path, allow_volatile: bool) -> Result<Self, JournalError> {
        let fault = |source| JournalError::Folder {
            dir: path.to_owned(),
            source,
        };
        create_durably(path).map_err(fault)?;
        let path = path.canonicalize().map_err(fault)?;
        if let (false, Some(kind)) = (allow_volatile, volatile(&path)) {
            return Err(JournalError::Volatile { dir: path, kind });
        }
        let lock = options(true).create(true).open(path.join("lock")).map_err(fault)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Locked { dir: path }),
            Err(TryLockError::Error(error)) => return Err(fault(error)),
        }
        Ok(Self {
            handle: File::open(&path).map_err(fault)?,
            path,
            write: true,
            _lock: Some(lock),
        })
    }

    /// Opens the folder read-only; another process may be writing to it.
    pub fn look(path: &Path) -> io::Result<Self> {
        Ok(Self {
            handle: File::open(path)?,
            path: path.to_owned(),
            write: false,
            _lock: None,
        })
    }
}

impl Disk for DiskFolder {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string()));
        names
            .filter_map(|name: io::Result<_>| name.map(Result::ok).transpose())
            .collect()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(options(true).create_new(true).open(self.path(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(options(self.write).open(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl DiskFile for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.sync_all()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// Creates the missing folders of this path, and syncs each parent so that the new name is durable.
fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| *parent != Path::new(""))
        .unwrap_or(Path::new("."));
    create_durably(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}

fn options(write: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(write).mode(0o600);
    options
}

/// The type of the file system this folder lies on, if its files do not survive a restart of the machine or container.
fn volatile(path: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let kind = kind_of_mount(&table, path)?;
    matches!(kind, "tmpfs" | "ramfs" | "devtmpfs" | "overlay" | "aufs").then(|| kind.to_owned())
}

/// The file system type of the deepest mount point above `path`; of two on the same point the later line covers the
/// earlier. A line of `/proc/self/mountinfo`: `36 35 98:0 /root /mount/point options [optional…] - kind source options`.
fn kind_of_mount<'a>(table: &'a str, path: &Path) -> Option<&'a str> {
    let mounts = table.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = PathBuf::from(unescaped(mount.split(' ').nth(4)?));
        let depth = point.components().count();
        path.starts_with(&point).then(|| (depth, kind.split(' ').next()))
    });
    mounts.max_by_key(|(depth, _)| *depth).and_then(|(_, kind)| kind)
}

/// `mountinfo` writes blanks, tabs, newlines and backslashes as `\` and three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or("").to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => plain.push_str(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /run rw,nosuid shared:2 - tmpfs tmpfs rw
24 22 0:22 / /srv/with\\040blank rw - overlay overlay rw
25 22 254:1 / /over rw - ext4 /dev/vdb rw
26 25 0:23 / /over rw master:1 shared:3 - tmpfs none rw
";

    #[test]
    fn the_deepest_and_latest_mount_tells_the_kind_of_file_system() {
        for (path, kind) in [
            ("/var/lib/guardian", "ext4"),
            ("/runner", "ext4"),
            ("/run/guardian", "tmpfs"),
            ("/srv/with blank/journal", "overlay"),
            ("/over/journal", "tmpfs"),
        ] {
            assert_eq!(kind_of_mount(TABLE, Path::new(path)), Some(kind), "{path}");
        }
    }
}
