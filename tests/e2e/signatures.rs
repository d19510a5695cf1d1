//! What somebody can do who can write to the repository: with and without signers that are trusted.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backup_tests::host::{Host, Run};
use backup_tests::postgres::NewServer;
use backup_tests::wal::{DataDirectory, SEGMENT_BYTES};

use crate::BACKUP;

/// A host that signs what it writes, and the public key that it signs with.
struct World {
    host: Host,
    signer: String,
}

impl World {
    fn new() -> Self {
        let mut host = Host::initialised(BACKUP);
        let signer = signing_key(&host, "sign.pem");
        host.set("BACKUP_SIGNING_KEY_FILE", host.path("sign.pem"));
        Self { host, signer }
    }

    /// The reader, which believes the host's signer alone or everybody.
    fn reader(&self, pinned: bool, arguments: &[&str]) -> Run {
        let run = self.host.backup(arguments);
        if pinned { run.env("BACKUP_TRUSTED_SIGNERS", &self.signer) } else { run }
    }

    fn restore(&self, pinned: bool, reference: &str) -> Run {
        self.reader(pinned, &["restore", reference, "--to-stdout"])
    }

    /// The folder of a backup.
    fn folder(&self, id: &str) -> PathBuf {
        self.host.repository().join("app/backups").join(id)
    }

    fn backups(&self, contents: &[&str]) -> Vec<String> {
        // Ids tell seconds, and which is the latest is the point of some tests.
        let save = |(i, text): (usize, &&str)| {
            if i > 0 {
                std::thread::sleep(std::time::Duration::from_millis(1100));
            }
            self.host.save("app", *text)
        };
        contents.iter().enumerate().map(save).collect()
    }
}

/// Makes a signing key; returns its public half.
fn signing_key(host: &Host, name: &str) -> String {
    let path = host.path(name).display().to_string();
    let signer = host.backup(["key", "generate", "--signing", &path]).run().succeeded();
    let signer = signer.text().trim().to_owned();
    assert!(signer.starts_with("ed25519:"), "{signer}");
    signer
}

