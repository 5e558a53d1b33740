//! Which crate may lean on which (ARCHITECTURE.md), held against what the manifests and the sources say.

use anyhow::Result;

use super::Findings;
use super::source::Source;
use crate::tree::{self, Metadata, Package};

/// A package and all of ours that it may lean on.
const ARROWS: [(&str, &[&str]); 8] = [
    ("tpt", &[]),
    ("wire", &[]),
    ("driver", &[]),
    ("store", &["tpt", "driver"]),
    ("portcullis", &["wire"]),
    ("adapter", &["tpt", "wire", "driver", "store", "portcullis"]),
    ("portcullis-cli", &["adapter", "portcullis", "driver", "bindings", "fabric"]),
    ("fabric", &["tpt", "driver", "portcullis"]),
];

/// What every package under `bindings/` may lean on.
const BINDINGS: &[&str] = &["portcullis"];

/// They may lean on anything, and nothing of the others may lean on them.
const FREE: [&str; 5] = ["qemu", "benches", "tests", "fuzz", "xtask"];

/// Of a crate that is seen only in part: who, whom, and the modules that may be named outside of tests.
const PARTS: [(&str, &str, &[&str]); 3] = [
    ("store", "driver", &["block", "disk"]),
    ("fabric", "driver", &["block", "disk"]),
    // `bench --raw` polls a device queue with nothing above it.
    ("portcullis-cli", "driver", &["block", "dma", "hal"]),
];

/// Every member is known, and leans on nothing that its row does not name.
pub(super) fn check(metadata: &Metadata) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut arrows = 0;
    for package in &metadata.packages {
        let Some(allowed) = allowed(package) else {
            findings.errors.push(format!("the package `{}` has no place in the arrows", package.name));
            continue;
        };
        for dependency in ours(metadata, package) {
            arrows += 1;
            let free = FREE.contains(&package.name.as_str());
            let binding = allowed.contains(&"bindings") && is_binding(metadata, dependency);
            if !free && !binding && !allowed.contains(&dependency) {
                findings
                    .errors
                    .push(format!("`{}` leans on `{dependency}`, which no arrow allows", package.name));
            }
        }
    }
    for (who, whom, modules) in PARTS {
        if let Some(package) = metadata.packages.iter().find(|package| package.name == who) {
            findings.errors.extend(parts(package, whom, modules)?);
        }
    }
    findings.summary = format!("{} packages, {arrows} arrows between them", metadata.packages.len());
    Ok(findings)
}

fn allowed(package: &Package) -> Option<&'static [&'static str]> {
    if FREE.contains(&package.name.as_str()) {
        return Some(&[]);
    }
    if package.folder().starts_with("bindings") {
        return Some(BINDINGS);
    }
    ARROWS.iter().find(|(name, _)| *name == package.name).map(|(_, allowed)| *allowed)
}

fn is_binding(metadata: &Metadata, name: &str) -> bool {
    metadata.packages.iter().any(|package| package.name == name && package.folder().starts_with("bindings"))
}

/// Dependencies on members, for building and running; those for tests are free.
fn ours<'a>(metadata: &'a Metadata, package: &'a Package) -> impl Iterator<Item = &'a str> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
        .filter(|dependency| {
            dependency.path.is_some() || metadata.packages.iter().any(|member| member.name == dependency.name)
        })
        .map(|dependency| dependency.name.as_str())
}

/// Paths `whom::module` in the sources of `package` that name another module than the allowed ones.
fn parts(package: &Package, whom: &str, modules: &[&str]) -> Result<Vec<String>> {
    let mut errors = Vec::new();
    for file in tree::files()? {
        let inside =
            file.starts_with(package.folder().join("src")) && file.extension().is_some_and(|e| e == "rs");
        if !inside {
            continue;
        }
        let source = Source::new(&tree::read(&file)?);
        for (line, text) in source.code_lines() {
            for module in named(text, whom) {
                if !modules.contains(&module.as_str()) {
                    let place = format!("{}:{line}", file.display());
                    errors.push(format!(
                        "{place}: `{}` sees only {modules:?} of `{whom}`, not `{module}`",
                        package.name
                    ));
                }
            }
        }
    }
    Ok(errors)
}

/// The names after each `whom::` of a line; of a group, its first names.
fn named(line: &str, whom: &str) -> Vec<String> {
    let path = format!("{whom}::");
    let mut names = Vec::new();
    for (at, _) in line.match_indices(&path) {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &line[at + path.len()..];
        let group = rest.strip_prefix('{').map(|group| group.split('}').next().unwrap_or(group));
        for part in group.unwrap_or(rest).split(',').take(if group.is_some() { usize::MAX } else { 1 }) {
            let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_after_a_path() {
        assert_eq!(named("use driver::block::Geometry;", "driver"), ["block"]);
        assert_eq!(named("use driver::{block, nvme};", "driver"), ["block", "nvme"]);
        assert_eq!(named("my_driver::nvme::x(driver::emu::y())", "driver"), ["emu"]);
    }

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let one = |&(name, kind): &(&str, Option<&str>)| tree::Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            path: Some(name.into()),
        };
        Package {
            name: name.to_owned(),
            manifest_path: tree::root().join(name).join("Cargo.toml"),
            dependencies: dependencies.iter().map(one).collect(),
            targets: Vec::new(),
        }
    }

    #[test]
    fn an_arrow_that_nobody_drew_is_an_error() {
        let packages = vec![package("tpt", &[("wire", None)]), package("wire", &[("tpt", Some("dev"))])];
        let findings = check(&Metadata { packages }).unwrap();
        assert_eq!(findings.errors, ["`tpt` leans on `wire`, which no arrow allows"]);
    }

    #[test]
    fn a_stranger_is_an_error_and_nobody_leans_on_the_free() {
        let packages = vec![package("stranger", &[]), package("adapter", &[("qemu", Some("build"))])];
        let findings = check(&Metadata { packages }).unwrap();
        assert_eq!(findings.errors.len(), 2, "{:?}", findings.errors);
    }
}
