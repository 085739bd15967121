//! Versioned keys of 32 bytes in a file, `version:base64` a line: peppers, and the keys of sessions. The highest version makes
//! new things and every version verifies, so that keys rotate by adding a line and removing the old one later.
//!
//! A room of its own on floor 2, because `identity` and `sessions` stand side by side on floor 3 and both need it, while
//! `config` below reads what people write and makes nothing: this room draws random bytes and creates files. What is read or
//! drawn is wiped from memory once the keys are derived. The texts of errors belong to the rooms that use it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::str::FromStr;
use zeroize::Zeroizing;

pub const KEY_BYTES: usize = 32;

/// Keys by version, never empty. `V` is the integer that a version is stored as elsewhere, `K` what is derived from a key.
pub struct KeyRing<V, K>(BTreeMap<V, K>);

/// Why the keys cannot be used. Line numbers start at 1.
#[derive(Debug)]
pub enum KeyRingError {
    Read(std::io::Error),
    Write(std::io::Error),
    /// Not `version:base64` of 32 bytes.
    Line(usize),
    /// The version stands on an earlier line, too.
    Twice {
        line: usize,
        version: String,
    },
    Empty,
    NoRandomness,
}

impl<V: Copy + Ord + From<u8> + FromStr + fmt::Display, K> KeyRing<V, K> {
    /// Reads the file, or creates it with one random key. If several processes start at once, one of them creates it and the
    /// others read that one.
    pub fn load_or_create(file: &Path, derive: impl Fn(&[u8; KEY_BYTES]) -> K) -> Result<Self, KeyRingError> {
        let text = match read(file) {
            Err(KeyRingError::Read(error)) if error.kind() == ErrorKind::NotFound => {
                create(file)?;
                read(file)?
            }
            text => text?,
        };
        Self::parse(&text, derive)
    }

    /// One random key that only this process has.
    pub fn random(derive: impl Fn(&[u8; KEY_BYTES]) -> K) -> Result<Self, KeyRingError> {
        Ok(Self(BTreeMap::from([(V::from(1), derive(&*random_key()?))])))
    }

    /// Empty lines and lines that start with `#` are ignored.
    pub fn parse(text: &str, derive: impl Fn(&[u8; KEY_BYTES]) -> K) -> Result<Self, KeyRingError> {
        let mut keys = BTreeMap::new();
        for (line, written) in (1..).zip(text.lines()) {
            let written = written.trim();
            if written.is_empty() || written.starts_with('#') {
                continue;
            }
            let (version, key) = key_line::<V>(written).ok_or(KeyRingError::Line(line))?;
            if keys.insert(version, derive(&key)).is_some() {
                let version = version.to_string();
                return Err(KeyRingError::Twice { line, version });
            }
        }
        if keys.is_empty() {
            Err(KeyRingError::Empty)
        } else {
            Ok(Self(keys))
        }
    }

    /// The key that makes new things, with its version.
    pub fn newest(&self) -> (V, &K) {
        let (version, key) = self.0.last_key_value().expect("a ring is never empty");
        (*version, key)
    }

    pub fn get(&self, version: V) -> Option<&K> {
        self.0.get(&version)
    }
}

/// Only the versions: keys are secret.
impl<V: fmt::Debug, K> fmt::Debug for KeyRing<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

fn key_line<V: FromStr>(written: &str) -> Option<(V, Zeroizing<[u8; KEY_BYTES]>)> {
    let (version, key) = written.split_once(':')?;
    let decoded = Zeroizing::new(STANDARD.decode(key.trim()).ok()?);
    let key = Zeroizing::new(<[u8; KEY_BYTES]>::try_from(decoded.as_slice()).ok()?);
    Some((version.trim().parse().ok()?, key))
}

fn read(file: &Path) -> Result<Zeroizing<String>, KeyRingError> {
    std::fs::read_to_string(file).map(Zeroizing::new).map_err(KeyRingError::Read)
}

fn random_key() -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyRingError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    fill(&mut *key)?;
    Ok(key)
}

fn fill(bytes: &mut [u8]) -> Result<(), KeyRingError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| KeyRingError::NoRandomness)
}

/// Writes a file beside it and hard-links that into place, which fails if the name exists: no reader sees a partial file, of
/// two processes the second reads the file of the first, and no key is ever overwritten.
fn create(file: &Path) -> Result<(), KeyRingError> {
    let text = Zeroizing::new(format!("1:{}\n", &*Zeroizing::new(STANDARD.encode(*random_key()?))));
    let mut suffix = [0; 8];
    fill(&mut suffix)?;
    let beside = file.with_extension(format!("new-{:016x}", u64::from_be_bytes(suffix)));
    let written = write_private(&beside, &text).and_then(|()| std::fs::hard_link(&beside, file));
    let _ = std::fs::remove_file(&beside);
    match written {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(KeyRingError::Write(error)),
        _ => Ok(()),
    }
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KeyRing<i32, u8>, KeyRingError> {
        KeyRing::parse(text, |key| key[0])
    }

    fn line(version: &str, byte: u8) -> String {
        format!("{version}:{}\n", STANDARD.encode([byte; KEY_BYTES]))
    }

    #[test]
    fn the_highest_version_is_the_newest_wherever_it_stands() {
        let ring = parse(&format!("# peppers\n\n{}{}{}", line("10", 7), line(" 9 ", 8), line("-1", 9))).unwrap();
        assert_eq!(ring.newest(), (10, &7));
        assert_eq!((ring.get(9), ring.get(-1), ring.get(1)), (Some(&8), Some(&9), None));
        assert_eq!(format!("{ring:?}"), "[-1, 9, 10]", "no key is printed");
    }

    #[test]
    fn a_line_that_is_not_exact_is_named() {
        let good = line("1", 1);
        for bad in ["1", "1:", "x:AAAA", "1:AAAA", &line("2147483648", 1), &line("", 1)] {
            let refused = parse(&format!("# first\n{}{bad}", line("3", 1))).unwrap_err();
            assert!(matches!(refused, KeyRingError::Line(3)), "{bad}: {refused:?}");
        }
        let twice = parse(&format!("{good}\n{good}")).unwrap_err();
        assert!(matches!(twice, KeyRingError::Twice { line: 3, version } if version == "1"));
        assert!(matches!(parse("# none\n"), Err(KeyRingError::Empty)));
    }

    #[test]
    fn a_name_that_leads_nowhere_is_an_error_and_is_not_replaced() {
        let folder = std::env::temp_dir().join(format!("guardian-key-ring-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("keys");
        std::os::unix::fs::symlink(folder.join("nowhere"), &file).unwrap();
        let refused = KeyRing::<u32, u8>::load_or_create(&file, |key| key[0]).unwrap_err();
        assert!(matches!(refused, KeyRingError::Read(error) if error.kind() == ErrorKind::NotFound));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left behind");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
