//! The kernel's modules and what each needs, read from the modules themselves.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    files: HashMap<String, PathBuf>,
}

/// A module to put into an initramfs.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// The object file, uncompressed.
    pub(crate) object: Vec<u8>,
}

impl Modules {
    /// Finds all modules below `directory`.
    pub fn scan(directory: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        let mut todo = vec![directory.to_path_buf()];
        while let Some(directory) = todo.pop() {
            for entry in
                fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?
            {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    todo.push(entry.path());
                } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files })
    }

    /// Whether `name` is a module of this kernel; what is not may be built in.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(&name.replace('-', "_"))
    }

    /// `wanted` and all that they need, what is needed first. A name that is not there may be built into the kernel
    /// when another module wants it, but is an error when the caller does.
    pub(crate) fn resolve(&self, wanted: &[String]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in wanted {
            let name = name.replace('-', "_");
            if !self.files.contains_key(&name) {
                bail!("the kernel package has no module {name}");
            }
            self.visit(&name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, seen: &mut HashSet<String>, order: &mut Vec<Module>) -> Result<()> {
        let Some(file) = self.files.get(name) else {
            return Ok(());
        };
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let object = uncompressed(file)?;
        for needed in depends(&object) {
            self.visit(&needed, seen, order)?;
        }
        order.push(Module { name: name.to_owned(), object });
        Ok(())
    }
}

/// `vfio-pci.ko.xz` is the module `vfio_pci`.
fn module_name(file: &str) -> Option<String> {
    let (stem, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

/// The names in the object's modinfo field `depends`, a NUL-terminated `depends=a,b`.
fn depends(object: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = object.windows(FIELD.len()).position(|window| window == FIELD) else {
        return vec![];
    };
    let value = object.get(at + FIELD.len()..).unwrap_or_default();
    let value = value.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn uncompressed(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(|| format!("reading {}", file.display())),
    };
    let output = Command::new(tool)
        .arg("-dc")
        .arg(file)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {tool}: is it installed?"))?;
    if !output.status.success() {
        bail!("{tool} -dc {}: {}", file.display(), output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_file_names() {
        assert_eq!(module_name("vfio-pci.ko.xz").as_deref(), Some("vfio_pci"));
        assert_eq!(module_name("nvme.ko").as_deref(), Some("nvme"));
        assert_eq!(module_name("modules.builtin"), None);
        assert_eq!(module_name("x.koala"), None);
    }

    #[test]
    fn needed_modules_come_first_and_once() {
        let directory = tempfile::tempdir().unwrap();
        for (name, needs) in [("a", "b,c-d"), ("b", "c_d"), ("c-d", "built_in"), ("e", "")] {
            let object = format!("ELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(directory.path().join(format!("{name}.ko")), object).unwrap();
        }
        let modules = Modules::scan(directory.path()).unwrap();
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            modules.resolve(&wanted).map(|list| list.into_iter().map(|m| m.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["a", "e", "b"]).unwrap(), ["c_d", "b", "a", "e"]);
        assert!(names(&["nothing"]).unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn an_object_without_the_field_needs_nothing() {
        assert!(
            depends(b"").is_empty()
                && depends(b"\0depends=").is_empty()
                && depends(b"depends=a\0").is_empty()
        );
    }
}
