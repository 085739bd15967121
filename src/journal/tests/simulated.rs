//! A disk in memory for the tests: it fails on demand, and a crash loses what was not synced.
//!
//! As on Linux, a failed sync marks the pages clean: a later sync of that file succeeds and writes nothing.

use super::super::disk::{Disk, DiskFile};
use super::super::queue::locked;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Create,
    Write,
    Sync,
    Rename,
    Remove,
    SyncFolder,
}

/// What happens to an operation.
pub enum Fate {
    Works,
    /// Fails with this kind of error.
    Fails(io::ErrorKind),
    /// Writes half of the bytes and reports that (a short write).
    Half,
}

type FaultScript = Box<dyn FnMut(Op, &str) -> Fate + Send>;

#[derive(Clone)]
pub struct Simulated(Arc<Mutex<SimulatedState>>);

#[derive(Default)]
struct SimulatedState {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    script: Option<FaultScript>,
    /// Names of files that were synced again after a failed sync.
    pub broken_rules: Vec<String>,
}

#[derive(Default, Clone)]
struct Content {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges written since the last sync.
    dirty: Vec<(usize, usize)>,
    failed: bool,
}

struct SimulatedFile {
    disk: Simulated,
    name: String,
    file: usize,
}

impl Simulated {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// The script decides what happens to every operation that changes something.
    pub fn script(&self, script: impl FnMut(Op, &str) -> Fate + Send + 'static) {
        locked(&self.0).script = Some(Box::new(script));
    }

    pub fn works_again(&self) {
        locked(&self.0).script = None;
    }

    pub fn broken_rules(&self) -> Vec<String> {
        locked(&self.0).broken_rules.clone()
    }

    /// The disk as a power cut may leave it: `keep` says which of the unsynced sectors and names survive.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) -> Self {
        let world = locked(&self.0);
        let mut names = world.durable_names.clone();
        for (name, file) in &world.names {
            if names.get(name) != Some(file) && keep() {
                names.insert(name.clone(), *file);
            }
        }
        names.retain(|name, _| world.names.contains_key(name) || keep());
        let files = world.files.iter().map(|content| content.crash(&mut keep)).collect();
        Self(Arc::new(Mutex::new(SimulatedState {
            files,
            durable_names: names.clone(),
            names,
            ..SimulatedState::default()
        })))
    }

    /// The disk as a killed process leaves it: nothing is lost.
    pub fn reboot(&self) -> Self {
        self.crash(|| true)
    }

    fn fate(&self, op: Op, name: &str) -> Fate {
        match &mut locked(&self.0).script {
            Some(script) => script(op, name),
            None => Fate::Works,
        }
    }

    fn allowed(&self, op: Op, name: &str) -> io::Result<()> {
        match self.fate(op, name) {
            Fate::Works => Ok(()),
            Fate::Fails(kind) => Err(kind.into()),
            Fate::Half => Err(io::ErrorKind::Other.into()),
        }
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        locked(&self.0).names.get(name).copied().ok_or(io::ErrorKind::NotFound.into())
    }

    fn handle(&self, name: &str, file: usize) -> Box<dyn DiskFile> {
        Box::new(SimulatedFile {
            disk: self.clone(),
            name: name.to_owned(),
            file,
        })
    }
}

impl Content {
    fn write(&mut self, bytes: &[u8], at: usize) {
        if self.cached.len() < at + bytes.len() {
            self.cached.resize(at + bytes.len(), 0);
        }
        self.cached[at..at + bytes.len()].copy_from_slice(bytes);
        self.dirty.push((at, at + bytes.len()));
    }

    fn crash(&self, keep: &mut impl FnMut() -> bool) -> Self {
        let mut durable = self.durable.clone();
        for (from, to) in &self.dirty {
            let mut at = *from;
            while at < *to {
                let end = ((at / SECTOR + 1) * SECTOR).min(*to);
                if keep() {
                    if durable.len() < end {
                        durable.resize(end, 0);
                    }
                    durable[at..end].copy_from_slice(&self.cached[at..end]);
                }
                at = end;
            }
        }
        Self {
            cached: durable.clone(),
            durable,
            ..Self::default()
        }
    }
}

impl Disk for Simulated {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(locked(&self.0).names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.allowed(Op::Create, name)?;
        let mut world = locked(&self.0);
        if world.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.files.push(Content::default());
        let file = world.files.len() - 1;
        world.names.insert(name.to_owned(), file);
        Ok(self.handle(name, file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.handle(name, self.file(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.allowed(Op::Rename, from)?;
        let file = self.file(from)?;
        let mut world = locked(&self.0);
        world.names.remove(from);
        world.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.allowed(Op::Remove, name)?;
        locked(&self.0)
            .names
            .remove(name)
            .map(|_| ())
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.allowed(Op::SyncFolder, "")?;
        let mut world = locked(&self.0);
        world.durable_names = world.names.clone();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = locked(&self.disk.0);
        let cached = &world.files[self.file].cached;
        let from = (offset as usize).min(cached.len());
        let length = bytes.len().min(cached.len() - from);
        bytes[..length].copy_from_slice(&cached[from..from + length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let fate = self.disk.fate(Op::Write, &self.name);
        let content = &mut locked(&self.disk.0).files[self.file];
        match fate {
            Fate::Works => content.write(bytes, offset as usize),
            Fate::Half => content.write(&bytes[..bytes.len() / 2], offset as usize),
            Fate::Fails(kind) => return Err(kind.into()),
        }
        Ok(match fate {
            Fate::Half => bytes.len() / 2,
            _ => bytes.len(),
        })
    }

    fn sync(&self) -> io::Result<()> {
        let fate = self.disk.fate(Op::Sync, &self.name);
        let mut world = locked(&self.disk.0);
        if world.files[self.file].failed {
            world.broken_rules.push(self.name.clone());
        }
        let content = &mut world.files[self.file];
        let dirty = std::mem::take(&mut content.dirty);
        match fate {
            Fate::Works => {
                if content.durable.len() < content.cached.len() {
                    content.durable.resize(content.cached.len(), 0);
                }
                for (from, to) in dirty {
                    content.durable[from..to].copy_from_slice(&content.cached[from..to]);
                }
                Ok(())
            }
            Fate::Fails(_) | Fate::Half => {
                content.failed = true;
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        {
            let content = &mut locked(&self.disk.0).files[self.file];
            content.cached.truncate(length as usize);
            content.durable.truncate(length as usize);
            content.dirty.retain(|(_, to)| *to <= length as usize);
        }
        self.sync()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(locked(&self.disk.0).files[self.file].cached.len() as u64)
    }
}
