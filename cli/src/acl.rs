//! `portcullis acl`.

use anyhow::{Context, Result, bail};
use portcullis::{Access, Session, Subject, VolumeInfo};
use serde_json::json;

use crate::arguments::{AclCommand, Where};
use crate::connect::connect;
use crate::output;
use crate::subject::{Name, by_number};
use crate::volume::{access_json, access_text, answer, find, revoked_text};

pub(crate) fn run(command: &AclCommand, place: &Where) -> Result<()> {
    let session = connect(place)?;
    match command {
        AclCommand::Show { volume } => {
            let info = find(&session, volume)?;
            let json = json!({ "name": info.name, "owner": info.owner, "access": access_json(&info.access) });
            answer(place, &json, || access_text(&info))
        }
        AclCommand::Grant { volume, subject, rights } => {
            let had = rights_of(&find(&session, volume)?, subject.0);
            set(&session, place, volume, *subject, had | *rights)
        }
        AclCommand::Revoke { volume, subject, rights } => {
            let had = rights_of(&find(&session, volume)?, subject.0);
            if had == Access::NONE {
                bail!(
                    "{subject} has no rights of its own to volume {}: `portcullis acl show` says who has",
                    output::name(volume)
                );
            }
            set(&session, place, volume, *subject, without(had, rights.unwrap_or(Access::ALL)))
        }
    }
}

fn rights_of(volume: &VolumeInfo, subject: Subject) -> Access {
    let entry = volume.access.iter().find(|(other, _)| *other == subject);
    entry.and_then(|(_, bits)| Access::from_bits(*bits)).unwrap_or(Access::NONE)
}

fn without(had: Access, taken: Access) -> Access {
    Access::from_bits(had.bits() & !taken.bits()).unwrap_or(Access::NONE)
}

fn set(session: &Session, place: &Where, volume: &str, subject: Name, access: Access) -> Result<()> {
    let revoked = session.set_access(volume, subject.0, access).with_context(|| {
        format!("cannot set the rights of {subject} to volume {} to {access}", output::name(volume))
    })?;
    let json = json!({
        "name": volume,
        "subject": by_number(subject.0),
        "rights": access.to_string().replace('-', ""),
        "grants_revoked": revoked.grants,
        "grants_draining": revoked.draining,
    });
    answer(place, &json, || {
        let rights = if access == Access::NONE { "no rights".to_owned() } else { access.to_string() };
        let subject = output::name(&subject.to_string());
        format!("{subject} has {rights} to {}{}\n", output::name(volume), revoked_text(revoked))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revoking_takes_only_what_is_named() {
        assert_eq!(without(Access::ALL, Access::WRITE).to_string(), "r-t");
        assert_eq!(without(Access::READ, Access::ALL), Access::NONE);
    }
}