/// The id with a time of the future, as somebody would choose it who wants to be the latest.
fn newer(id: &str) -> String {
    format!("2099{}", &id[4..])
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_foreign_backup_is_neither_restored_nor_in_the_way_of_the_good_ones_and_is_told() {
    let mut world = World::new();
    let good = world.backups(&["good"]).remove(0);
    let stranger = signing_key(&world.host, "stranger.pem");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let by_stranger =
        world.host.backup(["save", "app"]).env("BACKUP_SIGNING_KEY_FILE", world.host.path("stranger.pem"));
    let foreign = by_stranger.stdin("foreign").run().id();
    world.host.unset("BACKUP_SIGNING_KEY_FILE");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let unsigned = world.host.save("app", "unsigned");
    let garbage = world.folder(&newer(&good));
    std::fs::create_dir_all(&garbage).unwrap();
    std::fs::write(garbage.join("manifest.json"), "{\"format\":2}\n{}\n").unwrap();
    // In a target of its own, it could make 'latest' ambiguous.
    let other = world.host.repository().join("other/backups").join(newer(&good));
    copy(&world.folder(&unsigned), &other);

    for reference in ["app", "latest", &good, &good[17..]] {
        let restored = world.restore(true, reference).run();
        assert_eq!(restored.stdout(), b"good", "{reference}: {restored}");
        let alone = reference == good;
        assert_eq!(restored.code(), Some(if alone { 0 } else { 3 }), "{reference}: {restored}");
        if ["app", "latest"].contains(&reference) {
            restored.saying(&foreign).saying(&unsigned).saying("is not trusted").saying(&stranger);
        }
    }
    for id in [&foreign, &unsigned] {
        world.restore(true, id).run().failed(13).saying("is not trusted").hinting(&world.signer);
        world.reader(true, &["verify", id]).run().failed(13);
        world.reader(true, &["verify", id, "--deep"]).run().failed(13);
        world.reader(true, &["show", id]).run().failed(13);
    }
    world.reader(true, &["verify", &good]).run().succeeded();
    world.reader(true, &["verify", &good, "--deep"]).run().succeeded();
    world.reader(true, &["verify", "--all"]).run().failed(13).saying("4 of 5 backups damaged");
    let listed = world.reader(true, &["list"]).run();
    assert_eq!(listed.code(), Some(3), "{listed}");

    // Whoever believes everybody gets what is there; and a manifest that cannot be read is in the way.
    assert_eq!(world.restore(false, &unsigned).run().succeeded().stdout(), b"unsigned");
    assert_ne!(world.restore(false, "app").run().code(), Some(0));
    std::fs::remove_dir_all(garbage).unwrap();
    assert_eq!(world.restore(false, "app").run().succeeded().stdout(), b"unsigned");

    // When nothing is left that is trusted, that is an error and not "no backup".
    std::fs::remove_dir_all(world.folder(&good)).unwrap();
    world.restore(true, "app").run().failed(13).saying("is not trusted");
}

#[test]
fn the_manifests_of_two_backups_cannot_be_swapped() {
    let world = World::new();
    let ids = world.backups(&["first", "second"]);
    let [first, second] = [0, 1].map(|i| world.folder(&ids[i]).join("manifest.json"));
    let (a, b) = (std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    std::fs::write(&first, b).unwrap();
    std::fs::write(&second, a).unwrap();
    for pinned in [false, true] {
        for id in &ids {
            world.restore(pinned, id).run().failed(13);
            world.reader(pinned, &["verify", id]).run().failed(13);
        }
        world.restore(pinned, "app").run().failed(13);
    }
}

#[test]
fn an_old_backup_cannot_be_replayed_as_the_newest() {
    let world = World::new();
    let ids = world.backups(&["old", "new"]);
    let replayed = newer(&ids[0]);
    copy(&world.folder(&ids[0]), &world.folder(&replayed));
    for pinned in [false, true] {
        world.restore(pinned, &replayed).run().failed(13);
        world.reader(pinned, &["verify", "--all"]).run().failed(13);
    }
    // Unpinned it is damage, and never passed over; pinned it cannot keep the newest good one from being restored.
    world.restore(false, "app").run().failed(13).saying("belongs to another backup");
    let restored = world.restore(true, "app").run().saying("in another place");
    assert_eq!((restored.code(), restored.stdout()), (Some(3), &b"new"[..]), "{restored}");
    // Nor as a backup of another target.
    let elsewhere = world.host.repository().join("other/backups").join(&ids[1]);
    copy(&world.folder(&ids[1]), &elsewhere);
    for pinned in [false, true] {
        world.restore(pinned, "other").run().failed(13);
    }
}

#[test]
fn that_the_newest_backup_was_hidden_is_seen_by_who_remembers_it() {
    let world = World::new();
    let ids = world.backups(&["old", "new"]);
    let since = world.host.backup(["show", &ids[1], "--json"]).run().json()["backup"]["started"].clone();
    let since = since.as_str().unwrap().to_owned();
    let not_older =
        |arguments: &[&str], limit: &str| world.host.backup(arguments).args(["--not-older-than", limit]).run();
    let commands = [&["restore", "app", "--to-stdout"][..], &["verify", "app"], &["show", "app"]];
    for command in commands {
        not_older(command, &since).succeeded();
        not_older(command, "1h").succeeded();
    }
    std::fs::rename(world.folder(&ids[1]), world.host.path("hidden")).unwrap();
    for command in commands {
        not_older(command, &since).failed(10).saying(&ids[0]).hinting("hidden");
        not_older(command, "1h").succeeded();
    }
    not_older(&["verify", "--all"], "1h").failed(2);
}

#[test]
fn a_volume_of_another_backup_cannot_be_grafted() {
    let world = World::new();
    let ids = world.backups(&["first, of equal length", "other, of equal length"]);
    let volume = |i: usize| world.folder(&ids[i]).join("data.00000.vol");
    let whole = std::fs::read(volume(1)).unwrap();
    std::fs::copy(volume(0), volume(1)).unwrap();
    for pinned in [false, true] {
        world.restore(pinned, &ids[1]).run().failed(13);
        world.reader(pinned, &["verify", &ids[1]]).run().failed(13);
        world.reader(pinned, &["verify", &ids[1], "--deep"]).run().failed(13);
    }
    std::fs::write(volume(1), whole).unwrap();
    world.restore(true, &ids[1]).run().succeeded();
}

#[test]
fn a_segment_cannot_be_renamed_nor_come_from_somebody_else() {
    let mut world = World::new();
    world.host.set("BACKUP_TARGET", "app");
    let data = DataDirectory::create(world.host.path("data"));
    let wal = |world: &World, pinned: bool, arguments: &[&str]| {
        world.reader(pinned, &[&["wal"], arguments].concat()).in_directory(data.path())
    };
    let names = [3, 4].map(|number| data.add(number, "archived"));
    for name in &names {
        let path = format!("pg_wal/{name}");
        wal(&world, true, &["push", &path, "--look-ahead=0"]).run().succeeded();
    }
    let fetch = |world: &World, pinned: bool, name: &str| {
        let _ = std::fs::remove_file(data.pg_wal("RECOVERYXLOG"));
        wal(world, pinned, &["fetch", name, "pg_wal/RECOVERYXLOG", "--prefetch=0", "--patience=0"]).run()
    };
    for pinned in [false, true] {
        fetch(&world, pinned, &names[0]).succeeded();
        assert_eq!(std::fs::read(data.pg_wal("RECOVERYXLOG")).unwrap().len(), SEGMENT_BYTES);
    }
    let objects = world.host.stored();
    let object = |name: &str| {
        let found = objects.iter().find(|object| object.ends_with(&format!("{name}.vol"))).expect("it is stored");
        world.host.repository().join(found)
    };
    let whole = std::fs::read(object(&names[1])).unwrap();
    std::fs::copy(object(&names[0]), object(&names[1])).unwrap();
    for pinned in [false, true] {
        fetch(&world, pinned, &names[1]).failed(200).saying("answers to another name");
        assert!(!data.pg_wal("RECOVERYXLOG").exists());
    }
    std::fs::write(object(&names[1]), whole).unwrap();
    fetch(&world, true, &names[1]).succeeded();

    // Recipients are public: who can write to the bucket can make a segment of their own.
    let third = data.add(5, "of a stranger");
    let path = format!("pg_wal/{third}");
    world.host.unset("BACKUP_SIGNING_KEY_FILE");
    wal(&world, false, &["push", &path, "--look-ahead=0"]).run().succeeded();
    fetch(&world, false, &third).succeeded();
    fetch(&world, true, &third).failed(200).saying("is not trusted");
    let standby = ["fetch", &third, "pg_wal/RECOVERYXLOG", "--prefetch=0", "--standby"];
    let asked = wal(&world, true, &standby).run();
    assert_eq!(asked.code(), Some(1), "{asked}");
}

#[test]
fn a_signing_key_that_others_can_read_or_that_nobody_here_trusts_is_refused_before_anything_is_read() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let key = world.host.path("sign.pem");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let refused = world.host.backup(["save", "app"]).stdin("x").run().failed(12);
    refused.saying("open to other users").hinting("chmod 600");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let other = signing_key(&world.host, "other.pem");
    let save = world.host.backup(["save", "app", "--trusted-signer", &other]).stdin("x").run();
    save.failed(2).saying("would not believe its own backups");
    world.host.backup(["restore", "app", "--to-stdout", "--trusted-signer", "ed25519:short"]).run().failed(2);
    assert_eq!(world.host.stored(), [] as [&str; 0]);
}

#[test]
fn a_key_made_by_openssl_signs_and_the_configuration_names_it() {
    let host = Host::initialised(BACKUP);
    let script = "umask 077; openssl genpkey -algorithm ed25519 -out sign.pem && \
                  openssl pkey -in sign.pem -pubout -outform DER | tail -c 32 | base64";
    let signer = format!("ed25519:{}", host.shell(script).run().succeeded().text().trim());
    let text = format!("signing_key_file = \"sign.pem\"\ntrusted_signers = [\"{signer}\"]\n");
    let config = host.write("backup.toml", text).display().to_string();
    let id = host.backup(["save", "app", "--config", &config]).stdin("signed").run().id();
    let shown = host.backup(["show", &id, "--json", "--config", &config]).run().json();
    assert_eq!(shown["backup"]["signer"], serde_json::json!(signer));
    let restored = host.backup(["restore", "app", "--to-stdout", "--config", &config]).run().succeeded();
    assert_eq!(restored.stdout(), b"signed");
    // And OpenSSL reads ours.
    signing_key(&host, "ours.pem");
    host.shell("openssl pkey -in ours.pem -noout").run().succeeded();
}

/// Of three base backups one is damaged, one not trusted: whoever asks for a good one is told of both.
#[tokio::test]
async fn where_no_backup_fits_it_is_told_which_were_not_trusted() {
    let server = NewServer::of_major(15).initdb("--data-checksums").start();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) g; CHECKPOINT").await;
    let path = server.value("SELECT pg_relation_filepath('t')").await;
    server.stop();
    let file = OpenOptions::new().write(true).open(server.data().join(&path)).unwrap();
    file.write_all_at(b"rot", 4000).unwrap();
    server.start();
    let mut world = World::new();
    let conninfo = format!("host={} port={} user=postgres", server.directory().display(), server.port());
    let save = |host: &Host, more: &[&str]| host.backup(["save", "db", "--base-backup", &conninfo]).args(more).run();
    let damaged = save(&world.host, &[]);
    assert_eq!(damaged.code(), Some(3), "{damaged}");
    let signing_key = world.host.path("sign.pem");
    world.host.unset("BACKUP_SIGNING_KEY_FILE");
    let unsigned = save(&world.host, &["--no-verify-checksums"]).id();
    world.reader(true, &["show", "db"]).run().failed(10).saying("no good backup").saying(&unsigned);
    world.reader(false, &["show", "db"]).run().succeeded();

    world.host.set("BACKUP_SIGNING_KEY_FILE", signing_key);
    save(&world.host, &["--no-verify-checksums"]).id();
    let restore = ["restore", "db", "--to", "restored", "--target-time", "2020-01-01 00:00:00Z"];
    world.reader(true, &restore).run().failed(10).saying(&unsigned).saying("is not trusted");
}
