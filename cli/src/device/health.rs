//! `portcullis device health`.

use portcullis::{ErrorInfo, HealthInfo};
use serde_json::{Value, json};

use crate::output;

/// A device of NVMe counts data in units of 1000 blocks of 512 bytes (Base 2.0, 5.16.1.3).
const UNIT: u128 = 512_000;
/// 0 degrees Celsius, as NVMe rounds it.
const ZERO_CELSIUS: i32 = 273;

/// Bits of the critical warning.
const WARNINGS: [&str; 6] = [
    "spare capacity is below its threshold",
    "the temperature is beyond a threshold",
    "reliability is degraded",
    "the medium is read-only",
    "the backup of volatile memory failed",
    "the persistent memory region is read-only or unreliable",
];

fn warnings(bits: u8) -> Vec<String> {
    let known = WARNINGS.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0);
    let mut warnings: Vec<String> = known.map(|(_, text)| (*text).to_owned()).collect();
    if bits >> WARNINGS.len() != 0 {
        warnings.push(format!("unknown ({bits:#04x})"));
    }
    warnings
}

fn celsius(kelvins: u16) -> i32 {
    i32::from(kelvins) - ZERO_CELSIUS
}

/// A number as JSON keeps it: as a text where it does not fit 64 bits.
fn number(value: u128) -> Value {
    u64::try_from(value).map_or_else(|_| json!(value.to_string()), |value| json!(value))
}

pub(super) fn as_json(health: &HealthInfo) -> Value {
    let sensors: Vec<Value> = health
        .temperature_sensors
        .iter()
        .map(|&k| if k == 0 { Value::Null } else { json!(celsius(k)) })
        .collect();
    json!({
        "device": health.uri,
        "critical_warning": health.critical_warning,
        "warnings": warnings(health.critical_warning),
        "endurance_group_critical_warning": health.endurance_group_warning,
        "temperature_kelvin": health.temperature,
        "temperature_celsius": celsius(health.temperature),
        "temperature_sensors_celsius": sensors,
        "available_spare_percent": health.available_spare,
        "available_spare_threshold_percent": health.spare_threshold,
        "percentage_used": health.percentage_used,
        "data_units_read": number(health.data_units_read),
        "data_units_written": number(health.data_units_written),
        "host_read_commands": number(health.host_read_commands),
        "host_write_commands": number(health.host_write_commands),
        "controller_busy_minutes": number(health.controller_busy_minutes),
        "power_cycles": number(health.power_cycles),
        "power_on_hours": number(health.power_on_hours),
        "unsafe_shutdowns": number(health.unsafe_shutdowns),
        "media_errors": number(health.media_errors),
        "error_log_entries": number(health.error_log_entries),
        "warning_temperature_minutes": health.warning_temperature_minutes,
        "critical_temperature_minutes": health.critical_temperature_minutes,
        "thermal_transitions": health.thermal_transitions,
        "thermal_seconds": health.thermal_seconds,
        "errors": health.errors.iter().map(error_as_json).collect::<Vec<_>>(),
    })
}

fn error_as_json(error: &ErrorInfo) -> Value {
    json!({
        "count": error.count,
        "queue": error.queue,
        "command": error.command,
        "status": error.status >> 1,
        "phase": error.status & 1,
        "parameter": error.parameter,
        "lba": error.lba,
        "namespace": error.namespace,
        "vendor_log": error.vendor_log,
        "command_specific": error.command_specific,
    })
}

