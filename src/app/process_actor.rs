//! Who runs this process, as the operating system and sudo say: what records of changes name.

use crate::domain::{Actor, SafeText};
use std::process::{Command, Stdio};

/// Characters of a name in a record.
const LONGEST_NAME: usize = 200;

/// The real user of this process, its host, and who became this user through sudo. A process cannot prove more: whoever holds
/// the database's login could write another name with another program.
pub fn process_actor() -> Actor {
    let uid = rustix::process::getuid().as_raw();
    let sudo_user = std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty());
    Actor {
        user: safe(&user_name(uid)),
        uid,
        host: safe(&host_name()),
        sudo_user: sudo_user.map(|user| safe(&user)),
    }
}

/// The user may be known to a directory service alone, which a program of the system asks; the number is true in any case.
fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&passwd, uid).or_else(asked_name).unwrap_or_else(|| uid.to_string())
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut found = fields.filter(|fields| fields.get(2) == Some(&uid.as_str()));
    found
        .next()
        .map(|fields| fields[0].to_owned())
        .filter(|name| !name.is_empty())
}

fn asked_name() -> Option<String> {
    let mut id = Command::new("/usr/bin/id");
    let told = id
        .args(["-r", "-u", "-n"])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let told = told.ok().filter(|told| told.status.success())?;
    let name = String::from_utf8(told.stdout).ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}

fn host_name() -> String {
    let read = |file: &str| std::fs::read_to_string(file).ok();
    let names = ["/proc/sys/kernel/hostname", "/etc/hostname"].into_iter().filter_map(read);
    let mut names = names.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    names.next().unwrap_or_else(|| "localhost".to_owned())
}

fn safe(name: &str) -> String {
    SafeText::uncut(name).to_string().chars().take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nalice:x:1000:1000::/home/alice:/bin/sh\n:x:7:7::/:\n";
        assert_eq!(name_in(passwd, 1000).as_deref(), Some("alice"));
        for unknown in [7, 100, 4_294_967_295] {
            assert_eq!(name_in(passwd, unknown), None);
        }
    }
}
