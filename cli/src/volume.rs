//! `portcullis volume`.

use anyhow::{Context, Result, bail};
use portcullis::{Access, Revoked, Session, Subject, VolumeInfo};
use serde_json::{Value, json};

use crate::arguments::{VolumeCommand, Where};
use crate::connect::connect;
use crate::files::space_json;
use crate::limit::{bytes_text, rate_json, requests_text};
use crate::output;
use crate::subject::{Name, by_number, user_name};
use crate::units::show_size;

pub(crate) fn run(command: &VolumeCommand, place: &Where) -> Result<()> {
    let session = connect(place)?;
    match command {
        VolumeCommand::Create { name, size } => {
            let volume = session
                .create_volume(name, *size)
                .with_context(|| format!("cannot create volume {}", output::name(name)))?;
            answer(place, &as_json(&volume), || {
                format!("created {} of {}\n", output::name(&volume.name), show_size(volume.bytes))
            })
        }
        VolumeCommand::Format { name, force } => {
            let space = session
                .files()?
                .format(name, *force)
                .with_context(|| format!("cannot make a file system in volume {}", output::name(name)))?;
            answer(place, &space_json(name, &space), || {
                format!("{} holds files now, {} of them\n", output::name(name), show_size(space.available))
            })
        }
        VolumeCommand::List => list(&session, place),
        VolumeCommand::Show { name } => {
            let volume = find(&session, name)?;
            answer(place, &as_json(&volume), || as_text(&volume))
        }
        VolumeCommand::Resize { name, size, shrink } => resize(&session, place, name, *size, *shrink),
        VolumeCommand::Rename { from, to } => {
            session.rename_volume(from, to).with_context(|| {
                format!("cannot rename volume {} to {}", output::name(from), output::name(to))
            })?;
            answer(place, &json!({ "from": from, "to": to }), || {
                format!("renamed {} to {}\n", output::name(from), output::name(to))
            })
        }
        VolumeCommand::Delete { name } => {
            let revoked = session
                .delete_volume(name)
                .with_context(|| format!("cannot delete volume {}", output::name(name)))?;
            answer(place, &revoked_json(name, revoked), || {
                format!("deleted {}{}\n", output::name(name), revoked_text(revoked))
            })
        }
    }
}

/// Prints one of the two.
pub(crate) fn answer(place: &Where, json: &Value, text: impl FnOnce() -> String) -> Result<()> {
    if place.json { output::print_json(json) } else { output::print(&text()) }
}

/// A volume with its access list.
pub(crate) fn find(session: &Session, name: &str) -> Result<VolumeInfo> {
    session.volume_info(name).with_context(|| format!("cannot show volume {}", output::name(name)))
}

pub(crate) fn revoked_json(name: &str, revoked: Revoked) -> Value {
    json!({ "name": name, "grants_revoked": revoked.grants, "grants_draining": revoked.draining })
}

pub(crate) fn revoked_text(revoked: Revoked) -> String {
    match revoked {
        Revoked { grants: 0, .. } => String::new(),
        Revoked { grants, draining: 0 } => format!("; {grants} open grants were revoked"),
        Revoked { grants, draining } => {
            format!("; {grants} open grants were revoked, requests of {draining} are still running out")
        }
    }
}

fn list(session: &Session, place: &Where) -> Result<()> {
    let volumes = session.volumes().collect::<Result<Vec<_>, _>>().context("cannot list the volumes")?;
    if place.json {
        return output::print_json(&volumes.iter().map(summary_json).collect());
    }
    if volumes.is_empty() {
        return output::print("There are no volumes. Make one: portcullis volume create NAME SIZE\n");
    }
    let rows: Vec<Vec<String>> = volumes
        .iter()
        .map(|volume| {
            vec![
                output::name(&volume.name),
                show_size(volume.bytes),
                owner(volume.owner),
                volume.extents.to_string(),
                volume.grants.to_string(),
            ]
        })
        .collect();
    output::print(&output::table(&["NAME", "SIZE", "OWNER", "EXTENTS", "OPEN"], &rows))
}

