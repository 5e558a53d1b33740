//! A volume as the database keeps it, and the check of all records against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use tpt::{Access, LbaRange};

use crate::catalog::Contents;
use crate::space::{Run, Space};
use crate::superblock::Layout;
use crate::volume::check_name;
use crate::{Limits, MAX_ENTRIES, MAX_EXTENTS, MAX_VOLUMES, Rate, Subject, Volume, VolumeId, VolumeKind};

/// In postcard's wire format (postcard 1.0 specification).
#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    owner: u32,
    blocks: u64,
    /// First device block and count.
    extents: Vec<(u64, u64)>,
    /// 0 user, 1 group, 2 everyone (with number 0); its number; the bits of the access.
    access: Vec<(u8, u32, u8)>,
}

/// What follows the record of a volume that has limits: for requests and for bytes the rate, 0 if there is none, and the
/// burst. Nothing follows that of one that has none, as it was before there were limits.
#[derive(Serialize, Deserialize)]
struct LimitRecord([(u64, u64); 2]);

/// What follows the limits of a volume that is not of blocks, which are there then even if there are none. Since version
/// 2 of the format.
const FILES: u8 = 1;
const AS_FOUND: u8 = 2;

/// The record of a volume.
pub(crate) fn encode(volume: &Volume) -> Vec<u8> {
    let access = |(subject, access): &(Subject, Access)| match *subject {
        Subject::User(uid) => (0, uid, access.bits()),
        Subject::Group(gid) => (1, gid, access.bits()),
        Subject::Everyone => (2, 0, access.bits()),
    };
    let record = Record {
        name: volume.name.clone(),
        owner: volume.owner,
        blocks: volume.blocks,
        extents: volume.extents.iter().map(|extent| (extent.first.0, extent.count.0)).collect(),
        access: volume.access.iter().map(access).collect(),
    };
    let encoded = postcard::to_allocvec(&record).expect(PLAIN);
    let kind = match volume.kind {
        VolumeKind::Blocks if volume.limits == Limits::default() => return encoded,
        VolumeKind::Blocks => None,
        VolumeKind::Files => Some(FILES),
        VolumeKind::AsFound => Some(AS_FOUND),
    };
    let limit = |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.rate, rate.burst));
    let limits = LimitRecord([limit(volume.limits.requests), limit(volume.limits.bytes)]);
    let mut encoded = postcard::to_extend(&limits, encoded).expect(PLAIN);
    encoded.extend(kind);
    encoded
}

const PLAIN: &str = "a record of plain values always serializes";

/// Bytes that a volume's record takes in the database, roughly.
pub(crate) fn weight(volume: &Volume) -> u64 {
    encode(volume).len() as u64 + 32
}

/// The volume of a record, or what is wrong with it. Whether its extents are its own is not known yet.
fn decode(id: u64, bytes: &[u8], layout: &Layout) -> Result<Volume, String> {
    let (record, rest) = postcard::take_from_bytes::<Record>(bytes).map_err(|error| error.to_string())?;
    let (limits, kind) = limits_and_kind(rest)?;
    check_name(&record.name).map_err(|error| error.to_string())?;
    if record.extents.is_empty() || record.extents.len() > MAX_EXTENTS {
        return Err(format!("it has {} extents", record.extents.len()));
    }
    let extents = record
        .extents
        .iter()
        .map(|&(first, count)| extent(first, count, layout))
        .collect::<Result<Vec<_>, _>>()?;
    let sum = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.count.0));
    if sum != Some(record.blocks) {
        return Err(format!("it has {} blocks, but its extents have another number", record.blocks));
    }
    if record.access.len() > MAX_ENTRIES {
        return Err(format!("it has {} access entries", record.access.len()));
    }
    let access = record.access.iter().map(|entry| access(*entry)).collect::<Result<Vec<_>, _>>()?;
    if access.iter().map(|(subject, _)| *subject).collect::<BTreeSet<_>>().len() != access.len() {
        return Err("it has two access entries for one subject".to_owned());
    }
    Ok(Volume {
        id: VolumeId(id),
        name: record.name,
        owner: record.owner,
        blocks: record.blocks,
        extents,
        access,
        limits,
        kind,
    })
}

fn limits_and_kind(bytes: &[u8]) -> Result<(Limits, VolumeKind), String> {
    if bytes.is_empty() {
        return Ok((Limits::default(), VolumeKind::Blocks));
    }
    let (LimitRecord([requests, moved]), rest) =
        postcard::take_from_bytes(bytes).map_err(|error| format!("its limits: {error}"))?;
    let kind = match rest {
        [] => VolumeKind::Blocks,
        [FILES] => VolumeKind::Files,
        [AS_FOUND] => VolumeKind::AsFound,
        [kind] => return Err(format!("it is of kind {kind}, which this program does not know")),
        _ => return Err("its record is too long".to_owned()),
    };
    let limit = |(rate, burst)| match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err("it has a burst and no rate".to_owned()),
        (rate, burst) => Ok(Some(Rate { rate, burst })),
    };
    let limits = Limits { requests: limit(requests)?, bytes: limit(moved)? };
    if limits == Limits::default() && kind == VolumeKind::Blocks {
        return Err("it has limits that are none".to_owned()); // No record is written so.
    }
    Ok((limits, kind))
}