pub(super) fn as_text(health: &HealthInfo) -> String {
    let warnings = warnings(health.critical_warning);
    let warnings = if warnings.is_empty() { "none".to_owned() } else { warnings.join("; ") };
    let temperature = format!("{} °C", celsius(health.temperature));
    let sensors = health.temperature_sensors.iter().enumerate().filter(|(_, kelvins)| **kelvins != 0);
    let sensors =
        sensors.map(|(i, &kelvins)| (format!("  sensor {}", i + 1), format!("{} °C", celsius(kelvins))));
    let units = |count: u128| format!("{count} ({})", bytes(count));
    let mut rows = vec![
        ("device".to_owned(), output::name(&health.uri)),
        ("critical warnings".to_owned(), warnings),
        ("temperature".to_owned(), temperature),
    ];
    rows.extend(sensors);
    let spare = format!("{} % (warns below {} %)", health.available_spare, health.spare_threshold);
    let rest: [(&str, String); 15] = [
        ("available spare", spare),
        ("percentage used", format!("{} %", health.percentage_used)),
        ("data units read", units(health.data_units_read)),
        ("data units written", units(health.data_units_written)),
        ("read commands", health.host_read_commands.to_string()),
        ("write commands", health.host_write_commands.to_string()),
        ("busy", format!("{} min", health.controller_busy_minutes)),
        ("power cycles", health.power_cycles.to_string()),
        ("power on", format!("{} h", health.power_on_hours)),
        ("unsafe shutdowns", health.unsafe_shutdowns.to_string()),
        ("media errors", health.media_errors.to_string()),
        ("error log entries", health.error_log_entries.to_string()),
        ("too warm", format!("{} min", health.warning_temperature_minutes)),
        ("far too warm", format!("{} min", health.critical_temperature_minutes)),
        (
            "slowed by heat",
            format!(
                "{} and {} times, {} and {} s",
                health.thermal_transitions[0],
                health.thermal_transitions[1],
                health.thermal_seconds[0],
                health.thermal_seconds[1]
            ),
        ),
    ];
    rows.extend(rest.map(|(what, value)| (what.to_owned(), value)));
    let mut text: String = rows.iter().map(|(what, value)| format!("{what:20}{value}\n")).collect();
    if !health.errors.is_empty() {
        let row = |error: &ErrorInfo| {
            vec![
                error.count.to_string(),
                error.queue.to_string(),
                error.command.to_string(),
                format!("{:#05x}", error.status >> 1),
                error.lba.to_string(),
                error.namespace.to_string(),
            ]
        };
        let rows: Vec<Vec<String>> = health.errors.iter().map(row).collect();
        text.push('\n');
        text.push_str(&output::table(&["ERROR", "QUEUE", "COMMAND", "STATUS", "LBA", "NAMESPACE"], &rows));
    }
    text
}

/// Data units as bytes, in the powers of 1000 that makers of disks count in.
fn bytes(units: u128) -> String {
    const NAMES: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    let mut value = units.saturating_mul(UNIT);
    let (mut tenths, mut name) = (0, 0);
    while value >= 1000 && name + 1 < NAMES.len() {
        (tenths, value, name) = (value % 1000 / 100, value / 1000, name + 1);
    }
    format!("{value}.{tenths} {}", NAMES[name])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> HealthInfo {
        HealthInfo {
            uri: "vfio:x\u{1b}".into(),
            critical_warning: 0b1000_0101,
            temperature: 323,
            temperature_sensors: [300, 0, 0, 0, 0, 0, 0, 0],
            available_spare: 99,
            spare_threshold: 10,
            percentage_used: 7,
            data_units_read: 2000,
            data_units_written: u128::MAX,
            errors: vec![ErrorInfo {
                count: 3,
                queue: 1,
                command: 9,
                status: 0x4005,
                lba: 8,
                ..ErrorInfo::default()
            }],
            ..HealthInfo::default()
        }
    }

    #[test]
    fn text_says_what_is_wrong() {
        let text = as_text(&health());
        for part in [
            "spare capacity is below its threshold; reliability is degraded; unknown (0x85)",
            "temperature         50 °C\n  sensor 1          27 °C\n",
            "99 % (warns below 10 %)",
            "percentage used     7 %",
            "2000 (1.0 GB)",
            "3      1      9        0x2002  8",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn json_keeps_every_number() {
        let json = as_json(&health());
        assert_eq!(json["temperature_celsius"], 50);
        assert_eq!(json["temperature_sensors_celsius"][0], 27);
        assert_eq!(json["temperature_sensors_celsius"][1], Value::Null);
        assert_eq!(json["data_units_read"], 2000);
        assert_eq!(json["data_units_written"], u128::MAX.to_string());
        assert_eq!((&json["errors"][0]["status"], &json["errors"][0]["phase"]), (&json!(0x2002), &json!(1)));
        assert_eq!(json["warnings"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn units_are_shown_as_bytes() {
        assert_eq!((bytes(0), bytes(1), bytes(1999)), ("0.0 B".into(), "512.0 kB".into(), "1.0 GB".into()));
        assert!(bytes(u128::MAX).ends_with("YB"));
    }
}
