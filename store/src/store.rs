//! The store: what can be done with a device's volumes.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Weak;

use driver::block::Geometry;
use driver::disk::Disk;
use tpt::{Access, LbaRange};

use crate::catalog::{Catalog, Change, Counter, caught};
use crate::container::{self, Container, Unsound};
use crate::ledger::{Granted, Ledger, Wish};
use crate::probe::{find_superblock, read_ends};
use crate::record::{self, Finding, inspect, run_of};
use crate::shadow::{Fault, SharedShadow};
use crate::space::{Run, Space};
use crate::superblock::{Kind, Layout, PAGE, STORE_PAGES, Superblock, VERSION_KINDS};
use crate::volume::check_name;
use crate::window::Window;
use crate::{
    Limits, MAX_ENTRIES, MAX_EXTENTS, MAX_VOLUMES, StoreError, Subject, Volume, VolumeId, VolumeKind,
};

/// How a device is made a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatOptions {
    /// Also if the device holds a store or something else that is recognised.
    pub force: bool,
    /// Bytes that volumes are multiples of: a power of two from 4 KiB to 1 GiB.
    pub allocation_unit: u32,
    /// Bytes for metadata, from 4 MiB to 112 MiB; it takes twice that on the device. By default 1/64 of the device,
    /// from 4 MiB to 32 MiB; a quarter of it
    /// may be records: about 50 bytes for a simple volume, and 5 to 15 for each further extent or access entry.
    pub metadata: Option<u64>,
    /// What the store is known by; random by default.
    pub uuid: Option<[u8; 16]>,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self { force: false, allocation_unit: 64 << 10, metadata: None, uuid: None }
    }
}

/// Blocks zeroed between two reports of progress.
const ZERO_STEP_BYTES: u64 = 64 << 20;

/// The volumes of a device, and the device. See the crate's description.
pub struct Store {
    shadow: SharedShadow,
    catalog: Catalog,
    superblock: Superblock,
    geometry: Geometry,
    volumes: BTreeMap<String, Volume>,
    space: Space,
    next_volume: u64,
    next_instance: u32,
    lives: u64,
    /// The last life that ended in order.
    settled: u64,
    ledger: Ledger,
    /// Of the change that is being made.
    wish: Option<Wish>,
    /// The weight of all records.
    record_bytes: u64,
    /// Windows that may still be in use.
    windows: BTreeMap<VolumeId, Weak<()>>,
}

impl Store {
    /// Makes `disk` an empty store. Refuses one that holds a store or anything else that is recognised, unless forced.
    pub fn format(mut disk: Box<dyn Disk>, options: FormatOptions) -> Result<Self, StoreError> {
        let ends = read_ends(&mut *disk)?;
        let layout = layout_for(disk.geometry(), &options)?;
        let container =
            Container::format(Kind::Store, disk, &ends, layout, (options.uuid, options.force), |shadow| {
                Catalog::open(shadow)?
                    .commit(&[Change::Set(Counter::Volume, 1), Change::Set(Counter::Instance, 1)])
            })?;
        Self::mount(container)
    }

    /// Opens the store on `disk`, or makes a blank one a store.
    pub fn open_or_format(mut disk: Box<dyn Disk>, options: FormatOptions) -> Result<Self, StoreError> {
        match find_superblock(Kind::Store, &read_ends(&mut *disk)?) {
            Err(StoreError::Blank) => Self::format(disk, options),
            _ => Self::open(disk),
        }
    }

    /// Opens the store on `disk`, after checking all of its metadata. A panic on the way is an error like damage.
    pub fn open(disk: Box<dyn Disk>) -> Result<Self, StoreError> {
        caught(|| Self::open_unguarded(disk)).unwrap_or_else(|what| Err(StoreError::Damaged { what }))
    }

    /// What the store on `disk` is known by, without opening it.
    ///
    /// # Errors
    /// As [`Store::open`], as far as the superblock tells.
    pub fn uuid_on(disk: &mut dyn Disk) -> Result<[u8; 16], StoreError> {
        Ok(find_superblock(Kind::Store, &read_ends(disk)?)?.uuid)
    }

