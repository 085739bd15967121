//! The starter policies, compiled into the binary for machines without the repository.

/// File names and texts of `policies/*.cedar`.
pub const POLICIES: &[(&str, &str)] = &[
    ("10-roles.cedar", include_str!("../../policies/10-roles.cedar")),
    ("20-destructive.cedar", include_str!("../../policies/20-destructive.cedar")),
    ("30-paths.cedar", include_str!("../../policies/30-paths.cedar")),
    ("40-sql.cedar", include_str!("../../policies/40-sql.cedar")),
    ("50-resources.cedar", include_str!("../../policies/50-resources.cedar")),
];

/// Examples that are not in force; policies are read from the folder above theirs.
pub const EXAMPLES: &[(&str, &str)] = &[(
    "examples/working-hours.cedar",
    include_str!("../../policies/examples/working-hours.cedar"),
)];

/// The policies about files, and the folder that they name until a server's own is written there.
pub const PATHS: &str = "30-paths.cedar";
const ROOT: &str = "/srv/mcp";

/// `text` with the folder of a server in place of the one that the starter policies name. The error says what keeps it from
/// being a policy's.
pub fn with_root(text: &str, root: &str) -> Result<String, String> {
    if let Some(char) = root.chars().find(|char| "%:~\\$\"*".contains(*char) || char.is_control()) {
        return Err(format!("it holds {char:?}, which the policies about paths refuse"));
    }
    if root.split('/').any(|part| part.starts_with('.')) {
        return Err("it lies in a hidden folder, which the policies about paths refuse".to_owned());
    }
    if !root.starts_with('/') || root.len() == 1 {
        return Err("it is not a folder of its own".to_owned());
    }
    let already = [format!("\"{root}\""), format!("\"{root}/*\"")];
    if text.contains(ROOT) {
        Ok(text.replace(ROOT, root))
    } else if already.iter().all(|literal| text.contains(literal)) {
        Ok(text.to_owned())
    } else {
        Err("the policies name another folder already".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_folder_is_written_where_the_policies_name_one() {
        let paths = POLICIES
            .iter()
            .find(|(name, _)| *name == PATHS)
            .expect("the policies about files")
            .1;
        let written = with_root(paths, "/home/ada/project").expect("an ordinary folder");
        assert!(written.contains(r#"like "/home/ada/project/*""#) && !written.contains(ROOT));
        assert_eq!(with_root(&written, "/home/ada/project").as_deref(), Ok(&*written));
        for (root, why) in [
            ("/home/ada/other", "another folder already"),
            ("/home/ada/.cache/x", "hidden"),
            ("/srv/a*", "'*'"),
            ("/srv/\"a", "'\"'"),
            ("/srv/$a", "'$'"),
            ("/", "folder of its own"),
            ("srv", "folder of its own"),
        ] {
            let refused = with_root(&written, root).expect_err(root);
            assert!(refused.contains(why), "{root}: {refused}");
        }
    }

    #[test]
    fn every_starter_policy_is_carried() {
        for (folder, carried) in [("", POLICIES), ("examples/", EXAMPLES)] {
            let dir = format!("{}/policies/{folder}", env!("CARGO_MANIFEST_DIR"));
            let files = std::fs::read_dir(dir).unwrap();
            let files = files.map(|entry| format!("{folder}{}", entry.unwrap().file_name().into_string().unwrap()));
            let mut files: Vec<_> = files.filter(|name| name.ends_with(".cedar")).collect();
            files.sort();
            assert_eq!(files, carried.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        }
    }
}
