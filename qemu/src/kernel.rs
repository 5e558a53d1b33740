//! The guest's kernel: Debian's package, unpacked, its `vmlinux` taken out of the bzImage.
//!
//! QEMU starts an uncompressed `vmlinux` by PVH directly, which saves the guest two seconds of decompression.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::module::Modules;

/// The end of the name of a directory that is not complete yet.
const PARTIAL: &str = "partial";

/// The environment variable that names the Debian package of the kernel to use, instead of the newest one.
const CHOICE: &str = "PORTCULLIS_GUEST_KERNEL";

/// The package that [`CHOICE`] names.
pub(crate) fn chosen() -> Option<String> {
    std::env::var(CHOICE).ok().filter(|package| package.starts_with("linux-image-") && !package.contains('/'))
}

/// An unpacked kernel, kept under `target/qemu`.
#[derive(Clone, Debug)]
pub struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// The kernel unpacked before: the one that `PORTCULLIS_GUEST_KERNEL` names, or else the newest.
    pub fn cached() -> Option<Self> {
        if let Some(package) = chosen() {
            let directory = crate::cache().join(package);
            return directory.join("vmlinux").is_file().then_some(Self { directory });
        }
        let entries = fs::read_dir(crate::cache()).ok()?;
        let whole = |path: &PathBuf| {
            path.extension().is_none_or(|end| end != PARTIAL) && path.join("vmlinux").is_file()
        };
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(whole).collect();
        found.sort_by_key(|path| version_key(&path.to_string_lossy()));
        found.pop().map(|directory| Self { directory })
    }

    /// Downloads and unpacks the Debian package `package`, as any user.
    pub(crate) fn download(package: &str) -> Result<Self> {
        let cache = crate::cache();
        fs::create_dir_all(&cache)?;
        let partial = cache.join(format!("{package}.{PARTIAL}"));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        run(Command::new("apt-get").args(["-q", "download", package]).current_dir(&partial))?;
        let archive = fs::read_dir(&partial)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| {
                format!("apt-get download {package} left no package in {}", partial.display())
            })?;
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(partial.join("root")))?;
        fs::remove_file(&archive)?;
        let image = fs::read_dir(partial.join("root/boot"))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
            .with_context(|| format!("{package} has no boot/vmlinuz-*"))?;
        let image = fs::read(image)?;
        fs::write(partial.join("vmlinux"), vmlinux(&image).with_context(|| format!("unpacking {package}"))?)?;
        let directory = cache.join(package);
        let _ = fs::remove_dir_all(&directory);
        fs::rename(&partial, &directory)?;
        Ok(Self { directory })
    }

    /// The uncompressed image.
    pub fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// Its modules.
    pub fn modules(&self) -> Result<Modules> {
        Modules::scan(&self.directory.join("root/lib/modules"))
    }

    /// What the package is called, with its version.
    pub fn name(&self) -> String {
        self.directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The numbers in a package's name, by which versions sort.
pub(crate) fn version_key(package: &str) -> Vec<u64> {
    package.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("running {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// The ELF image in a bzImage (Linux x86 boot protocol 2.08 or later: `payload_offset` and `payload_length`).
fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let (tool, payload) = payload(image)?;
    let elf = pipe(tool, payload)?;
    ensure!(elf.starts_with(b"\x7fELF"), "the kernel's payload is not an ELF file");
    Ok(elf)
}

/// The compressed payload of a bzImage and the tool that unpacks it.
fn payload(image: &[u8]) -> Result<(&'static str, &[u8])> {
    let u32_at = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
    let setup_sectors = match image.get(0x1f1) {
        Some(0) | None => 4,
        Some(&sectors) => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
    let payload = start
        .checked_add(u32_at(0x24c)?)
        .and_then(|end| image.get(start..end))
        .context("the kernel's payload lies outside its image")?;
    let tool = match payload {
        [0x1f, 0x8b, ..] => return Ok(("gzip", payload)),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        _ => bail!("the kernel is compressed in a way not known here"),
    };
    // All but gzip are followed by four bytes with the size.
    let stream = payload.len().checked_sub(4).and_then(|end| payload.get(..end)).unwrap_or_default();
    Ok((tool, stream))
}

fn pipe(tool: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {tool}: is it installed?"))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output();
        let _ = writer.join(); // a tool that stopped reading says why by its status
        output
    })?;
    ensure!(output.status.success(), "{tool} -dc: {}", output.status);
    Ok(output.stdout)
}

/// Whether `path` is a program somewhere in `PATH`.
pub(crate) fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| is_file(&dir.join(program))))
}

fn is_file(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn payload_is_found_and_its_size_cut_off() {
        let zstd = image(b"\x28\xb5\x2f\xfdxyzSIZE");
        assert_eq!(payload(&zstd).unwrap(), ("zstd", b"\x28\xb5\x2f\xfdxyz".as_slice()));
        let gzip = image(b"\x1f\x8bxyzSIZE");
        assert_eq!(payload(&gzip).unwrap(), ("gzip", b"\x1f\x8bxyzSIZE".as_slice()));
    }

    #[test]
    fn damaged_images_are_refused() {
        let whole = image(b"\x28\xb5\x2f\xfdxyzSIZE");
        for end in 0..whole.len() {
            assert!(payload(&whole[..end]).is_err());
        }
        assert!(payload(&image(b"?????????")).is_err());
        let mut far = whole;
        far[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(payload(&far).is_err());
    }

    #[test]
    fn newer_versions_sort_last() {
        let mut names = [
            "linux-image-6.12.9+deb12-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.12.117+deb12-amd64",
        ];
        names.sort_by_key(|name| version_key(name));
        assert_eq!(names[2], "linux-image-6.12.117+deb12-amd64");
        assert_eq!(names[0], "linux-image-6.1.0-56-amd64");
    }
}
