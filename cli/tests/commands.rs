//! The command as a person uses it: an adapter on the embedded device, and the other commands against it.
#![allow(clippy::unwrap_used)] // helpers of tests

mod served;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;
use served::{Adapter, PORTCULLIS, data, text, write};

#[test]
fn volumes_are_made_listed_resized_renamed_and_deleted() {
    let adapter = Adapter::start("emu:64M");
    assert!(adapter.first_lines[0].starts_with("driving emu:"), "{:?}", adapter.first_lines);
    assert!(adapter.first_lines[1].contains("p.sock"), "{:?}", adapter.first_lines);
    assert!(adapter.run(&["volume", "list"]).contains("no volumes"));

    adapter.run(&["volume", "create", "notes", "1M"]);
    let made = adapter.json(&["volume", "create", "logs", "2M"]);
    assert_eq!(made["bytes"], 2 << 20);
    let names: Vec<Value> =
        adapter.json(&["volume", "list"]).as_array().unwrap().iter().map(|v| v["name"].clone()).collect();
    assert_eq!(names, ["logs", "notes"]);
    assert!(adapter.fail(&["volume", "create", "logs", "1M"]).contains("E_EXISTS"));
    assert!(adapter.fail(&["volume", "create", "a/b", "1M"]).contains("a/b"));

    assert!(adapter.fail(&["volume", "resize", "logs", "1M"]).contains("--shrink"));
    adapter.run(&["volume", "resize", "logs", "1M", "--shrink"]);
    adapter.run(&["volume", "resize", "logs", "4M"]);
    adapter.run(&["volume", "rename", "logs", "old"]);
    assert_eq!(adapter.json(&["volume", "show", "old"])["bytes"], 4 << 20);
    assert!(adapter.fail(&["volume", "show", "logs"]).contains("E_NO_RESOURCE"));
    adapter.run(&["volume", "delete", "old"]);
    assert!(!adapter.run(&["volume", "list"]).contains("old"));

    let device = adapter.json(&["device", "show"]);
    assert_eq!(device["volumes"][0]["name"], "notes");
    assert!(!device["metadata"].as_array().unwrap().is_empty(), "the administrator is told: {device}");
}

#[test]
fn rights_are_granted_and_revoked() {
    let adapter = Adapter::start("emu:64M");
    adapter.run(&["volume", "create", "v", "1M"]);
    adapter.run(&["acl", "grant", "v", "user:4000000", "r"]);
    adapter.run(&["acl", "grant", "v", "user:4000000", "wt"]);
    let rights = |adapter: &Adapter| adapter.json(&["acl", "show", "v"])["access"].clone();
    assert_eq!(rights(&adapter)[0]["subject"], "user:4000000");
    assert_eq!(rights(&adapter)[0]["rights"], "rwt");
    adapter.run(&["acl", "revoke", "v", "user:4000000", "w"]);
    assert_eq!(rights(&adapter)[0]["rights"], "rt");
    adapter.run(&["acl", "revoke", "v", "user:4000000"]);
    assert_eq!(rights(&adapter).as_array().unwrap().len(), 0);
    assert!(adapter.fail(&["acl", "revoke", "v", "everyone"]).contains("everyone"));
}

