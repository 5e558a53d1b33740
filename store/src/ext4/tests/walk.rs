//! Paths lead where the kernel of this machine says that they lead.

use std::fs;
use std::os::unix::fs::symlink;

use driver::disk::Dice;

use super::super::image::Image;
use super::super::{Ext4, Ext4Error, MAX_LINKS};
use super::{ROOT, read};

/// What a path came to.
#[derive(PartialEq, Eq, Debug)]
enum Outcome {
    /// The path without links and dots.
    Found(String),
    Missing,
    NotADirectory,
    TooManyLinks,
    TooLong,
}

/// The kernel's answer in a copy of the tree.
fn of_kernel(folder: &std::path::Path, path: &str) -> Outcome {
    // As text, for a path drops what does not matter to it, and a slash at the end matters.
    match fs::canonicalize(format!("{}/{path}", folder.display())) {
        Ok(found) => Outcome::Found(format!("/{}", found.strip_prefix(folder).unwrap().display())),
        Err(error) => match error.raw_os_error().unwrap() {
            2 => Outcome::Missing,
            20 => Outcome::NotADirectory,
            40 => Outcome::TooManyLinks,
            36 => Outcome::TooLong,
            _ => panic!("{path}: {error}"),
        },
    }
}

#[test]
fn paths_lead_where_the_kernel_says() {
    let folder = std::env::temp_dir().join(format!("portcullis-ext4-walk-{}", std::process::id()));
    fs::create_dir_all(folder.join("p/q/r/s/t")).unwrap();
    let folder = fs::canonicalize(folder).unwrap();
    let names =
        ["p", "q", "r", "s", "t", "file", "link", "slow", "slash", "chain", "loop", "up", "none", ".", ".."];
    for (depth, at) in ["p/q/r/s", "p/q/r/s/t"].into_iter().enumerate() {
        let at = folder.join(at);
        fs::write(at.join("file"), depth.to_string()).unwrap();
        fs::create_dir_all(at.join("p/q")).unwrap();
        fs::write(at.join("p/file"), "deeper").unwrap();
        symlink("p/q", at.join("link")).unwrap();
        symlink(format!("{}p", "p/q/../../".repeat(8)), at.join("slow")).unwrap();
        symlink("p/file/", at.join("slash")).unwrap();
        symlink("link/../file", at.join("chain")).unwrap();
        symlink("loop", at.join("loop")).unwrap();
        symlink("p/../link/..", at.join("up")).unwrap();
        symlink("nowhere", at.join("none")).unwrap();
    }
    let start = folder.join("p/q/r/s");
    for number in 0..45 {
        let target = if number == 0 { "file".to_owned() } else { format!("n{}", number - 1) };
        symlink(target, start.join(format!("n{number}"))).unwrap();
    }
    let image = Image::make(16 << 20, &["-b", "1024", "-d", folder.to_str().unwrap()]).unwrap();
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let mut paths: Vec<String> = (0..45).map(|number| format!("p/q/r/s/n{number}")).collect();
    paths.extend(
        ["p/", "p/q/r/s/file/", "p/q/r/s/link/", "p/q/r/s/file/.", "//p///q", "p/q/r/s/none/x"]
            .map(str::to_owned),
    );
    paths.push(format!("p/{}", "x".repeat(255)));
    paths.push(format!("p/{}", "x".repeat(256)));
    let mut dice = Dice(5);
    for _ in 0..4000 {
        let mut path = "p/q/r/s".to_owned();
        let mut left = 4;
        for _ in 0..dice.below(7) {
            let name = names[dice.index(names.len())];
            // No further up than where the tree begins.
            left -= i32::from(name == "..");
            if left >= 0 {
                path += "/";
                path += name;
            }
        }
        if dice.below(6) == 0 {
            path += "/";
        }
        paths.push(path);
    }
    let mut counts = [0; 5];
    for path in &paths {
        let ours = match ext4.stat(&mut disk, path.as_bytes(), &ROOT, true) {
            Ok(found) => {
                let Outcome::Found(canonical) = of_kernel(&folder, path) else {
                    panic!("{path}: {:?}, and we find inode {}", of_kernel(&folder, path), found.inode)
                };
                assert_eq!(
                    ext4.lookup(&mut disk, canonical.as_bytes(), &ROOT, false),
                    Ok(found.inode),
                    "{path}"
                );
                Outcome::Found(canonical)
            }
            Err(Ext4Error::NotFound { .. }) => Outcome::Missing,
            Err(Ext4Error::NotADirectory { .. }) => Outcome::NotADirectory,
            Err(Ext4Error::TooManyLinks { .. }) => Outcome::TooManyLinks,
            Err(Ext4Error::TooLong { .. }) => Outcome::TooLong,
            Err(error) => panic!("{path}: {error}"),
        };
        assert_eq!(ours, of_kernel(&folder, path), "{path}");
        counts[match ours {
            Outcome::Found(_) => 0,
            Outcome::Missing => 1,
            Outcome::NotADirectory => 2,
            Outcome::TooManyLinks => 3,
            Outcome::TooLong => 4,
        }] += 1;
    }
    fs::remove_dir_all(&folder).unwrap();
    assert!(counts[..4].iter().all(|count| *count > 4), "{counts:?}");
    assert!(ext4.lookup(&mut disk, format!("p/q/r/s/n{}", MAX_LINKS - 1).as_bytes(), &ROOT, true).is_ok());
    assert!(ext4.lookup(&mut disk, format!("p/q/r/s/n{MAX_LINKS}").as_bytes(), &ROOT, true).is_err());
}

#[test]
fn what_the_kernel_does_with_dots_and_ends_is_done_here() {
    let image = super::agree::with_tree(1024, &[]);
    let host = image.host_file("x", b"x").unwrap();
    let commands = ["symlink away /etc/passwd", "symlink up ../../../../short", "mkdir deep"];
    let mut commands: Vec<String> = commands.map(str::to_owned).to_vec();
    commands.push(format!("write {host} {}", "n".repeat(255)));
    image.change(&commands).unwrap();
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let mut lookup = |path: &str, follow| ext4.lookup(&mut disk, path.as_bytes(), &ROOT, follow);
    for path in ["/", "//", ".", "..", "a/..", "../../a/b/../..", "a/../.."] {
        assert_eq!(lookup(path, true), Ok(2), "{path}");
    }
    let short = lookup("short", true);
    assert_eq!(lookup("/up", true), short, "nothing is above the root");
    assert_ne!(lookup("/up", false), short);
    assert_eq!(lookup("a/b/c/../../../short", true), short);
    assert!(lookup(&"n".repeat(255), true).is_ok());
    assert!(matches!(lookup("", true), Err(Ext4Error::NotFound { .. })));
    assert!(matches!(lookup(&"n".repeat(256), true), Err(Ext4Error::TooLong { .. })));
    assert!(lookup(&"/".repeat(4095), true).is_ok());
    assert!(matches!(lookup(&"/".repeat(4096), true), Err(Ext4Error::TooLong { .. })));
    let away = lookup("away", true).unwrap_err().to_string();
    assert!(away.starts_with("/away is a symbolic link to /etc/passwd: "), "{away}");
    assert!(lookup("away", false).is_ok());
    assert!(matches!(lookup("away/", false), Err(Ext4Error::AbsoluteLink { .. })), "a slash follows");
    assert_eq!(read(&mut ext4, &mut disk, "a/\x1b[2J").unwrap_err().to_string(), "there is no /a/\\x1b[2J");
}
