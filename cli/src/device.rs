//! `portcullis device`.

mod health;

use anyhow::Result;
use portcullis::{DeviceInfo, Statistics};
use serde_json::{Value, json};

use crate::arguments::{DeviceCommand, Where};
use crate::connect::connect;
use crate::output;
use crate::units::show_size;

pub(crate) fn run(command: &DeviceCommand, place: &Where) -> Result<()> {
    match command {
        DeviceCommand::Show => show(place),
        DeviceCommand::Health => show_health(place),
    }
}

fn show_health(place: &Where) -> Result<()> {
    let health = connect(place)?.device_health()?;
    if place.json {
        return output::print_json(&health::as_json(&health));
    }
    output::print(&health::as_text(&health))
}

fn show(place: &Where) -> Result<()> {
    let session = connect(place)?;
    let device = session.device_info()?;
    if place.json {
        return output::print_json(&as_json(&device, &session.statistics()?));
    }
    output::print(&as_text(&device))
}

fn ranges(ranges: &[(u64, u64)]) -> Value {
    ranges.iter().map(|(first, blocks)| json!({ "first_block": first, "blocks": blocks })).collect()
}

fn as_json(device: &DeviceInfo, in_use: &Statistics) -> Value {
    let volumes: Vec<Value> = device
        .volumes
        .iter()
        .map(|(name, extents)| json!({ "name": name, "extents": ranges(extents) }))
        .collect();
    json!({
        "uri": device.uri,
        "model": device.model,
        "serial": device.serial,
        "firmware": device.firmware,
        "block_size": device.block_size,
        "blocks": device.blocks,
        "free_blocks": device.free_blocks,
        "max_transfer": device.max_transfer,
        "write_cache": device.write_cache,
        "metadata": ranges(&device.metadata),
        "volumes": volumes,
        "in_use": {
            "sessions": in_use.sessions.len(),
            "queues": in_use.sessions.iter().map(|session| u64::from(session.queues)).sum::<u64>(),
            "entries": in_use.entries,
            "lba_entries": in_use.lba_entries,
            "regions": in_use.regions,
            "pinned_bytes": in_use.pinned_bytes,
            "mappings": in_use.mappings,
            "mappings_left": in_use.mappings_left,
        },
    })
}

fn as_text(device: &DeviceInfo) -> String {
    let size = |blocks: u64| show_size(blocks.saturating_mul(u64::from(device.block_size)));
    let mut text = format!(
        "device        {}\nmodel         {}\nserial        {}\nfirmware      {}\nsize          {} ({} blocks of {} bytes)\n\
         free          {}\nlargest I/O   {}\nwrite cache   {}\n",
        output::name(&device.uri),
        output::name(&device.model),
        output::name(&device.serial),
        output::name(&device.firmware),
        size(device.blocks),
        device.blocks,
        device.block_size,
        size(device.free_blocks),
        show_size(device.max_transfer),
        if device.write_cache { "yes: writes are durable after a flush" } else { "no" },
    );
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |what: String, &(first, blocks): &(u64, u64)| {
        rows.push(vec![what, first.to_string(), blocks.to_string(), size(blocks)]);
    };
    device.metadata.iter().for_each(|range| row("(the adapter's own)".to_owned(), range));
    for (name, extents) in &device.volumes {
        extents.iter().for_each(|range| row(output::name(name), range));
    }
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&output::table(&["VOLUME", "FIRST BLOCK", "BLOCKS", "SIZE"], &rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceInfo {
        DeviceInfo {
            uri: "emu:16M".into(),
            model: "bad\u{1b}[31m".into(),
            serial: "1".into(),
            firmware: "2".into(),
            block_size: 4096,
            blocks: 4096,
            free_blocks: 1024,
            max_transfer: 1 << 20,
            write_cache: true,
            metadata: vec![(0, 64)],
            volumes: vec![("v".into(), vec![(64, 256)])],
        }
    }

    #[test]
    fn json_names_the_metadata_and_the_extents() {
        let in_use = Statistics { mappings: 7, mappings_left: Some(9), ..Statistics::default() };
        let json = as_json(&device(), &in_use);
        assert_eq!((&json["in_use"]["mappings"], &json["in_use"]["mappings_left"]), (&json!(7), &json!(9)));
        assert_eq!(json["metadata"][0], json!({ "first_block": 0, "blocks": 64 }));
        assert_eq!(json["volumes"][0]["extents"][0]["first_block"], 64);
    }

    #[test]
    fn what_the_device_says_is_escaped() {
        let text = as_text(&device());
        assert!(!text.contains('\u{1b}') && text.contains("16 MiB"), "{text}");
    }
}
