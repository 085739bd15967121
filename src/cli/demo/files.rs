//! The scratch folder of the file tools. A path must be relative, without `..`, and must not lead through a symbolic link,
//! so nothing outside the folder is reached. Another process that swaps in a link between check and use is not considered.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// The one folder that the file tools can reach.
pub(super) struct Scratch {
    root: PathBuf,
}

const MAX_FILE_BYTES: usize = 256 * 1024;
const MAX_ENTRIES: usize = 1_000;
const MAX_DEPTH: usize = 8;

const SEEDS: [(&str, &str); 3] = [
    (
        "welcome.txt",
        "Welcome!\n\nYou are reading this through Neural Guardian: the call that fetched it was authenticated, checked\n\
         against your grant, judged by the policies, counted, and written to the audit journal before it was sent.\n",
    ),
    (
        "notes/todo.txt",
        "[x] put a guardian before the server\n[ ] read the audit trail: guardian audit query\n[ ] write a policy of your own\n",
    ),
    (
        "notes/recipe.txt",
        "Pancakes\n\n2 eggs, 250 ml of milk, 125 g of flour, a pinch of salt.\nWhisk, rest for 20 minutes, fry in butter.\n",
    ),
];

impl Scratch {
    /// Creates the folder and, if it is empty, its first files.
    pub(super) fn prepare(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let scratch = Self {
            root: root.canonicalize()?,
        };
        if fs::read_dir(&scratch.root)?.next().is_none() {
            for (name, text) in SEEDS {
                let path = scratch.root.join(name);
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                fs::write(path, text)?;
            }
        }
        Ok(scratch)
    }

    pub(super) fn list(&self, path: &str) -> Result<String, String> {
        let folder = self.find(path)?;
        let mut lines = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| io_message(path, &error))? {
            let entry = entry.map_err(|error| io_message(path, &error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let about = entry.metadata().map_err(|error| io_message(path, &error))?;
            match about.file_type() {
                kind if kind.is_dir() => lines.push(format!("{name}/")),
                kind if kind.is_file() => lines.push(format!("{name}  {} bytes", about.len())),
                _ => {}
            }
        }
        lines.sort();
        Ok(if lines.is_empty() {
            "(empty)".to_owned()
        } else {
            lines.join("\n")
        })
    }

    pub(super) fn read(&self, path: &str) -> Result<String, String> {
        let file = self.find_file(path)?;
        let mut bytes = Vec::new();
        fs::File::open(file)
            .and_then(|file| file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| io_message(path, &error))?;
        if bytes.len() > MAX_FILE_BYTES {
            return Err(format!("`{path}` is larger than {MAX_FILE_BYTES} bytes"));
        }
        String::from_utf8(bytes).map_err(|_| format!("`{path}` is not text"))
    }

    /// Writes a file and its folders; an old file is kept as `<path>~`.
    pub(super) fn write(&self, path: &str, content: &str) -> Result<String, String> {
        if content.len() > MAX_FILE_BYTES {
            return Err(format!("the content is larger than {MAX_FILE_BYTES} bytes"));
        }
        let file = self.find(path)?;
        match fs::symlink_metadata(&file) {
            Ok(about) if about.is_file() => {
                let mut kept = file.clone().into_os_string();
                kept.push("~");
                fs::rename(&file, kept).map_err(|error| io_message(path, &error))?;
            }
            Ok(_) => return Err(format!("`{path}` is not a file")),
            Err(error) if error.kind() == ErrorKind::NotFound => self.make_room()?,
            Err(error) => return Err(io_message(path, &error)),
        }
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(|error| io_message(path, &error))?;
        }
        fs::write(&file, content).map_err(|error| io_message(path, &error))?;
        Ok(format!("Wrote {} bytes to `{path}`.", content.len()))
    }

    pub(super) fn delete(&self, path: &str) -> Result<String, String> {
        let file = self.find_file(path)?;
        fs::remove_file(file).map_err(|error| io_message(path, &error))?;
        Ok(format!("Deleted `{path}`."))
    }

    fn find_file(&self, path: &str) -> Result<PathBuf, String> {
        let found = self.find(path)?;
        match fs::symlink_metadata(&found) {
            Ok(about) if about.is_file() => Ok(found),
            Ok(_) => Err(format!("`{path}` is not a file")),
            Err(error) => Err(io_message(path, &error)),
        }
    }