    /// Runs `work`. If it panics, which is a bug of ours or of the disk beneath, the store has failed: this and every
    /// later call is [`StoreError::Poisoned`], nothing more reaches the device, and nobody else notices.
    pub fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        caught(|| work(self)).unwrap_or_else(|why| Err(self.catalog.poisoned(why)))
    }

    fn open_unguarded(disk: Box<dyn Disk>) -> Result<Self, StoreError> {
        Self::mount(Container::open(Kind::Store, disk)?)
    }

    fn mount(container: Container) -> Result<Self, StoreError> {
        let Container { shadow, superblock, geometry } = container;
        let mut catalog = Catalog::open(shadow.clone())?;
        let contents = catalog.load().map_err(|error| match (shadow.lock().fault(), error) {
            (Some(Fault::Disk(error)), _) => StoreError::Disk(*error),
            (_, StoreError::Poisoned { why }) => StoreError::Damaged { what: why },
            (_, error) => error,
        })?;
        let found = inspect(&contents, &superblock.layout);
        if let Some(finding) = found.findings.first() {
            return Err(StoreError::Damaged { what: finding.to_string() });
        }
        let record_bytes = found.volumes.values().map(record::weight).sum();
        let next_instance = u32::try_from(contents.next_instance).unwrap_or(u32::MAX);
        Ok(Self {
            shadow,
            catalog,
            superblock,
            geometry,
            volumes: found.volumes,
            space: found.space,
            next_volume: contents.next_volume,
            next_instance: next_instance.max(1),
            lives: contents.lives,
            settled: contents.settled,
            ledger: Ledger::load(&contents.granted),
            wish: None,
            record_bytes,
            windows: BTreeMap::new(),
        })
    }

    /// Counts that somebody begins to serve the store: how often that was, this time included. Durable on return, so that who
    /// knew the last time sees whether there was one between.
    ///
    /// # Errors
    /// The device's.
    pub fn begin_life(&mut self) -> Result<u64, StoreError> {
        self.catalog.healthy()?;
        let life = self.lives.saturating_add(1);
        self.catalog.commit(&[Change::Set(Counter::Life, life)])?;
        self.lives = life;
        Ok(life)
    }

    /// Whether who serves the store, or served it last if nobody does yet, has said that all of it is durable.
    pub fn is_settled(&self) -> bool {
        self.settled == self.lives
    }

    /// Keeps that all that was done in this life is durable, in the file systems of its volumes too: nothing more will be done.
    ///
    /// # Errors
    /// The device's.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        self.catalog.healthy()?;
        self.catalog.commit(&[Change::Set(Counter::Settled, self.lives)])?;
        self.settled = self.lives;
        Ok(())
    }

    /// Reserves `count` key instances that no earlier call ever returned, also not before a crash. Durable before it
    /// returns. 0 is never among them.
    pub fn reserve_instances(&mut self, count: u32) -> Result<Range<u32>, StoreError> {
        self.catalog.healthy()?;
        let first = self.next_instance;
        let Some(next) = first.checked_add(count) else {
            return Err(StoreError::InstancesExhausted { asked: count, left: u32::MAX - first });
        };
        if count > 0 {
            self.catalog.commit(&[Change::Set(Counter::Instance, next.into())])?;
            self.next_instance = next;
        }
        Ok(first..next)
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Result<Vec<Volume>, StoreError> {
        self.volumes_after(None, usize::MAX)
    }

    /// At most `limit` volumes whose name is greater than `after`, by name.
    pub fn volumes_after(&self, after: Option<&str>, limit: usize) -> Result<Vec<Volume>, StoreError> {
        self.catalog.healthy()?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.volumes.range::<str, _>((start, Bound::Unbounded));
        Ok(range.take(limit).map(|(_, volume)| volume.clone()).collect())
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Result<Volume, StoreError> {
        self.catalog.healthy()?;
        self.volumes.get(name).cloned().ok_or_else(|| no_such_volume(name))
    }

    /// Makes a volume of at least `bytes` bytes, rounded up to whole allocation units. All of it reads as zero.
    pub fn create(&mut self, name: &str, bytes: u64, owner: u32) -> Result<Volume, StoreError> {
        self.create_with(name, bytes, owner, &mut |_, _| {})
    }

    /// [`Store::create`]; `progress` hears of the blocks zeroed so far and in all.
    pub fn create_with(
        &mut self,
        name: &str,
        bytes: u64,
        owner: u32,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Volume, StoreError> {
        self.catalog.healthy()?;
        self.check_new_name(name)?;
        if self.volumes.len() >= MAX_VOLUMES {
            return Err(StoreError::TooManyVolumes);
        }
        let units = self.units_for(bytes)?;
        let id = self.next_volume;
        let volume = Volume {
            id: VolumeId(id),
            name: name.to_owned(),
            owner,
            blocks: 0,
            extents: Vec::new(),
            access: Vec::new(),
            limits: Limits::default(),
            kind: VolumeKind::Blocks,
        };
        let volume = self.extend(volume, units, progress, &[Change::Set(Counter::Volume, id + 1)])?;
        self.next_volume = id + 1;
        Ok(volume)
    }

    /// Makes a volume larger: at least `bytes` bytes in all. What is new reads as zero; what is there stays where
    /// it is. Nothing happens if it has the size already.
    pub fn grow(&mut self, name: &str, bytes: u64) -> Result<Volume, StoreError> {
        self.grow_with(name, bytes, &mut |_, _| {})
    }

    /// [`Store::grow`]; `progress` hears of the blocks zeroed so far and in all.
    pub fn grow_with(
        &mut self,
        name: &str,
        bytes: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Volume, StoreError> {
        let volume = self.volume(name)?;
        let have = volume.blocks / self.superblock.layout.unit_blocks();
        let units = self.units_for(bytes)?;
        match units.checked_sub(have) {
            None => Err(StoreError::Size { bytes, why: "the volume is larger than that already" }),
            Some(0) => Ok(volume),
            Some(more) => self.extend(volume, more, progress, &[]),
        }
    }

    /// Makes a volume smaller: at least `bytes` bytes in all. The caller has seen to it that nobody can reach the rest
    /// any more: it may belong to another volume as soon as this returns.
    pub fn shrink(&mut self, name: &str, bytes: u64) -> Result<Volume, StoreError> {
        let old = self.volume(name)?;
        let blocks = self.units_for(bytes)? * self.superblock.layout.unit_blocks();
        if blocks > old.blocks {
            return Err(StoreError::Size { bytes, why: "the volume is smaller than that already" });
        }
        let extents = old.extents_for(blocks).unwrap_or_default();
        let new = Volume { blocks, extents, ..old.clone() };
        if new.blocks == old.blocks {
            return Ok(new);
        }
        self.check_unused(&old)?;
        if old.kind != VolumeKind::Blocks {
            return Err(StoreError::Size { bytes, why: "the file system in it lies in all of it" });
        }
        self.save(&new, Some(&old), &[])?;
        // What is left of the extent that was cut, and those after it.
        for (index, extent) in old.extents.iter().enumerate() {
            let kept = new.extents.get(index).map_or(0, |kept| kept.count.0);
            if let Some(rest) = LbaRange::new(extent.first.0 + kept, extent.count.0 - kept) {
                self.space.give(run_of(rest, &self.superblock.layout));
            }
        }
        self.volumes.insert(new.name.clone(), new.clone());
        Ok(new)
    }

    /// Gives a volume another name.
    pub fn rename(&mut self, name: &str, new: &str) -> Result<Volume, StoreError> {
        let old = self.volume(name)?;
        if name == new {
            return Ok(old);
        }
        self.check_new_name(new)?;
        let renamed = Volume { name: new.to_owned(), ..old.clone() };
        self.save(&renamed, Some(&old), &[])?;
        self.volumes.remove(name);
        self.volumes.insert(new.to_owned(), renamed.clone());
        Ok(renamed)
    }

    /// Removes a volume. The caller has seen to it that nobody can reach its blocks any more: they may belong to
    /// another volume as soon as this returns.
    pub fn delete(&mut self, name: &str) -> Result<(), StoreError> {
        let volume = self.volume(name)?;
        self.check_unused(&volume)?;
        self.commit(volume.id, vec![Change::Remove(volume.id.0)])?;
        self.record_bytes -= record::weight(&volume);
        for extent in &volume.extents {
            self.space.give(run_of(*extent, &self.superblock.layout));
        }
        self.volumes.remove(name);
        Ok(())
    }

    /// Says what `subject` may do with a volume, instead of what it could before; [`Access::NONE`] removes its entry.
    pub fn set_access(&mut self, name: &str, subject: Subject, access: Access) -> Result<Volume, StoreError> {
        let old = self.volume(name)?;
        let mut volume = old.clone();
        volume.access.retain(|(other, _)| *other != subject);
        if access != Access::NONE {
            if volume.access.len() >= MAX_ENTRIES {
                return Err(StoreError::TooManyEntries);
            }
            volume.access.push((subject, access));
            volume.access.sort_unstable_by_key(|(subject, _)| *subject);
        }
        self.save(&volume, Some(&old), &[])?;
        self.volumes.insert(name.to_owned(), volume.clone());
        Ok(volume)
    }

    /// Says how much all who use a volume may do together, instead of what they could before.
    pub fn set_limits(&mut self, name: &str, limits: Limits) -> Result<Volume, StoreError> {
        let old = self.volume(name)?;
        let volume = Volume { limits, ..old.clone() };
        self.save(&volume, Some(&old), &[])?;
        self.volumes.insert(name.to_owned(), volume.clone());
        Ok(volume)
    }

    /// Says what a volume is used as. What is in it is left alone: make the file system first, through
    /// [`Store::window`]. A store that has had a volume of another kind than blocks cannot be opened by programs that know
    /// of no kinds.
    pub fn set_kind(&mut self, name: &str, kind: VolumeKind) -> Result<Volume, StoreError> {
        let old = self.volume(name)?;
        if kind != VolumeKind::Blocks && self.superblock.version < VERSION_KINDS {
            let superblock = Superblock { version: VERSION_KINDS, ..self.superblock };
            container::write_superblocks(&self.shadow, &superblock)?;
            self.superblock = superblock;
        }
        let volume = Volume { kind, ..old.clone() };
        self.save(&volume, Some(&old), &[])?;
        self.volumes.insert(name.to_owned(), volume.clone());
        Ok(volume)
    }

    /// The blocks of a volume as a disk of its own, as they are now. While there is one, the volume can neither shrink
    /// nor be deleted.
    pub fn window(&mut self, name: &str) -> Result<Window, StoreError> {
        let volume = self.volume(name)?;
        self.windows.retain(|_, window| window.strong_count() > 0);
        let (window, token) = Window::new(self.shadow.clone(), &self.geometry, &volume);
        let users = self.windows.entry(volume.id).or_default();
        if users.strong_count() > 0 {
            return Err(StoreError::InUse { name: name.to_owned() });
        }
        *users = token;
        Ok(window)
    }

    fn check_unused(&self, volume: &Volume) -> Result<(), StoreError> {
        match self.windows.get(&volume.id) {
            Some(window) if window.strong_count() > 0 => Err(StoreError::InUse { name: volume.name.clone() }),
            _ => Ok(()),
        }
    }

    /// Reads one block, so that the device's queue is polled at least once.
    pub fn touch(&mut self) -> Result<(), StoreError> {
        let mut block = vec![0; self.geometry.block_size() as usize];
        Ok(self.shadow.lock().disk().read(0, &mut block)?)
    }

    /// Flushes what the device may have in its cache: for when there is nothing else to do. A commit leaves something there that it
    /// does not need durable, and zeros are written in advance.
    pub fn flush_changes(&mut self) -> Result<(), StoreError> {
        Ok(self.shadow.lock().disk().flush_changes()?)
    }

    /// Device blocks that belong to no volume.
    pub fn free_blocks(&self) -> u64 {
        self.space.free() * self.superblock.layout.unit_blocks()
    }

    /// Device blocks that can belong to volumes, free or not.
    pub fn data_blocks(&self) -> u64 {
        self.superblock.layout.units * self.superblock.layout.unit_blocks()
    }

    /// Bytes that volumes are multiples of.
    pub fn allocation_unit(&self) -> u64 {
        1 << self.superblock.layout.unit_shift
    }

    /// Where the store keeps its own data: all blocks that can never belong to a volume.
    pub fn metadata_extents(&self) -> Vec<LbaRange> {
        let mut extents = self.superblock.layout.metadata();
        // Of a device that has grown since it was formatted.
        let formatted = self.superblock.layout.blocks;
        extents.extend(LbaRange::new(formatted, self.geometry.blocks - formatted));
        extents
    }

    /// The device's shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What the store is known by, given when it was formatted.
    pub fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// Reads all metadata and says what is wrong with it: damaged blocks, volumes that overlap or lie outside the data
    /// area, bad names, wrong sums, and differences to what this store believes. Nothing, if all is well.
    pub fn check(&mut self) -> Result<Vec<Finding>, StoreError> {
        self.catalog.healthy()?;
        let mut findings = Vec::new();
        let layout = self.superblock.layout;
        for finding in container::verify(&self.shadow, &self.superblock) {
            findings.push(match finding {
                Unsound::Superblock { copy, what } => Finding::Superblock { copy, what },
                Unsound::Metadata { what } => Finding::Metadata { what },
            });
        }
        if !findings.is_empty() {
            return Ok(findings); // the database would stumble over them
        }
        if !self.catalog.check_integrity()? {
            findings.push(Finding::Metadata { what: "the metadata database had to be repaired".to_owned() });
        }
        let contents = self.catalog.load()?;
        let mut found = inspect(&contents, &layout);
        findings.append(&mut found.findings);
        let mut accounting = |wrong: bool, what: &str| {
            if wrong {
                findings.push(Finding::Accounting { what: what.to_owned() });
            }
        };
        accounting(found.volumes != self.volumes, "the volumes on the device are not those in memory");
        accounting(found.space != self.space, "the free space by the device is not that in memory");
        accounting(
            contents.next_volume != self.next_volume,
            "the next volume's number is not that in memory",
        );
        let instance = u64::from(self.next_instance);
        accounting(contents.next_instance != instance, "the next key instance is not that in memory");
        accounting(
            Ledger::load(&contents.granted) != self.ledger,
            "what was granted is not what is in memory",
        );
        accounting(contents.lives != self.lives, "the number of lives is not that in memory");
        accounting(contents.settled != self.settled, "the life that was settled is not that in memory");
        Ok(findings)
    }

    /// Does `work`, and keeps with its first change that it was wanted so. Whoever asks sees before whether it was granted.
    pub fn granting<T>(&mut self, wish: Option<Wish>, work: impl FnOnce(&mut Self) -> T) -> T {
        self.wish = wish;
        let done = work(self);
        self.wish = None;
        done
    }

    /// What was granted lately.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn check_new_name(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        if self.volumes.contains_key(name) {
            return Err(StoreError::Exists { name: name.to_owned() });
        }
        Ok(())
    }

    /// Allocation units of a volume of `bytes` bytes.
    fn units_for(&self, bytes: u64) -> Result<u64, StoreError> {
        if bytes == 0 {
            return Err(StoreError::Size { bytes, why: "a volume has at least one byte" });
        }
        Ok(bytes.div_ceil(self.allocation_unit()))
    }

    /// Gives `units` more units to `volume`, in the order that keeps former content secret: allocated, zeroed, flushed,
    /// committed, together with `also`.
    fn extend(
        &mut self,
        mut volume: Volume,
        units: u64,
        progress: &mut dyn FnMut(u64, u64),
        also: &[Change],
    ) -> Result<Volume, StoreError> {
        let layout = self.superblock.layout;
        let unit = layout.unit_blocks();
        let after = volume.extents.last().map(|last| (last.end().0 - layout.data) / unit);
        let free = self.free_blocks();
        let no_space = StoreError::NoSpace { needed: units.saturating_mul(unit), free };
        let runs = self.space.allocate(units, after).ok_or(no_space)?;
        volume.blocks += units * unit;
        for run in &runs {
            let new =
                LbaRange::new(layout.data + run.first * unit, run.count * unit).expect("runs are not empty");
            match volume.extents.last_mut() {
                Some(last) if last.end() == new.first => last.count.0 += new.count.0,
                _ => volume.extents.push(new),
            }
        }
        if let Err(error) = self.zero_and_save(&volume, &runs, progress, also) {
            // After a failed commit nobody knows whose they are.
            if self.catalog.healthy().is_ok() {
                runs.into_iter().for_each(|run| self.space.give(run));
            }
            return Err(error);
        }
        self.volumes.insert(volume.name.clone(), volume.clone());
        Ok(volume)
    }

    fn zero_and_save(
        &mut self,
        volume: &Volume,
        runs: &[Run],
        progress: &mut dyn FnMut(u64, u64),
        also: &[Change],
    ) -> Result<(), StoreError> {
        if volume.extents.len() > MAX_EXTENTS {
            return Err(StoreError::TooFragmented);
        }
        let old = self.volumes.get(&volume.name).cloned();
        self.check_room(volume, old.as_ref())?;
        self.zero(runs, progress)?;
        self.save(volume, old.as_ref(), also)
    }

    /// Refuses records that would leave the metadata file too little room. A quarter of it may be records: the trees,
    /// their half-full pages and the copies that a commit makes stay below a half, and the file grows by doubling. So a
    /// volume can always be deleted.
    fn check_room(&self, volume: &Volume, old: Option<&Volume>) -> Result<(), StoreError> {
        let (new, old) = (record::weight(volume), old.map_or(0, record::weight));
        let most = u64::from(self.superblock.layout.pages) * PAGE as u64 / 4;
        if new > old && self.record_bytes + new - old > most {
            return Err(StoreError::MetadataFull);
        }
        Ok(())
    }

    /// Makes changes of a volume durable, and in the same step that the wish for them was granted.
    fn commit(&mut self, volume: VolumeId, mut changes: Vec<Change>) -> Result<(), StoreError> {
        let granted = self.wish.take().map(|wish| Granted::new(wish, volume));
        if let Some(granted) = &granted {
            let (number, row, gone) = self.ledger.plan(granted);
            changes.push(Change::Grant(number, row));
            changes.extend(gone.into_iter().map(Change::Forget));
        }
        self.catalog.commit(&changes)?;
        granted.into_iter().for_each(|granted| self.ledger.add(granted));
        Ok(())
    }

    /// Makes `volume`, which was `old`, durable together with `also`.
    fn save(&mut self, volume: &Volume, old: Option<&Volume>, also: &[Change]) -> Result<(), StoreError> {
        self.check_room(volume, old)?;
        let put = Change::Put(volume.id.0, record::encode(volume));
        self.commit(volume.id, [&[put], also].concat())?;
        self.record_bytes += record::weight(volume);
        self.record_bytes -= old.map_or(0, record::weight);
        Ok(())
    }

    /// Makes the runs read as zero, durably.
    fn zero(&self, runs: &[Run], progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let layout = self.superblock.layout;
        let step = ZERO_STEP_BYTES >> layout.block_shift;
        let total = runs.iter().map(|run| run.count * layout.unit_blocks()).sum();
        let mut done = 0;
        for run in runs {
            let mut lba = layout.data + run.first * layout.unit_blocks();
            let end = lba + run.count * layout.unit_blocks();
            while lba < end {
                let blocks = step.min(end - lba);
                self.shadow.lock().disk().write_zeroes(lba, blocks)?;
                lba += blocks;
                done += blocks;
                progress(done, total);
            }
        }
        self.shadow.lock().disk().flush()?;
        Ok(())
    }
}

fn no_such_volume(name: &str) -> StoreError {
    StoreError::NoSuchVolume { name: name.chars().take(crate::MAX_NAME).collect() }
}

fn layout_for(geometry: &Geometry, options: &FormatOptions) -> Result<Layout, StoreError> {
    let unit = options.allocation_unit;
    if !unit.is_power_of_two() || !(4 << 10..=1 << 30).contains(&unit) {
        let what = format!("an allocation unit of {unit} bytes is not a power of two from 4 KiB to 1 GiB");
        return Err(StoreError::Options { what });
    }
    let bytes = geometry.blocks.saturating_mul(geometry.block_size().into());
    let pages = options.metadata.map_or_else(|| Layout::suitable_pages(bytes), Layout::pages_for);
    let unit_shift = u8::try_from(unit.ilog2()).unwrap_or(u8::MAX);
    let pages = if pages > STORE_PAGES { 0 } else { pages }; // none at all
    Layout::new(geometry.blocks, geometry.block_shift, unit_shift, pages).map_err(|needed| {
        if needed > 0 {
            return StoreError::TooSmall { bytes, needed };
        }
        StoreError::Options {
            what: format!(
                "a metadata area of {} bytes is not from 4 MiB to 112 MiB",
                options.metadata.unwrap_or(0)
            ),
        }
    })
}

#[cfg(test)]
mod tests;