fn resize(session: &Session, place: &Where, name: &str, size: u64, shrink: bool) -> Result<()> {
    let before = find(session, name)?;
    if size < before.bytes && !shrink {
        bail!(
            "volume {} has {} bytes: {size} would cut off its end, and what is there is lost; say --shrink if that is meant",
            output::name(name),
            before.bytes
        );
    }
    let volume = session
        .resize_volume(name, size)
        .with_context(|| format!("cannot resize volume {} to {size} bytes", output::name(name)))?;
    answer(place, &as_json(&volume), || {
        format!(
            "resized {} from {} to {}\n",
            output::name(name),
            show_size(before.bytes),
            show_size(volume.bytes)
        )
    })
}

fn owner(id: u32) -> String {
    user_name(id).map_or_else(|| id.to_string(), |name| output::name(&name))
}

/// The rights of an access list entry, as letters.
pub(crate) fn rights(bits: u8) -> String {
    Access::from_bits(bits).map_or_else(|| format!("{bits:#x}"), |access| access.to_string())
}

fn summary_json(volume: &VolumeInfo) -> Value {
    json!({
        "name": volume.name,
        "bytes": volume.bytes,
        "owner": { "uid": volume.owner, "name": user_name(volume.owner) },
        "extents": volume.extents,
        "open": volume.grants,
    })
}

/// The access list as a script reads it.
pub(crate) fn access_json(access: &[(Subject, u8)]) -> Value {
    access
        .iter()
        .map(|(subject, bits)| {
            json!({
                "subject": by_number(*subject),
                "name": Name(*subject).to_string(),
                "rights": rights(*bits).replace('-', ""),
            })
        })
        .collect()
}

fn as_json(volume: &VolumeInfo) -> Value {
    let mut json = summary_json(volume);
    json["access"] = access_json(&volume.access);
    json["iops"] = rate_json(volume.limits.requests);
    json["bandwidth"] = rate_json(volume.limits.bytes);
    json
}

/// The access list as a person reads it.
pub(crate) fn access_text(volume: &VolumeInfo) -> String {
    let mut rows = vec![vec![format!("user:{}", owner(volume.owner)), "owner".to_owned()]];
    rows.extend(
        volume
            .access
            .iter()
            .map(|(subject, bits)| vec![output::name(&Name(*subject).to_string()), rights(*bits)]),
    );
    output::table(&["WHO", "RIGHTS"], &rows)
}

fn as_text(volume: &VolumeInfo) -> String {
    let requests = volume.limits.requests.map(|rate| format!("iops     at most {}\n", requests_text(rate)));
    let bytes = volume.limits.bytes.map(|rate| format!("bytes    at most {}\n", bytes_text(rate)));
    format!(
        "name     {}\nsize     {} ({} bytes)\nextents  {}\nopen     {}\n{}{}\n{}",
        output::name(&volume.name),
        show_size(volume.bytes),
        volume.bytes,
        volume.extents,
        volume.grants,
        requests.unwrap_or_default(),
        bytes.unwrap_or_default(),
        access_text(volume)
    )
}

#[cfg(test)]
mod tests {
    use portcullis::{Rate, Rates};

    use super::*;

    fn volume() -> VolumeInfo {
        VolumeInfo {
            name: "v".into(),
            bytes: 1 << 20,
            owner: 0,
            access: vec![(Subject::User(4_000_000_000), 3), (Subject::Everyone, 1)],
            extents: 1,
            grants: 2,
            limits: Rates { requests: Some(Rate { rate: 2000, burst: 0 }), bytes: None },
        }
    }

    #[test]
    fn json_has_what_a_script_needs() {
        let json = as_json(&volume());
        assert_eq!(json["bytes"], 1 << 20);
        assert_eq!(json["owner"]["uid"], 0);
        assert_eq!(json["access"][0]["subject"], "user:4000000000");
        assert_eq!(json["access"][0]["rights"], "rw");
        assert_eq!((&json["iops"]["rate"], &json["bandwidth"]), (&json!(2000), &Value::Null));
        assert_eq!(json["access"][1], json!({ "subject": "everyone", "name": "everyone", "rights": "r" }));
    }

    #[test]
    fn text_shows_owner_and_rights() {
        let text = as_text(&volume());
        for part in
            ["1 MiB", "at most 2000", "user:root", "owner", "user:4000000000", "rw-", "everyone", "r--"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(revoked_text(Revoked { grants: 2, draining: 1 }).contains("2 open grants"));
        assert_eq!(revoked_text(Revoked::default()), "");
    }
}
