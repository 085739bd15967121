//! What the policies are meant to be: a file beside them that names each with its digest and how many forbids it has. Where
//! there is one, a set that is other than that, by a file that is gone or cut short, is not used.
//!
//! It is written by `guardian policy pin` and reviewed like any other file; it is no secret and proves nobody's authorship.

use crate::decide::{PolicySource, forbids};
use crate::domain::Digest;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Its name, in the folder of the policies.
pub const NAME: &str = "manifest.txt";

/// One policy file as it is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    pub digest: Digest,
    /// `None`: it cannot be read as policies.
    pub forbids: Option<usize>,
}

/// The files of a set by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest(pub BTreeMap<String, Pinned>);

impl Manifest {
    /// That of a policy folder, if it has one.
    pub fn read(policies: &Path) -> Result<Option<Manifest>> {
        let path = policies.join(NAME);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map(Some).map_err(|line| {
                anyhow::anyhow!(
                    "the manifest `{}`, line {line}: not a digest, a count of forbids and a file",
                    path.display()
                )
            }),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the manifest `{}`", path.display())),
        }
    }

    /// As these files are.
    pub fn of(sources: &[PolicySource]) -> Manifest {
        let pinned = |source: &PolicySource| Pinned {
            digest: Digest::of(source.text.as_bytes()),
            forbids: forbids(source),
        };
        Manifest(sources.iter().map(|source| (name(source), pinned(source))).collect())
    }

    /// Puts it in the place of the one that was there, at once.
    pub fn write(&self, policies: &Path) -> Result<PathBuf> {
        let (path, new) = (policies.join(NAME), policies.join(format!(".{NAME}.new")));
        std::fs::write(&new, self.text())
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write the manifest `{}`", path.display()))?;
        Ok(path)
    }

    /// Whether the files are those that are meant, in one sentence for each that is not.
    pub fn check(&self, sources: &[PolicySource]) -> Result<()> {
        let found = Manifest::of(sources);
        let gone = self.0.iter().filter(|(name, _)| !found.0.contains_key(*name));
        let gone = gone.map(|(name, pinned)| format!("policy `{name}`, which is pinned with {}, is not there", counted(pinned)));
        let others = found.0.iter().filter_map(|(name, is)| match self.0.get(name) {
            None => Some(format!("policy `{name}` is not pinned")),
            Some(pinned) if pinned.digest != is.digest => {
                let (was, is) = (counted(pinned), counted(is));
                Some(format!("policy `{name}` is not as it was pinned: it had {was}, it has {is}"))
            }
            Some(_) => None,
        });
        let differences: Vec<String> = gone.chain(others).collect();
        if differences.is_empty() {
            Ok(())
        } else {
            bail!(
                "{}\n`guardian policy pin` approves the policies as they are",
                differences.join("\n")
            )
        }
    }

    /// `Err` has the number of the line that says nothing.
    fn parse(text: &str) -> Result<Manifest, usize> {
        let mut files = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, pinned) = entry(line).ok_or(index + 1)?;
            if files.insert(name, pinned).is_some() {
                return Err(index + 1);
            }
        }
        Ok(Manifest(files))
    }

    fn text(&self) -> String {
        let mut text = String::from(
            "# Written by `guardian policy pin`: while this file is here, these policies are used and no others.\n\
             # SHA-256, how many forbids, file\n",
        );
        for (name, Pinned { digest, forbids }) in &self.0 {
            text.push_str(&format!("{digest} {} {name}\n", forbids.unwrap_or(0)));
        }
        text
    }
}

fn entry(line: &str) -> Option<(String, Pinned)> {
    let mut words = line.splitn(3, ' ');
    let (digest, forbids, name) = (words.next()?, words.next()?, words.next()?);
    let pinned = Pinned {
        digest: Digest::parse_hex(digest)?,
        forbids: Some(forbids.parse().ok()?),
    };
    Some((name.to_owned(), pinned))
}

fn counted(pinned: &Pinned) -> String {
    match pinned.forbids {
        None => "nothing that can be read".to_owned(),
        Some(1) => "1 forbid".to_owned(),
        Some(forbids) => format!("{forbids} forbids"),
    }
}

fn name(source: &PolicySource) -> String {
    let path = Path::new(&source.file);
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBID: &str = "@id(\"no\") forbid (principal, action, resource);";

    fn source(name: &str, text: &str) -> PolicySource {
        PolicySource {
            file: format!("/etc/guardian/policies/{name}"),
            text: text.to_owned(),
        }
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        let manifest = Manifest::of(&[source("a.cedar", FORBID), source("b c.cedar", "")]);
        assert_eq!(Manifest::parse(&manifest.text()), Ok(manifest.clone()));
        assert_eq!(manifest.0["a.cedar"].forbids, Some(1));
        let line = format!("{} 1 a.cedar\n", Digest::of(b"a"));
        assert_eq!(
            Manifest::parse(&format!("# a\n\n{line}{line}")),
            Err(4),
            "a file is pinned once"
        );
        for wrong in ["a", "a 1 b", &line.replace(" 1 ", " x "), &line.replace(" a.cedar", "")] {
            assert_eq!(Manifest::parse(wrong), Err(1), "{wrong}");
        }
    }

    #[test]
    fn every_file_that_is_other_than_pinned_is_told_of() {
        let manifest = Manifest::of(&[source("a.cedar", FORBID), source("b.cedar", FORBID), source("c.cedar", "x")]);
        let held = |sources: &[PolicySource]| manifest.check(sources).map_err(|error| error.to_string());
        assert_eq!(
            held(&[source("c.cedar", "x"), source("b.cedar", FORBID), source("a.cedar", FORBID)]),
            Ok(())
        );
        assert_eq!(
            held(&[source("a.cedar", "// cut"), source("c.cedar", "y"), source("d.cedar", FORBID)]),
            Err("policy `b.cedar`, which is pinned with 1 forbid, is not there\n\
                 policy `a.cedar` is not as it was pinned: it had 1 forbid, it has 0 forbids\n\
                 policy `c.cedar` is not as it was pinned: it had nothing that can be read, it has nothing that can be read\n\
                 policy `d.cedar` is not pinned\n\
                 `guardian policy pin` approves the policies as they are"
                .to_owned())
        );
    }
}
