//! A backup that somebody else wrote, from `docs/FORMAT.md` alone: its worked example.

use std::collections::BTreeMap;
use std::path::Path;

use backup_tests::host::Host;

use crate::BACKUP;

/// The identity of the vectors.
fn identity() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/v1/vectors.json");
    let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    vectors["identity"].as_str().unwrap().to_owned()
}

/// The volume and the manifest of the page: the lines of its dump, with the header and the zeros that the dump leaves out.
fn example() -> (Vec<u8>, String) {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/FORMAT.md")).unwrap();
    let (_, example) = page.split_once("\n## A worked example\n").unwrap();
    let mut blocks = example.split("```json\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let (header, manifest) = (blocks.next().unwrap().trim_end(), blocks.next().unwrap());
    let (_, dump) = example.split_once("The volume, ").unwrap();
    let len: usize = dump.split_once(' ').unwrap().0.parse().unwrap();
    let (dump, _) = dump.split_once("```text\n").unwrap().1.split_once("```").unwrap();
    let mut pieces = BTreeMap::new();
    for line in dump.lines() {
        let (offset, rest) = line.trim_start().split_once("  ").unwrap();
        let hex = rest.split("  ").next().unwrap();
        let bytes: Vec<u8> = hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        pieces.insert(offset.parse::<usize>().unwrap(), bytes);
    }
    pieces.insert(12, header.as_bytes().to_vec());
    let mut volume = vec![0; len];
    for (offset, bytes) in pieces {
        volume[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    (volume, manifest.to_owned())
}

#[test]
fn the_worked_example_is_restored_shown_and_verified() {
    let mut host = Host::initialised(BACKUP);
    host.set("BACKUP_IDENTITY_FILE", host.path("key.txt"));
    let key = host.write("key.txt", identity());
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (volume, manifest) = example();
    let folder = "repository/app/backups/20261122T020000Z-vectorsvectorsve";
    host.write(format!("{folder}/dump.00000.vol"), volume);
    host.write(format!("{folder}/manifest.json"), manifest);

    assert_eq!(host.backup(["restore", "app", "--to-stdout"]).run().succeeded().stdout(), b"a");
    let shown = host.backup(["show", "app", "--json"]).run().json();
    assert_eq!((&shown["authenticated"], &shown["details"]), (&true.into(), &serde_json::Value::Null));
    host.backup(["show", "app"]).run().succeeded();
    for arguments in [&["verify", "app"][..], &["verify", "app", "--deep"]] {
        host.backup(arguments).run().succeeded();
    }
}
