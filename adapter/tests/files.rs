//! Files across the life of an adapter.

use adapter::{Embedded, Format, Options};
use portcullis::OpenOptions;

/// What nobody synced is durable all the same once the adapter has ended in order.
#[test]
fn an_adapter_that_ends_in_order_leaves_its_files_durable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let uri = format!("emu:{}", path.display());
    let options = Options { format: Format::Blank, ..Options::new(uri.parse().unwrap()) };
    let adapter = Embedded::start(&options).unwrap();
    let session = adapter.session().unwrap();
    session.create_volume("v", 32 << 20).unwrap();
    let files = session.files().unwrap();
    files.format("v", false).unwrap();
    files.sync("v").unwrap();
    let file = OpenOptions::new().write(true).create(true).open(&files, "v:/f").unwrap();
    file.write_all_at(&[7; 5000], 0).unwrap();
    drop((file, files, session, adapter));
    let session = Embedded::start(&options).unwrap().session().unwrap();
    let files = session.files().unwrap();
    let mut back = vec![0; 6000];
    assert_eq!(files.open("v:/f").unwrap().read_at(&mut back, 0).unwrap(), 5000);
    assert!(back[..5000].iter().all(|byte| *byte == 7));
}
