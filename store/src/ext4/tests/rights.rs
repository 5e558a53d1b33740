//! Rights on an image are those that Linux gives.

use driver::disk::Dice;

use super::super::image::Image;
use super::super::{Ext4, Ext4Error};
use crate::permission::{Credentials, Rights};

/// An entry of an access list as it is stored: tag, rights, whom it names.
type Entry = (u16, u16, u32);

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Something with rights.
struct Made {
    path: String,
    mode: u16,
    uid: u32,
    gid: u32,
    acl: Vec<Entry>,
}

/// Linux 6.1: `acl_permission_check` (fs/namei.c), `posix_acl_permission` (fs/posix_acl.c), `generic_permission`, told
/// again from what is stored.
fn kernel_allows(made: &Made, who: &Credentials<'_>, want: u16) -> bool {
    let listed = || {
        if who.uid == made.uid {
            return made.mode >> 6 & want == want;
        }
        let in_group = |group: u32| group == who.gid || who.groups.contains(&group);
        if !made.acl.is_empty() && made.mode & 0o070 != 0 {
            let mask = made.acl.iter().find(|entry| entry.0 == MASK).map_or(7, |entry| entry.1);
            let mut found = false;
            for &(tag, rights, id) in &made.acl {
                match tag {
                    USER if id == who.uid => return rights & mask & want == want,
                    GROUP_OBJ if in_group(made.gid) => found = true,
                    GROUP if in_group(id) => found = true,
                    OTHER => return !found && rights & want == want,
                    _ => continue,
                }
                if rights & want == want {
                    return mask & want == want;
                }
            }
            return false;
        }
        let shift = if in_group(made.gid) { 3 } else { 0 };
        made.mode >> shift & want == want
    };
    // Nobody asks here to execute a regular file.
    who.uid == 0 || listed()
}

/// A list, or none, and the mode that goes with it.
fn rights(dice: &mut Dice) -> (u16, Vec<Entry>) {
    let mut bits = |of: u64| u16::try_from(dice.below(of)).unwrap();
    let mode = bits(0o1000) | bits(0o1000);
    if bits(2) == 0 {
        return (mode, Vec::new());
    }
    let mut acl = vec![(USER_OBJ, mode >> 6 & 7, 0)];
    let named: Vec<u16> = (0..4).map(|_| bits(8)).collect();
    acl.extend(
        (1001..1003).zip(&named).filter(|(_, rights)| **rights != 3).map(|(id, rights)| (USER, *rights, id)),
    );
    acl.push((GROUP_OBJ, bits(8), 0));
    acl.extend(
        (2001..2003)
            .zip(&named[2..])
            .filter(|(_, rights)| **rights != 5)
            .map(|(id, rights)| (GROUP, *rights, id)),
    );
    acl.push((MASK, mode >> 3 & 7, 0));
    acl.push((OTHER, mode & 7, 0));
    (mode, acl)
}

