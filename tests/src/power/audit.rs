//! What an adapter shows of a device, against the model.

use std::collections::BTreeMap;

use adapter::Embedded;
use portcullis::{Access, Session};

use super::model::{Change, Model, SECTOR};

/// Name, size in sectors, and rights by user.
type Shape = BTreeMap<String, (u64, BTreeMap<u32, u8>)>;

/// What was looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    /// Sectors of volumes.
    pub sectors: u64,
    /// Whether a change that was not acknowledged turned out to be done.
    pub done: bool,
}

/// Compares everything, and takes what it finds for durable from here on. An error says what is wrong.
pub fn audit(adapter: &Embedded, model: &mut Model) -> Result<Seen, String> {
    let session = adapter.session().map_err(|error| error.to_string())?;
    let found = shape(&session)?;
    let before = model.pending.take();
    let mut seen = Seen::default();
    if found != expected(model) {
        // A change that nobody acknowledged may have been done.
        let Some(change) = &before else {
            return Err(format!("volumes {found:?} and not {:?}", expected(model)));
        };
        let old = expected(model);
        model.apply(change);
        if found != expected(model) {
            return Err(format!("volumes {found:?}, and neither {old:?} nor that after {change:?}"));
        }
        seen.done = true;
    } else if let Some(Change::Create { number, .. }) = &before {
        model.number = model.number.max(*number);
    }
    blocks(&session, model)?;
    let latest = model.instance;
    for (name, held) in &mut model.volumes {
        let volume = session.open(name, Access::READ).map_err(|error| error.to_string())?;
        let instance = (volume.key() >> 32) as u32;
        if instance <= latest {
            return Err(format!("key instance {instance} is given again: {latest} was given before"));
        }
        model.instance = model.instance.max(instance);
        let mut content = vec![0; held.sectors as usize * SECTOR];
        let mut queue = session.queue(16).map_err(|error| error.to_string())?;
        queue.read_at(&volume, 0, &mut content).map_err(|error| format!("reading {name:?}: {error}"))?;
        for (index, sector) in (0..).zip(content.chunks_exact(SECTOR)) {
            held.found(index, sector)?;
        }
        seen.sectors += held.sectors;
    }
    model.settle();
    Ok(seen)
}

fn shape(session: &Session) -> Result<Shape, String> {
    let mut shape = Shape::new();
    for volume in session.volumes() {
        let name = volume.map_err(|error| error.to_string())?.name;
        let info = session.volume_info(&name).map_err(|error| error.to_string())?;
        let mut access = BTreeMap::new();
        for (subject, allowed) in info.access {
            let portcullis::Subject::User(user) = subject else {
                return Err(format!("an access entry for {subject:?}, which nobody made"));
            };
            access.insert(user, allowed);
        }
        shape.insert(name, (info.bytes / SECTOR as u64, access));
    }
    Ok(shape)
}

fn expected(model: &Model) -> Shape {
    model.volumes.iter().map(|(name, held)| (name.clone(), (held.sectors, held.access.clone()))).collect()
}

/// No volume reaches the metadata or another one, and every block is somebody's or free.
fn blocks(session: &Session, model: &Model) -> Result<(), String> {
    let device = session.device_info().map_err(|error| error.to_string())?;
    let mut ranges = device.metadata.clone();
    if ranges.is_empty() {
        return Err("the administrator is not told of the metadata".to_owned());
    }
    let metadata: u64 = ranges.iter().map(|(_, count)| count).sum();
    let mut used = 0;
    for (name, extents) in &device.volumes {
        let blocks: u64 = extents.iter().map(|(_, count)| count).sum();
        let sectors = blocks * u64::from(device.block_size) / SECTOR as u64;
        if model.volumes.get(name).map(|held| held.sectors) != Some(sectors) {
            return Err(format!("{name:?} has extents of {blocks} blocks"));
        }
        used += blocks;
        ranges.extend(extents);
    }
    if device.volumes.len() != model.volumes.len() {
        return Err(format!("{} volumes have extents", device.volumes.len()));
    }
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        return Err(format!("volumes and metadata overlap: {ranges:?}"));
    }
    if ranges.last().is_some_and(|(first, count)| first + count > device.blocks) {
        return Err(format!("beyond the device: {ranges:?}"));
    }
    let known = metadata + used + device.free_blocks;
    if known != device.blocks {
        return Err(format!("{known} blocks are accounted for, of {}", device.blocks));
    }
    Ok(())
}
