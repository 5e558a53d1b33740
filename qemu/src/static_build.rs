//! Programs of this workspace as static binaries, which need nothing else in a guest.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What to build of a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Artifact<'a> {
    /// A binary.
    Bin(&'a str),
    /// An example.
    Example(&'a str),
    /// An integration test, as the program that runs it.
    Test(&'a str),
    /// The unit tests of the package's library, as the program that runs them.
    UnitTests,
    /// A benchmark, as the program that runs it.
    Bench(&'a str),
}

/// How to build it.
#[derive(Clone, Debug)]
pub struct StaticBuild<'a> {
    package: &'a str,
    artifact: Artifact<'a>,
    release: bool,
    features: Vec<&'a str>,
}

/// Builds `artifact` of `package` with debug assertions; see [`StaticBuild`].
///
/// # Errors
/// If cargo fails, or builds nothing that fits.
pub fn build_static(package: &str, artifact: Artifact<'_>) -> Result<PathBuf> {
    StaticBuild::new(package, artifact).build()
}

impl<'a> StaticBuild<'a> {
    /// Of this workspace's package `package`.
    pub fn new(package: &'a str, artifact: Artifact<'a>) -> Self {
        Self { package, artifact, release: false, features: vec![] }
    }

    /// Optimised, without debug assertions.
    #[must_use]
    pub fn release(mut self) -> Self {
        self.release = true;
        self
    }

    /// With a feature of the package.
    #[must_use]
    pub fn feature(mut self, feature: &'a str) -> Self {
        self.features.push(feature);
        self
    }

    /// Builds it in a target directory of its own (`target/guest`): other flags, other artifacts.
    ///
    /// # Errors
    /// If cargo fails, or builds nothing that fits.
    pub fn build(&self) -> Result<PathBuf> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        match self.artifact {
            Artifact::Bin(name) => command.args(["build", "--bin", name]),
            Artifact::Example(name) => command.args(["build", "--example", name]),
            Artifact::Test(name) => command.args(["test", "--no-run", "--test", name]),
            Artifact::UnitTests => command.args(["test", "--no-run", "--lib"]),
            Artifact::Bench(name) => command.args(["bench", "--no-run", "--bench", name]),
        };
        command.args(["--quiet", "--package", self.package, "--target", TARGET]);
        command.args(["--message-format", "json-render-diagnostics"]);
        if self.release && !matches!(self.artifact, Artifact::Bench(_)) {
            command.arg("--release");
        }
        if !self.features.is_empty() {
            command.args(["--features", &self.features.join(",")]);
        }
        command
            .arg("--target-dir")
            .arg(crate::workspace().join("target").join("guest"))
            .current_dir(crate::workspace())
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            // An initramfs is loaded whole: no debug information, but symbols for backtraces.
            .envs(["DEV", "RELEASE", "BENCH", "TEST"].map(|p| (format!("CARGO_PROFILE_{p}_DEBUG"), "0")))
            .envs(
                ["DEV", "RELEASE", "BENCH", "TEST"]
                    .map(|p| (format!("CARGO_PROFILE_{p}_STRIP"), "debuginfo")),
            )
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        let output = command.output().context("running cargo")?;
        ensure!(output.status.success(), "{command:?}: {}", output.status);
        executable(&String::from_utf8_lossy(&output.stdout), self.artifact)
            .with_context(|| format!("{command:?} made no program for {:?}", self.artifact))
    }
}

/// The program among cargo's messages that `artifact` names.
fn executable(messages: &str, artifact: Artifact<'_>) -> Option<PathBuf> {
    let (kind, name) = match artifact {
        Artifact::Bin(name) => ("bin", Some(name)),
        Artifact::Example(name) => ("example", Some(name)),
        Artifact::Test(name) => ("test", Some(name)),
        Artifact::UnitTests => ("lib", None),
        Artifact::Bench(name) => ("bench", Some(name)),
    };
    messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(
        |message| {
            let target = message.get("target")?;
            let kinds = target.get("kind")?.as_array()?;
            let fits =
                kinds.iter().any(|value| value == kind) && name.is_none_or(|name| target["name"] == name);
            let path = message.get("executable")?.as_str()?;
            fits.then(|| PathBuf::from(path))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_found_among_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"x"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"y"},"executable":"/y"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"x"},"executable":"/x-test"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, Artifact::Test("x")), Some("/x-test".into()));
        assert_eq!(executable(messages, Artifact::Bin("y")), Some("/y".into()));
        assert_eq!(executable(messages, Artifact::Bin("x")), None);
        assert_eq!(executable(messages, Artifact::UnitTests), None);
    }
}