/// As it is stored in an attribute.
fn stored(acl: &[Entry]) -> Vec<u8> {
    let mut bytes = 1u32.to_le_bytes().to_vec();
    for (tag, rights, id) in acl {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        if matches!(*tag, USER | GROUP) {
            bytes.extend(id.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn rights_on_an_image_agree_with_the_kernels_rules() {
    let seed = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seed {seed}");
    let dice = &mut Dice(seed);
    // Lists of files of 256 bytes go behind the inode if they are short, else into a block.
    let image = Image::make(16 << 20, &["-b", "1024", "-N", "1024"]).unwrap();
    let host = image.host_file("data", b"data").unwrap();
    let mut made = Vec::new();
    let mut commands = Vec::new();
    for directory in 0..16 {
        let path = format!("d{directory}");
        commands.push(format!("mkdir {path}"));
        let files = (0..5).map(|file| (format!("{path}/f{file}"), false));
        for (path, is_directory) in files.chain([(path.clone(), true)]) {
            if !is_directory {
                commands.extend(["cd /".to_owned(), format!("cd d{directory}")]);
                commands.push(format!("write {host} {}", path.rsplit('/').next().unwrap()));
                commands.push("cd /".to_owned());
            }
            let (mode, acl) = rights(dice);
            let (uid, gid) =
                (1001 + u32::try_from(dice.below(3)).unwrap(), 2001 + u32::try_from(dice.below(3)).unwrap());
            let kind = if is_directory { 0o040_000 } else { 0o100_000 };
            commands.push(format!("sif {path} mode 0{:o}", kind | mode));
            commands.push(format!("sif {path} uid {uid}"));
            commands.push(format!("sif {path} gid {gid}"));
            if !acl.is_empty() {
                let value = image.host_file(&format!("acl{}", made.len()), &stored(&acl)).unwrap();
                if dice.below(3) == 0 {
                    commands.push(format!("ea_set {path} user.fill {}", "z".repeat(90)));
                }
                commands.push(format!("ea_set -r -f {value} {path} system.posix_acl_access"));
            }
            made.push(Made { path, mode, uid, gid, acl });
        }
    }
    let said = image.change(&commands).unwrap();
    assert!(!said.contains("rror") && !said.contains("not found"), "{said}");
    assert!(image.check(&["-fn"]).unwrap());
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let mut blocks = 0;
    let (mut allowed, mut denied) = (0, 0);
    for made_of in made.iter().filter(|made| made.path.contains('/')) {
        let directory =
            made.iter().find(|other| made_of.path.split('/').next() == Some(&other.path)).unwrap();
        for _ in 0..16 {
            let uid = [0, 1001, 1002, 1003, 1004][dice.index(5)];
            let groups: Vec<u32> = (2001..2004).filter(|_| dice.below(3) == 0).collect();
            let who = Credentials { uid, gid: 2001 + u32::try_from(dice.below(4)).unwrap(), groups: &groups };
            let want = [4, 2, 6][dice.index(3)];
            let wanted = Rights::from_bits(u8::try_from(want).unwrap()).unwrap();
            let expected = kernel_allows(directory, &who, 1) && kernel_allows(made_of, &who, want);
            match ext4.open_file(&mut disk, made_of.path.as_bytes(), &who, wanted) {
                Ok(file) => {
                    assert!(expected, "{} {who:?} {want}", made_of.path);
                    ext4.close(file.inode);
                    allowed += 1;
                }
                Err(Ext4Error::Denied { .. }) => {
                    assert!(!expected, "{} {who:?} {want}", made_of.path);
                    denied += 1;
                }
                Err(error) => panic!("{error}"),
            }
            let search = ext4.stat(&mut disk, made_of.path.as_bytes(), &who, true).is_ok();
            assert_eq!(search, kernel_allows(directory, &who, 1), "attributes need no right on the file");
            let list = ext4.list(&mut disk, directory.path.as_bytes(), &who, 0, 9).is_ok();
            assert_eq!(list, kernel_allows(directory, &who, 4), "listing needs no search");
        }
        let inode = ext4.lookup(&mut disk, made_of.path.as_bytes(), &Credentials::ROOT, true).unwrap();
        blocks += u32::from(ext4.any_inode(&mut disk, inode).unwrap().attribute_block != 0);
    }
    assert!(allowed > 100 && denied > 100 && blocks > 3, "{allowed} {denied} {blocks}");
    println!("counted: {} rights on an ext4", allowed + denied);
}

#[test]
fn whoever_asks_for_nothing_asks_for_reading() {
    let image = Image::make(16 << 20, &["-b", "1024"]).unwrap();
    let host = image.host_file("data", b"data").unwrap();
    image.change(&[format!("write {host} secret"), "sif secret mode 0100600".to_owned()]).unwrap();
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    let who = Credentials { uid: 1001, gid: 2001, groups: &[] };
    for wanted in [Rights::NONE, Rights::READ] {
        let error = ext4.open_file(&mut disk, b"secret", &who, wanted).unwrap_err();
        assert!(matches!(error, Ext4Error::Denied { wanted: "read", .. }), "{error}");
        assert_eq!(error.to_string(), "user 1001 may not read /secret: it has mode 0600, owner 0, group 0");
    }
}

#[test]
fn access_lists_that_say_nothing_clear_refuse_the_file() {
    let plain = [(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)];
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("version", vec![2, 0, 0, 0], "another version than 1"),
        ("cut", stored(&plain)[..14].to_vec(), "is cut off in its entry 2"),
        ("cutid", [stored(&plain), vec![2, 0, 7, 0, 1, 2]].concat(), "is cut off in its entry 3"),
        ("tag", stored(&[(3, 0, 0)]), "the unknown tag 0x3"),
        ("rights", stored(&[(USER_OBJ, 8, 0)]), "the unknown rights 0x8"),
        ("missing", stored(&plain[..2]), "no entry for Other"),
        ("nomask", stored(&[&plain[..], &[(USER, 6, 5)]].concat()), "has no mask"),
        ("twice", stored(&[&plain[..], &plain[..1]].concat()), "two entries for Owner"),
    ];
    let image = Image::make(16 << 20, &["-b", "1024"]).unwrap();
    let host = image.host_file("data", b"data").unwrap();
    let mut commands = Vec::new();
    for (name, value, _) in &cases {
        let value = image.host_file(&format!("acl-{name}"), value).unwrap();
        commands.extend([
            format!("write {host} {name}"),
            format!("ea_set -r -f {value} {name} system.posix_acl_access"),
        ]);
    }
    let value = image.host_file("acl-none", &[1, 0, 0, 0]).unwrap();
    commands
        .extend([format!("write {host} none"), format!("ea_set -r -f {value} none system.posix_acl_access")]);
    image.change(&commands).unwrap();
    let mut disk = image.disk(9).unwrap();
    let mut ext4 = Ext4::open(&mut disk).unwrap();
    for (name, _, words) in cases {
        let error = ext4.open_file(&mut disk, name.as_bytes(), &Credentials::ROOT, Rights::READ).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    let none = ext4.open_file(&mut disk, b"none", &Credentials::ROOT, Rights::READ).unwrap();
    assert_eq!(none.attributes.permissions.acl, None);
}