#[test]
fn limits_are_set_shown_and_cleared() {
    let adapter = Adapter::start("emu:64M");
    adapter.run(&["volume", "create", "v", "1M"]);
    assert!(adapter.run(&["limit", "show"]).contains("portcullis limit set"));
    let set = adapter.json(&["limit", "set", "v", "--iops", "2000", "--bandwidth", "100M"]);
    assert_eq!((&set["volume"], &set["iops"]["rate"]), (&"v".into(), &2000.into()));
    let text = adapter.run(&["limit", "set", "v", "--iops", "3000", "--iops-burst", "10"]);
    assert!(text.contains("3000, 10 at once") && text.contains("100 MiB/s"), "the other one stays: {text}");
    adapter.run(&["limit", "set", "--user", "root", "--weight", "50"]);
    let shown = adapter.json(&["limit", "show"]);
    assert_eq!((&shown[0]["bandwidth"]["rate"], &shown[1]["weight"]), (&(100 << 20).into(), &50.into()));
    assert_eq!(shown[1]["user"], 0);
    assert!(adapter.run(&["limit", "show"]).contains("user:root"));
    assert!(adapter.run(&["volume", "show", "v"]).contains("at most 3000"));
    assert_eq!(adapter.json(&["volume", "show", "v"])["iops"]["burst"], 10);
    adapter.run(&["limit", "clear", "v"]);
    adapter.run(&["limit", "clear", "--user", "root"]);
    assert_eq!(adapter.json(&["limit", "show"]).as_array().unwrap().len(), 0);

    assert!(adapter.fail(&["limit", "set", "v"]).contains("--iops"));
    assert!(adapter.fail(&["limit", "set", "none", "--iops", "1"]).contains("E_NO_RESOURCE"));
    assert!(adapter.fail(&["limit", "set", "--session", "99", "--iops", "1"]).contains("no session 99"));
    let output = adapter.run_with(&["limit", "set", "v", "--user", "root", "--iops", "1"], b"");
    assert_eq!(output.status.code(), Some(2), "one of them");
}

#[test]
fn files_go_in_and_come_out_as_they_were() {
    let adapter = Adapter::start("emu:64M");
    adapter.run(&["volume", "create", "v", "4M"]);
    adapter.run(&["volume", "create", "w", "4M"]);
    let bytes = data(3_000_001);
    let file = write(&adapter.path("in.bin"), &bytes);
    let output = adapter.run_with(&["cp", &file, "v:"], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("cp --bytes 3000001 v: FILE"), "{}", text(&output.stderr));

    adapter.run(&["cp", "--bytes", "3000001", "v:", "out.bin"]);
    assert!(fs::read(adapter.path("out.bin")).unwrap() == bytes);
    adapter.run(&["cp", "v:", "whole.img", "--depth", "3", "--chunk", "100000"]);
    let whole = fs::read(adapter.path("whole.img")).unwrap();
    assert_eq!(whole.len(), 4 << 20);
    assert!(whole[..bytes.len()] == bytes && whole[bytes.len()..].iter().all(|byte| *byte == 0));

    // From volume to volume, at an offset, and through a pipe.
    let copied = adapter.json(&["cp", "v:@4k", "w:@8k", "--bytes", "1M"]);
    assert_eq!((copied["bytes"].as_u64(), copied["padding"].as_u64()), (Some(1 << 20), Some(0)));
    let output = adapter.run_with(&["cp", "w:@8k", "-", "--bytes", "1M"], b"");
    assert!(output.status.success() && output.stdout == whole[4096..4096 + (1 << 20)]);
    let output = adapter.run_with(&["cp", "-", "w:"], b"hello");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = adapter.run_with(&["cp", "w:", "-", "--bytes", "5", "--quiet"], b"");
    assert_eq!((output.stdout, output.stderr), (b"hello".to_vec(), Vec::new()));
}

#[test]
fn copies_that_cannot_be_are_refused_with_the_reason() {
    let adapter = Adapter::start("emu:64M");
    adapter.run(&["volume", "create", "v", "1M"]);
    let large = write(&adapter.path("large.bin"), &data((1 << 20) + 1));
    assert!(adapter.fail(&["cp", &large, "v:"]).contains("portcullis volume resize v 1048577"));
    assert!(adapter.fail(&["cp", &large, "v:@100"]).contains("block size"));
    assert!(adapter.fail(&["cp", "v:@2M", "x"]).contains("beyond"));
    assert!(adapter.fail(&["cp", "v:", "x", "--bytes", "2M"]).contains("1048576"));
    assert!(adapter.fail(&["cp", "none:", "x"]).contains("E_NO_RESOURCE"));
    assert!(adapter.fail(&["cp", "a", "b"]).contains("VOLUME:"));
    assert!(adapter.fail(&["cp", "missing.bin", "v:"]).contains("missing.bin"));
    let output = adapter.run_with(&["cp", "-", "v:"], &data((1 << 20) + 1));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("more bytes came"), "{}", text(&output.stderr));
}

