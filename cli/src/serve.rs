//! `portcullis serve`: the adapter in a process of its own.

use std::io::IsTerminal;

use adapter::daemon::{Serving, serve};
use adapter::{DeviceUri, Format, Options, StartError};
use anyhow::{Context, Result};
use portcullis::default_socket_path;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::arguments::{FormatWhen, ServeOptions, Where};
use crate::output;
use crate::units::show_size;

pub(crate) fn run(options: &ServeOptions, place: &Where) -> Result<()> {
    let uri = place.device.as_deref().context(
        "serve needs to know what to drive: --device emu:256M for a disk in memory, --device vfio:0000:01:00.0 for a real \
         one (`portcullis doctor` lists them)",
    )?;
    let device: DeviceUri = uri.parse()?;
    let filter = EnvFilter::try_from_env("PORTCULLIS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();

    let mut settings = Options::new(device);
    settings.format = match options.format {
        Some(FormatWhen::Blank) => Format::Blank,
        Some(FormatWhen::Force) => Format::Force,
        None if options.as_found => Format::AsFound,
        None => settings.format,
    };
    settings.pollers = options.pollers;
    settings.policy.admin_group = options.admin_group.map(|group| group.0);
    settings.policy.anyone_creates = options.anyone_creates;
    settings.policy.allow_overflow_user = options.allow_overflow_user;
    options.limits.apply(&mut settings.policy);
    settings.confined = !options.unconfined;
    if options.unconfined {
        eprintln!("portcullis: --unconfined: a bug in the adapter reaches all that its user may reach");
    }

    let socket = place.socket.clone().unwrap_or_else(default_socket_path);
    let text = |serving: &Serving| {
        if place.json {
            return format!("{}\n", as_json(serving, &socket.display().to_string()));
        }
        format!(
            "{}listening on {}; Ctrl-C or SIGTERM ends it\nconfined to {}\n",
            as_text(serving),
            socket.display(),
            serving.confinement
        )
    };
    serve(&settings, &socket, |serving| {
        // Nobody may be reading; the adapter serves all the same.
        let _ = output::print(&text(serving));
    })
    .map_err(explain)
}

/// An error of the device's content, with the options that give it a new one.
pub(crate) fn explain(error: StartError) -> anyhow::Error {
    match error {
        StartError::Store { .. } => anyhow::anyhow!(
            "{error} (`portcullis serve --format` formats a blank device, `--format force` any, with the loss of all that is \
             on it, and `--as-found` serves the files of an ext4)"
        ),
        StartError::Os { what: "listening", source } => {
            anyhow::anyhow!("cannot listen: {source}; --socket names another place")
        }
        other => other.into(),
    }
}

fn as_json(serving: &Serving, socket: &str) -> serde_json::Value {
    json!({
        "device": serving.uri,
        "model": serving.model,
        "serial": serving.serial,
        "bytes": serving.bytes,
        "block_size": serving.block_size,
        "volumes": serving.volumes,
        "pollers": serving.pollers,
        "confinement": {
            "no_new_privileges": serving.confinement.no_new_privileges,
            "system_calls": serving.confinement.system_calls,
            "landlock": serving.confinement.landlock,
        },
        "socket": socket,
    })
}

fn as_text(serving: &Serving) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "driving {}: {} (serial {}), {} in blocks of {} bytes, {}, {}\n",
        output::name(&serving.uri),
        output::name(&serving.model),
        output::name(&serving.serial),
        show_size(serving.bytes),
        serving.block_size,
        count(serving.volumes, "volume"),
        count(serving.pollers, "poller"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapter::confine::Confinement;

    #[test]
    fn the_first_lines_say_what_is_driven() {
        let serving = Serving {
            uri: "emu:64M".into(),
            model: "m\u{1b}".into(),
            serial: "s".into(),
            bytes: 64 << 20,
            block_size: 4096,
            volumes: 1,
            pollers: 2,
            confinement: Confinement::default(),
        };
        let text = as_text(&serving);
        assert!(
            text.contains("64 MiB") && text.contains("1 volume, 2 pollers") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert_eq!(as_json(&serving, "/s")["socket"], "/s");
    }
}
