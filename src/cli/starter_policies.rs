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

#[cfg(test)]
mod tests {
    use super::*;

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
