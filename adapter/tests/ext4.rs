//! An ext4 as it is found, served through the whole adapter: on a device without a store, and in a volume. What is read is what
//! went in, what is written is what debugfs finds afterwards, and e2fsck has nothing to say.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test that cannot go on has failed

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use adapter::{Embedded, Format, Options};
use driver::disk::Dice;
use portcullis::wire::files::{AttributeChange, FileKind, FileSystemKind};
use portcullis::wire::socket::Credentials;
use portcullis::{Files, Session};
use store::ext4::image::Image;

const IMAGE: u64 = 32 << 20;

/// An adapter over the image as it is found.
fn adapter(image: &Image, scheme: &str) -> Embedded {
    let uri = format!("{scheme}:{}", image.file().display());
    Embedded::start(&Options { format: Format::AsFound, ..Options::new(uri.parse().unwrap()) }).unwrap()
}

fn user(uid: u32, groups: &[u32]) -> Credentials {
    Credentials { uid, gid: uid, pid: 1, groups: groups.to_vec() }
}

/// Of user 0, who may do what files allow user 0.
fn session(adapter: &Embedded) -> Session {
    adapter.session_as(user(0, &[])).unwrap()
}

fn files(adapter: &Embedded, uid: u32) -> Files {
    adapter.session_as(user(uid, &[])).unwrap().files().unwrap()
}

fn content(bytes: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..bytes).map(|_| dice.below(256) as u8).collect()
}

/// Of all of these lengths: none, parts of blocks, whole ones, and many.
const LENGTHS: [usize; 9] = [0, 1, 511, 512, 4095, 4096, 5000, 70_000, 300_001];

/// A folder with a file of each length in directories, one with holes, and links.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for (number, length) in LENGTHS.into_iter().enumerate() {
        let path = format!("d{}/e/f{number}", number % 3);
        fs::create_dir_all(folder.join(&path).parent().unwrap()).unwrap();
        fs::write(folder.join(&path), content(length, 7 + number as u64)).unwrap();
        all.insert(path, content(length, 7 + number as u64));
    }
    let sparse = fs::File::create(folder.join("sparse")).unwrap();
    let mut expected = vec![0; 400_003];
    sparse.set_len(expected.len() as u64).unwrap();
    for (at, bytes) in [(40_960, 5000), (102_400, 4096), (204_800, 100_000)] {
        let data = content(bytes, at as u64);
        sparse.write_all_at(&data, at as u64).unwrap();
        expected[at..at + bytes].copy_from_slice(&data);
    }
    all.insert("sparse".to_owned(), expected);
    let nothing = fs::File::create(folder.join("nothing")).unwrap();
    nothing.set_len(123_456).unwrap();
    all.insert("nothing".to_owned(), vec![0; 123_456]);
    std::os::unix::fs::symlink("d0/e/../../d1/e", folder.join("way")).unwrap();
    std::os::unix::fs::symlink("f1", folder.join("d1/e/link")).unwrap();
    std::os::unix::fs::symlink("/d1", folder.join("absolute")).unwrap();
    std::os::unix::fs::symlink("round", folder.join("round")).unwrap();
    all
}

/// An image of such a folder.
fn image(options: &[&str]) -> (Image, BTreeMap<String, Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let all = tree(folder.path());
    let from = folder.path().display().to_string();
    let image = Image::make(IMAGE, &[options, &["-d", &from, "-E", "root_owner=0:0"]].concat()).unwrap();
    (image, all)
}

fn read_all(files: &Files, place: &str) -> Vec<u8> {
    let file = files.open(place).unwrap();
    let mut all = vec![0xee; file.len().unwrap() as usize + 1];
    let bytes = file.read_at(&mut all, 0).unwrap();
    all.truncate(bytes);
    all
}

/// What debugfs finds in a file.
fn dumped(image: &Image, path: &str) -> Vec<u8> {
    let to = image.folder().join("dumped");
    image.ask(&format!("dump {path} {}", to.display())).unwrap();
    fs::read(to).unwrap()
}

fn status(result: Result<impl Sized, Error>) -> (Status, String) {
    let error = result.err().expect("it is refused");
    (error.status().unwrap(), error.to_string())
}

#[test]
fn a_tree_is_read_from_a_device_without_a_store() {
    for (options, scheme) in
        [(&["-b", "4096"][..], "emu"), (&["-b", "1024"], "emu"), (&["-b", "4096"], "emu-virtio")]
    {
        let (image, all) = image(options);
        let before = fs::read(image.file()).unwrap();
        let adapter = adapter(&image, scheme);
        let files = session(&adapter).files().unwrap();
        for (path, expected) in &all {
            assert!(read_all(&files, &format!("disk:/{path}")) == *expected, "{path} of {options:?}");
        }
        drop((files, adapter));
        assert!(fs::read(image.file()).unwrap() == before, "nobody wrote");
    }
}
