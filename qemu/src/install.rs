//! Getting QEMU and a kernel onto the host.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Lock;
use crate::kernel::{Kernel, chosen, in_path, run, version_key};

/// The program of the machine.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

const TOOLS: [(&str, &str); 3] = [(QEMU, "qemu-system-x86"), ("xz", "xz-utils"), ("zstd", "zstd")];

/// Makes sure that QEMU, the tools that unpack a kernel, and a kernel are there. As root on Debian it installs what is
/// missing; the kernel is only unpacked under `target/qemu`, which any user may do. `PORTCULLIS_GUEST_KERNEL` may name
/// the Debian package of another kernel than the newest.
///
/// # Errors
/// Says what to install where it cannot do so itself.
pub fn install() -> Result<Kernel> {
    let _turn = Lock::take("install.lock")?;
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| !in_path(program)).map(|&(_, package)| package).collect();
    if !missing.is_empty() {
        let command = format!("apt-get install --no-install-recommends {}", missing.join(" "));
        if !rustix::process::geteuid().is_root() || !in_path("apt-get") {
            bail!("the guest tests need packages that are not installed; as root: {command}");
        }
        apt_install(&missing).with_context(|| format!("installing what is missing; by hand: {command}"))?;
    }
    if let Some(kernel) = Kernel::cached() {
        return Ok(kernel);
    }
    let wanted = || anyhow::Ok(chosen().or(newest_kernel()?));
    let package = match wanted()? {
        Some(package) => package,
        None if rustix::process::geteuid().is_root() => {
            run(Command::new("apt-get").args(["-q", "update"]))?;
            wanted()?.context("apt knows no package linux-image-6.*-amd64")?
        }
        None => bail!("apt knows no package linux-image-6.*-amd64; as root: apt-get update"),
    };
    match Kernel::download(&package) {
        Err(_) if rustix::process::geteuid().is_root() => {
            // Package lists grow stale: the mirror may have dropped what they name.
            run(Command::new("apt-get").args(["-q", "update"]))?;
            let package = wanted()?.unwrap_or(package);
            Kernel::download(&package)
        }
        other => other,
    }
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "install", "--no-install-recommends"]).args(packages);
        run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    install().or_else(|_| {
        run(Command::new("apt-get").args(["-q", "update"]))?;
        install()
    })
}

/// The newest 6.12 kernel that apt knows, or else the newest 6.1 one.
fn newest_kernel() -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(["pkgnames", "linux-image-6."])
        .output()
        .context("running apt-cache: the guest's kernel is taken from a Debian package")?;
    Ok(choose(&String::from_utf8_lossy(&output.stdout)))
}

fn choose(names: &str) -> Option<String> {
    let newest = |prefix: &str, end: &str| {
        let plain = |name: &&str| {
            let middle = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(end));
            middle.is_some_and(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        };
        names.lines().filter(plain).max_by_key(|name| version_key(name)).map(str::to_owned)
    };
    newest("linux-image-6.12.", "+deb12-amd64").or_else(|| newest("linux-image-6.1.0-", "-amd64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_kernels_are_preferred_newest_first() {
        let names = "linux-image-6.1.0-56-amd64\nlinux-image-6.12.117+deb12-rt-amd64\nlinux-image-6.12-amd64\n\
                     linux-image-6.12.99+deb12-amd64\nlinux-image-6.12.113+deb12-amd64\nlinux-image-6.1.0-9-amd64\n";
        assert_eq!(choose(names).as_deref(), Some("linux-image-6.12.113+deb12-amd64"));
        let old = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\nlinux-image-6.1.0-57-cloud-amd64\n";
        assert_eq!(choose(old).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(choose(""), None);
    }
}