    /// Resolves a path inside the folder; the file need not exist.
    fn find(&self, path: &str) -> Result<PathBuf, String> {
        let mut found = self.root.clone();
        let outside = || format!("`{path}` is not a path inside the scratch folder");
        if path.is_empty() || path.len() > 200 || path.contains(['\0', '\\']) || Path::new(path).components().count() > MAX_DEPTH
        {
            return Err(outside());
        }
        for component in Path::new(path).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => found.push(name),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(outside()),
            }
            // each component is checked before the next is appended, so that no link is followed
            match fs::symlink_metadata(&found) {
                Ok(about) if about.is_symlink() => return Err(outside()),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Refuses a new file if the folder is full.
    fn make_room(&self) -> Result<(), String> {
        match entries(&self.root, MAX_ENTRIES) {
            Ok(count) if count < MAX_ENTRIES => Ok(()),
            Ok(_) => Err(format!("the scratch folder holds {MAX_ENTRIES} files already")),
            Err(error) => Err(io_message(".", &error)),
        }
    }
}

/// Counts the files and folders below `folder`; the count stops once it reaches `most`.
fn entries(folder: &Path, most: usize) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += 1;
        if entry.file_type()?.is_dir() {
            count += entries(&entry.path(), most.saturating_sub(count))?;
        }
        if count >= most {
            break;
        }
    }
    Ok(count)
}

/// A sentence for an I/O error, without the real path on this machine.
fn io_message(path: &str, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("there is no `{path}`"),
        ErrorKind::NotADirectory => format!("`{path}` is not a folder"),
        _ => format!("cannot use `{path}`: {}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scratch folder for one test, beside a file that must stay untouched.
    fn scratch(name: &str) -> (Scratch, PathBuf) {
        let around = std::env::temp_dir().join(format!("guardian-demo-{}-{name}", std::process::id()));
        let _old = fs::remove_dir_all(&around);
        fs::create_dir_all(&around).unwrap();
        fs::write(around.join("secret.txt"), "outside").unwrap();
        (Scratch::prepare(&around.join("scratch")).unwrap(), around)
    }

    #[test]
    fn a_file_lives_its_life() {
        let (scratch, around) = scratch("life");
        assert_eq!(scratch.list(".").unwrap().lines().next(), Some("notes/"));
        assert!(scratch.read("welcome.txt").unwrap().starts_with("Welcome!"));
        scratch.write("a/b/c.txt", "one").unwrap();
        scratch.write("a/b/c.txt", "two").unwrap();
        assert_eq!(scratch.list("a/b").unwrap(), "c.txt  3 bytes\nc.txt~  3 bytes");
        assert_eq!(scratch.read("a/b/c.txt~").unwrap(), "one");
        scratch.delete("a/b/c.txt").unwrap();
        assert_eq!(scratch.read("a/b/c.txt").unwrap_err(), "there is no `a/b/c.txt`");
        assert_eq!(scratch.delete("a").unwrap_err(), "`a` is not a file");
        assert_eq!(scratch.list("welcome.txt").unwrap_err(), "`welcome.txt` is not a folder");
        fs::remove_dir_all(around).unwrap();
    }

    #[test]
    fn a_second_start_does_not_seed_over_what_is_there() {
        let (first, around) = scratch("again");
        first.delete("welcome.txt").unwrap();
        let second = Scratch::prepare(&around.join("scratch")).unwrap();
        assert!(second.read("welcome.txt").is_err());
        fs::remove_dir_all(around).unwrap();
    }

    #[test]
    fn no_path_leads_outside() {
        let (scratch, around) = scratch("outside");
        let absolute = around.join("secret.txt");
        let long = "a/".repeat(20);
        for path in [
            "../secret.txt",
            "notes/../../secret.txt",
            "notes/..",
            absolute.to_str().unwrap(),
            "..\\secret.txt",
            "",
            "welcome.txt\0",
            &long,
        ] {
            for said in [
                scratch.read(path),
                scratch.write(path, "x"),
                scratch.delete(path),
                scratch.list(path),
            ] {
                assert!(said.unwrap_err().contains("is not a path inside"), "{path:?}");
            }
        }
        assert_eq!(fs::read_to_string(absolute).unwrap(), "outside");
        fs::remove_dir_all(around).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn no_link_is_followed() {
        let (scratch, around) = scratch("links");
        std::os::unix::fs::symlink(&around, around.join("scratch/up")).unwrap();
        std::os::unix::fs::symlink(around.join("secret.txt"), around.join("scratch/note")).unwrap();
        std::os::unix::fs::symlink(around.join("new.txt"), around.join("scratch/dangling")).unwrap();
        for path in ["up", "up/secret.txt", "note", "dangling"] {
            for said in [
                scratch.read(path),
                scratch.write(path, "x"),
                scratch.delete(path),
                scratch.list(path),
            ] {
                assert!(said.unwrap_err().contains("is not a path inside"), "{path}");
            }
        }
        assert!(!around.join("new.txt").exists());
        assert_eq!(fs::read_to_string(around.join("secret.txt")).unwrap(), "outside");
        let listed = scratch.list(".").unwrap();
        assert_eq!(listed.lines().count(), 2, "links are not shown: {listed}");
        fs::remove_dir_all(around).unwrap();
    }
}