fn extent(first: u64, count: u64, layout: &Layout) -> Result<LbaRange, String> {
    let unit = layout.unit_blocks();
    LbaRange::new(first, count)
        .filter(|extent| first >= layout.data && extent.end().0 <= layout.data_end())
        .filter(|_| (first - layout.data).is_multiple_of(unit) && count.is_multiple_of(unit))
        .ok_or_else(|| format!("its extent of {count} blocks from {first} does not lie in the data area"))
}

fn access((kind, number, bits): (u8, u32, u8)) -> Result<(Subject, Access), String> {
    let subject = match (kind, number) {
        (0, uid) => Subject::User(uid),
        (1, gid) => Subject::Group(gid),
        (2, 0) => Subject::Everyone,
        _ => return Err("it has an access entry for nobody".to_owned()),
    };
    match Access::from_bits(bits) {
        Some(access) if access != Access::NONE => Ok((subject, access)),
        _ => Err(format!("it has an access entry with bits {bits:#x}")),
    }
}

/// Units of an extent that lies in the data area.
pub(crate) fn run_of(extent: LbaRange, layout: &Layout) -> Run {
    let unit = layout.unit_blocks();
    Run { first: (extent.first.0 - layout.data) / unit, count: extent.count.0 / unit }
}

/// Something that [`Store::check`](crate::Store::check) does not like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A copy of the superblock, 0 at the start of the device, 1 at its end.
    Superblock {
        /// Which copy.
        copy: usize,
        /// What is wrong.
        what: String,
    },
    /// A block of the metadata area, or the database in it.
    Metadata {
        /// What is wrong, and where.
        what: String,
    },
    /// A volume.
    Volume {
        /// Its number.
        id: VolumeId,
        /// What is wrong.
        what: String,
    },
    /// What the running store believes differs from what the device says.
    Accounting {
        /// What is wrong.
        what: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock { copy, what } => write!(f, "superblock copy {copy}: {what}"),
            Self::Metadata { what } => f.write_str(what),
            Self::Volume { id, what } => write!(f, "volume {id}: {what}"),
            Self::Accounting { what } => f.write_str(what),
        }
    }
}

/// The records as volumes, and all that is wrong with them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Inspection {
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) space: Space,
    pub(crate) findings: Vec<Finding>,
}