#[test]
fn nobody_at_the_socket_is_told_with_what_to_do() {
    let output =
        Command::new(PORTCULLIS).args(["volume", "list", "--socket", "/nowhere/p.sock"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("/nowhere/p.sock") && error.contains("portcullis serve"), "{error}");
    assert_eq!(error.matches("os error 2").count(), 1, "said once: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");

    let output = Command::new(PORTCULLIS)
        .args(["serve", "--device", "emu:16M", "--socket", "/nowhere/p.sock"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("/nowhere/p.sock") && error.contains("--socket"), "{error}");

    let output = Command::new(PORTCULLIS).args(["serve", "--device", "floppy:"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("emu:SIZE"), "{}", text(&output.stderr));
}

#[test]
fn a_bench_measures_both_paths_and_leaves_nothing() {
    let adapter = Adapter::start("emu:64M");
    let arguments = ["bench", "randwrite", "--depth", "1,4", "--seconds", "0.2", "--size", "4M"];
    let result = adapter.json(&arguments);
    let rows = result["rows"].as_array().unwrap();
    let of = |path: &str| rows.iter().filter(|row| row["path"] == path).count();
    assert_eq!(of("portcullis"), 2);
    assert!(of("kernel") == 2 || result["kernel_left_out"].is_string(), "{result}");
    for row in rows {
        assert!(row["requests"].as_u64().unwrap() > 0 && row["iops"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert_eq!(adapter.json(&["volume", "list"]).as_array().unwrap().len(), 0);

    adapter.run(&["volume", "create", "v", "1M"]);
    assert!(adapter.fail(&["bench", "write", "--volume", "v"]).contains("--overwrite"));
    let table =
        adapter.run(&["bench", "read", "--volume", "v", "--size", "1M", "--seconds", "0.1", "--no-kernel"]);
    assert!(table.contains("IOPS") && table.contains("--no-kernel"), "{table}");
}

#[test]
fn sigterm_ends_the_adapter_well_and_takes_its_socket_along() {
    let mut adapter = Adapter::start("emu:64M");
    adapter.run(&["volume", "create", "v", "1M"]);
    let pid = rustix::process::Pid::from_child(&adapter.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(adapter.child.wait().unwrap().success());
    assert!(!adapter.path("p.sock").exists());
    assert!(adapter.fail(&["volume", "list"]).contains("portcullis serve"));
}

#[test]
fn an_image_file_is_formatted_once_and_keeps_its_volumes() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let device = format!("emu:{}", image.display());
    let socket = directory.path().join("p.sock");
    let serve = |format: Option<&str>| {
        let mut command = Command::new(PORTCULLIS);
        command.args(["serve", "--device", &device, "--socket"]).arg(&socket).args(format);
        command.env("PORTCULLIS_LOG", "warn").stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let blank = serve(None).wait_with_output().unwrap();
    assert_eq!(blank.status.code(), Some(1));
    assert!(text(&blank.stderr).contains("--format"), "{}", text(&blank.stderr));

    for (format, already) in [(Some("--format"), 0), (None, 1), (Some("--format"), 2)] {
        let mut child = serve(format);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.take(2).count(), 2, "serve did not start");
        let run = |arguments: &[&str]| {
            let output =
                Command::new(PORTCULLIS).args(arguments).arg("--socket").arg(&socket).output().unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
            text(&output.stdout)
        };
        let volumes: Value = serde_json::from_str(&run(&["volume", "list", "--json"])).unwrap();
        assert_eq!(volumes.as_array().unwrap().len(), already);
        run(&["volume", "create", &format!("v{already}"), "1M"]);
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn one_command_can_drive_the_device_itself() {
    let output =
        Command::new(PORTCULLIS).args(["device", "show", "--device", "emu:16M", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let device: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = device["blocks"].as_u64().unwrap() * device["block_size"].as_u64().unwrap();
    assert_eq!(bytes, 16 << 20);
}
