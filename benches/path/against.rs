//! Another commit's `guardian`, built like this one's: to be run beside it under the same load.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where this commit's binary lies: `target/release/guardian`, or `target/dist/guardian`.
pub const OURS: &str = env!("CARGO_BIN_EXE_guardian");

/// The binary of `revision`. One that was built before is used again.
pub fn build(revision: &str) -> PathBuf {
    let profile_folder = Path::new(OURS).parent().expect("a binary is in a folder");
    let profile = profile_folder.file_name().and_then(|name| name.to_str());
    let profile = match profile.expect("cargo names its folders in ASCII") {
        "debug" => "dev",
        profile => profile,
    };
    let against = profile_folder
        .parent()
        .expect("a profile's folder is in the target folder")
        .join("against");
    let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")]);
    let built = against.join(format!("{commit}-{profile}"));
    if built.exists() {
        return built;
    }
    std::fs::create_dir_all(&against).expect("the target folder can be written");
    let tree = against.join("tree");
    let tree_text = tree.to_str().expect("a path in UTF-8");
    // One that a stopped run left behind; `--force` since git still knows it.
    _ = std::fs::remove_dir_all(&tree);
    git(&["worktree", "add", "--force", "--quiet", "--detach", tree_text, &commit]);
    // All commits share one folder, so that their dependencies are compiled once. A bench is built too because it is with the
    // features of its dependencies that cargo builds this commit's binary for a bench.
    let target = against.join("target");
    let status = Command::new("cargo")
        .args([
            "build",
            "--locked",
            "--bin",
            "guardian",
            "--bench",
            "decide",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(&tree)
        .stdout(Stdio::inherit())
        .status();
    assert!(status.expect("cargo runs").success(), "`{revision}` cannot be built");
    let folder = profile_folder.file_name().expect("a profile's folder has a name");
    std::fs::copy(target.join(folder).join("guardian"), &built).expect("cargo made the binary");
    git(&["worktree", "remove", "--force", tree_text]);
    built
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("git is there");
    assert!(output.status.success(), "git {} failed", arguments.join(" "));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}