/// Checks the records by themselves and against each other.
pub(crate) fn inspect(contents: &Contents, layout: &Layout) -> Inspection {
    let mut found =
        Inspection { volumes: BTreeMap::new(), space: Space::new(layout.units), findings: Vec::new() };
    if contents.volumes.len() > MAX_VOLUMES {
        let what = format!("there are {} volumes, the most is {MAX_VOLUMES}", contents.volumes.len());
        found.findings.push(Finding::Accounting { what });
    }
    if contents.next_volume >= 1 << 63 {
        let what = format!("the next volume's number is {}", contents.next_volume);
        found.findings.push(Finding::Accounting { what });
    }
    if contents.next_instance > u64::from(u32::MAX) {
        let what = format!("the next key instance is {}", contents.next_instance);
        found.findings.push(Finding::Accounting { what });
    }
    for (id, record) in &contents.volumes {
        let mut complain = |what| {
            found.findings.push(Finding::Volume { id: VolumeId(*id), what });
        };
        if *id >= contents.next_volume {
            complain("its number was not given out yet".to_owned());
        }
        let volume = match decode(*id, record, layout) {
            Ok(volume) => volume,
            Err(what) => {
                complain(what);
                continue;
            }
        };
        for extent in &volume.extents {
            if !found.space.take(run_of(*extent, layout)) {
                complain(format!("its blocks from {} belong to another extent too", extent.first));
            }
        }
        if found.volumes.contains_key(&volume.name) {
            complain(format!("its name {:?} is another volume's too", volume.name));
        } else {
            found.volumes.insert(volume.name.clone(), volume);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(1 << 15, 12, 16, 1040).unwrap()
    }

    fn volume(id: u64, name: &str, extents: &[(u64, u64)]) -> Volume {
        let layout = layout();
        let extents: Vec<LbaRange> = extents
            .iter()
            .map(|(first, count)| LbaRange::new(layout.data + first * 16, count * 16).unwrap())
            .collect();
        let blocks = extents.iter().map(|extent| extent.count.0).sum();
        let access = vec![(Subject::Everyone, Access::READ), (Subject::User(0), Access::ALL)];
        let limits = Limits::default();
        let kind = VolumeKind::Blocks;
        Volume { id: VolumeId(id), name: name.into(), owner: 5, blocks, extents, access, limits, kind }
    }

    fn findings(volumes: &[Volume]) -> Vec<String> {
        let contents = Contents {
            volumes: volumes.iter().map(|volume| (volume.id.0, encode(volume))).collect(),
            next_volume: 10,
            next_instance: 1,
            lives: 0,
            settled: 0,
            granted: Vec::new(),
        };
        inspect(&contents, &layout()).findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn good_records_come_back() {
        let mut volumes =
            [volume(1, "a", &[(0, 5), (9, 1)]), volume(2, "c", &[(10, 1)]), volume(3, "b", &[(5, 4)])];
        volumes.swap(1, 2);
        volumes[0].kind = VolumeKind::AsFound;
        volumes[1].kind = VolumeKind::Files;
        volumes[1].limits.requests = Some(Rate { rate: 2000, burst: 0 });
        let contents = Contents {
            volumes: volumes.iter().map(|volume| (volume.id.0, encode(volume))).collect(),
            next_volume: 4,
            next_instance: 0,
            lives: 0,
            settled: 0,
            granted: Vec::new(),
        };
        let found = inspect(&contents, &layout());
        assert_eq!(found.findings, []);
        assert!(found.volumes.values().eq(&volumes));
        assert_eq!(found.space.free(), layout().units - 11);
    }

    /// S8-R1, S8-R2, S8-R3: hostile records are each named.
    #[test]
    fn hostile_records_are_found() {
        let good = || volume(1, "a", &[(0, 5)]);
        let layout = layout();
        let altered = |change: &dyn Fn(&mut Volume)| {
            let mut bad = good();
            change(&mut bad);
            findings(&[bad])
        };
        let range = |first, count| LbaRange::new(first, count).unwrap();
        type Case<'a> = (&'a dyn Fn(&mut Volume), &'a str);
        let cases: &[Case<'_>] = &[
            (&|v| v.blocks += 1, "another number"),
            (&|v| v.extents.clear(), "0 extents"),
            (&|v| v.extents = vec![range(0, 80)], "data area"),
            (&|v| v.extents = vec![range(layout.data - 16, 80)], "data area"),
            (&|v| v.extents = vec![range(layout.data + 1, 80)], "data area"),
            (&|v| v.extents = vec![range(layout.data, 81)], "data area"),
            (&|v| v.extents = vec![range(layout.data_end() - 64, 80)], "data area"),
            (&|v| v.extents = vec![range(u64::MAX - 80, 80)], "data area"),
            (&|v| v.extents = vec![range(layout.data, 48), range(layout.data + 32, 32)], "another extent"),
            (&|v| v.extents = vec![range(layout.data, 16); MAX_EXTENTS + 1], "4097 extents"),
            (&|v| v.name = "../x".into(), "cannot name a volume"),
            (&|v| v.id = VolumeId(10), "not given out"),
            (&|v| v.access.push((Subject::User(0), Access::READ)), "one subject"),
            (&|v| v.access.push((Subject::User(1), Access::NONE)), "bits 0x0"),
        ];
        assert_eq!(altered(&|_| {}), [""; 0]);
        for (change, what) in cases {
            let found = altered(change);
            assert!(found.first().is_some_and(|first| first.contains(what)), "{what}: {found:?}");
        }
        assert!(findings(&[good(), volume(2, "b", &[(4, 2)])])[0].contains("volume 2"));
        assert!(findings(&[good(), volume(2, "a", &[(5, 2)])])[0].contains("name"));
    }

    #[test]
    fn cut_and_altered_bytes_never_panic() {
        let layout = layout();
        let record = encode(&volume(1, "a", &[(0, 5), (9, 1)]));
        assert!(decode(1, &record, &layout).is_ok());
        for length in 0..record.len() {
            assert!(decode(1, &record[..length], &layout).is_err());
        }
        for at in 0..record.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut record = record.clone();
                record[at] = value;
                let _ = decode(1, &record, &layout);
            }
        }
        let mut longer = record.clone();
        longer.push(0);
        assert!(decode(1, &longer, &layout).is_err());
        for (limits, what) in
            [([(0, 0), (0, 0)], "limits that are none"), ([(0, 7), (1, 0)], "a burst and no rate")]
        {
            let longer = postcard::to_extend(&LimitRecord(limits), record.clone()).unwrap();
            assert!(decode(1, &longer, &layout).unwrap_err().contains(what));
        }
        let limited = postcard::to_extend(&LimitRecord([(1, 0), (5, 9)]), record).unwrap();
        let limits = decode(1, &limited, &layout).unwrap().limits;
        assert_eq!(limits.bytes, Some(Rate { rate: 5, burst: 9 }));
        for (kind, rest) in [("kind 0", &[0][..]), ("kind 3", &[3]), ("too long", &[1, 0])] {
            let longer = [&limited[..], rest].concat();
            assert!(decode(1, &longer, &layout).unwrap_err().contains(kind));
        }
    }
}
