//! What scripts read: JSON, exit codes, and a standard output that does not take what is written.

use backup_tests::data::Data;
use backup_tests::host::Host;
use serde_json::{Value, json};

use crate::BACKUP;

/// The fields of an object.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn json_documents_have_the_fields_that_are_promised() {
    let host = Host::new(BACKUP);
    let init = host.backup(["init", "--json"]).run().json();
    assert_eq!((&init["version"], &init["created"], &init["conditional_put"]), (&json!(1), &json!(true), &json!(true)));
    assert_eq!(init["identity_file"], host.identity_file().display().to_string());
    let recipient = init["recipients"][0].as_str().expect("a recipient").to_owned();

    let id = host.save("app", vec![b'x'; 3000]);
    let list = host.backup(["list", "--json"]).run().json();
    assert_eq!(list["version"], 1);
    assert_eq!((&list["unreadable"], &list["unfinished"]), (&json!([]), &json!([])));
    let backup = &list["backups"][0];
    assert_eq!(
        keys(backup),
        [
            "bytes",
            "condition",
            "data_key",
            "finished",
            "id",
            "kind",
            "pins",
            "program_version",
            "recipients",
            "requires",
            "signer",
            "started",
            "stored_bytes",
            "streams",
            "target",
            "warnings"
        ]
    );
    assert_eq!((&backup["id"], &backup["target"], &backup["kind"]), (&json!(id), &json!("app"), &json!("stream")));
    assert_eq!((&backup["bytes"], &backup["condition"]), (&json!(3000), &json!("good")));
    assert_eq!(backup["recipients"], json!([{ "kind": "age", "recipient": recipient }]));
    let stored: u64 = host.objects().iter().filter(|(n, _)| n.ends_with(".vol")).map(|(_, b)| b.len() as u64).sum();
    assert_eq!(backup["stored_bytes"], stored);
    assert!(backup["finished"].as_str().expect("a time").ends_with('Z'));

    let show = host.backup(["show", &id, "--json"]).run().json();
    assert_eq!((&show["version"], &show["backup"]), (&json!(1), backup));
    assert_eq!((&show["authenticated"], &show["details"]["warnings"]), (&json!(true), &json!([])));

    for (flags, objects) in [(&["--all", "--json"][..], 3), (&["app", "--deep", "--json"], 3)] {
        let verify = host.backup(["verify"]).args(flags).run().json();
        assert_eq!((&verify["version"], &verify["deep"]), (&json!(1), &json!(flags.contains(&"--deep"))));
        let verified = &verify["backups"][0];
        assert_eq!(keys(verified), ["bytes", "error", "findings", "id", "objects", "ok", "outcome", "target"]);
        assert_eq!(
            (&verified["ok"], &verified["objects"], &verified["id"]),
            (&json!(true), &json!(objects), &json!(id))
        );
    }
}

#[test]
fn save_keeps_the_backup_when_its_id_cannot_be_printed() {
    let host = Host::initialised(BACKUP);
    let outcome = host.shell("echo data | \"$BACKUP\" save app > /dev/full").run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    let id = host.listed().remove(0);
    outcome.saying(&id).saying("could not be printed");
}

#[test]
fn a_restore_to_a_standard_output_that_is_full_or_goes_away_fails() {
    let host = Host::initialised(BACKUP);
    host.save("app", Data::random(3_000_000, "closed"));
    host.shell("\"$BACKUP\" restore app --to-stdout > /dev/full").run().failed(1).saying("No space left");
    // The shell's status is that of the last program of a pipe, so ours has to be carried around it.
    let pipe = "{ \"$BACKUP\" restore app --to-stdout; echo \"code $?\" >&2; } | head -c 10 > /dev/null";
    host.shell(pipe).run().saying("code 1").saying("error: ");
    host.shell("\"$BACKUP\" list > /dev/full").run().failed(1);
}

#[test]
fn nobody_needs_to_listen_to_standard_error() {
    let host = Host::initialised(BACKUP);
    let outcome = host.shell("echo data | \"$BACKUP\" save app 2>&-").run();
    assert_eq!(outcome.stderr, "");
    let id = outcome.id();
    let restored = host.shell(&format!("\"$BACKUP\" restore {id} --to-stdout 2>/dev/full")).run().succeeded();
    assert_eq!(restored.stdout(), b"data\n");
}

#[test]
fn what_does_not_exist_exits_with_10() {
    let host = Host::initialised(BACKUP);
    host.save("app", "data");
    for reference in ["other", "20261122T020000Z-abcdefghijklmnop", "app@2001-01-01", "zzzz"] {
        for command in [&["show"][..], &["verify"], &["verify", "--deep"], &["restore", "--to-stdout"]] {
            let outcome = host.backup(command.iter().chain(&[reference])).run().failed(10);
            assert_eq!(outcome.hinting("backup list").stdout(), b"");
        }
    }
    let nowhere = host.path("nowhere").display().to_string();
    host.backup(["list", "--repo", &nowhere]).run().failed(10).hinting("backup init");
    assert!(!host.path("nowhere").exists(), "a directory that is not mounted must not be made");
}

#[test]
fn names_that_cannot_be_folders_are_refused_with_a_hint_and_nothing_is_read() {
    let host = Host::initialised(BACKUP);
    let long = "x".repeat(64);
    for name in ["", "a/b", "/", "..", ".hidden", "_x", "ü", "a b", "a\nb", &long] {
        let outcome = host.backup(["save", name, "--", "touch", "ran"]).run().failed(2);
        outcome.hinting("letters, digits");
    }
    for name in ["latest", "runs", "repository.json", "20261122T020000Z-abcdefghijklmnop"] {
        host.backup(["save", name, "--", "touch", "ran"]).run().failed(2);
    }
    assert!(!host.path("ran").exists() && host.stored().is_empty());
    for name in ["A", "9.9_9-9", &long[..63]] {
        host.save(name, name);
        assert_eq!(host.backup(["restore", name, "--to-stdout"]).run().succeeded().stdout(), name.as_bytes());
    }
}

#[test]
fn a_folder_that_may_not_be_read_is_a_warning_and_hides_no_backup() {
    let host = Host::initialised(BACKUP);
    let id = host.save("app", "data");
    let foreign = host.repository().join("elsewhere");
    std::fs::create_dir(&foreign).unwrap();
    host.forbid(&foreign);
    for arguments in
        [&["list"][..], &["list", "--json"], &["verify", "--all"], &["verify", "--all", "--deep", "--json"]]
    {
        let outcome = host.without_override(arguments).run();
        assert_eq!(outcome.code(), Some(3), "{outcome}");
        let told = format!("{}{}", outcome.text(), outcome.stderr);
        assert!(told.contains(&id) && told.contains("elsewhere"), "{outcome}");
    }
    for reference in ["latest", "app", &id, &id[..20], &id[17..]] {
        let shown = host.without_override(["show", reference, "--json"]).run().json();
        assert_eq!(shown["backup"]["id"], id, "{reference}");
    }
    // It could be there.
    host.without_override(["show", "other"]).run().failed(2).saying("elsewhere");
    host.without_override(["list", "elsewhere"]).run().failed(2).saying("elsewhere");
    std::fs::set_permissions(&foreign, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
}
