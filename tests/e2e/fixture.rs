//! A repository that an earlier release wrote opens with this one: `tests/fixtures`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backup_core::format::ClusterEntry;
use backup_core::keys::Recipient;
use backup_core::keys::age::AgeIdentity;
use backup_core::postgres::wal::{Lsn, SegmentSize, SystemIdentifier, Timeline};
use backup_tests::data::Data;
use backup_tests::host::{Host, Run, files_below};
use backup_tests::physical::{BaseBackup, sealed_manifest};
use backup_tests::postgres::NewServer;
use backup_tests::wal::{SYSTEM_IDENTIFIER, name, segment};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::BACKUP;

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1")
}

/// The keys beside the repository.
const KEYS: [&str; 4] = ["identity.txt", "second.txt", "passphrase.txt", "sign.pem"];

/// A host that has a copy of the repository and its keys, and opens it with the first.
fn world() -> (Host, Value) {
    let mut host = Host::new(BACKUP);
    for file in files_below(&folder()) {
        let bytes = fs::read(folder().join(&file)).unwrap();
        let path = host.write(&file, bytes);
        if KEYS.contains(&file.as_str()) {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
    host.set("BACKUP_IDENTITY_FILE", host.path("identity.txt"));
    let expected = fs::read(host.path("expected.json")).unwrap();
    let expected = serde_json::from_slice(&expected).unwrap();
    (host, expected)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn objects(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().unwrap().iter().map(|(key, value)| (key.as_str(), value))
}

/// What a directory holds: files with their contents, and what they are not.
fn described(root: &Path) -> Value {
    let mut files = serde_json::Map::new();
    for file in files_below(root) {
        let path = root.join(&file);
        let what = match path.is_symlink() {
            true => format!("-> {}", fs::read_link(&path).unwrap().display()),
            false => hash(&fs::read(&path).unwrap()),
        };
        files.insert(file, what.into());
    }
    files.into()
}

/// Restores everything and compares it.
fn all_comes_back(host: &Host, expected: &Value, with: &dyn Fn(Run) -> Run) {
    let run = |arguments: &[&str]| with(host.backup(arguments)).run();
    for (id, what) in objects(&expected["streams"]) {
        let restored = run(&["restore", id, "--to-stdout"]).succeeded();
        assert_eq!(hash(restored.stdout()), text(what), "{id}");
    }
    for (id, what) in objects(&expected["directories"]) {
        let to = host.path(format!("restored-{id}"));
        run(&["restore", id, "--to", to.to_str().unwrap()]).succeeded();
        let mut is = described(&to);
        // A restored cluster has more: settings, PostgreSQL's manifest, that its log is archived already.
        is.as_object_mut().unwrap().retain(|name, _| what.get(name).is_some());
        assert_eq!(is, *what, "{id}");
        fs::remove_dir_all(to).unwrap();
    }
    let system = text(&expected["wal"]["system_identifier"]);
    for (file, what) in objects(&expected["wal"]["files"]) {
        let to = host.path("fetched");
        let fetch = ["wal", "fetch", "--target", "db", "--prefetch", "0", "--system-identifier", system, file];
        run(&[&fetch[..], &[to.to_str().unwrap()]].concat()).succeeded();
        assert_eq!(hash(&fs::read(&to).unwrap()), text(what), "{file}");
        fs::remove_file(to).unwrap();
    }
}

#[test]
fn every_command_that_reads_opens_what_an_earlier_release_wrote() {
    let (host, expected) = world();
    let before = host.objects();
    let mut ids: Vec<&str> =
        objects(&expected["streams"]).chain(objects(&expected["directories"])).map(|b| b.0).collect();
    let mut listed = host.listed();
    ids.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, ids);
    for id in &ids {
        let shown = host.backup(["show", id, "--json"]).run().json();
        assert_eq!((&shown["backup"]["id"], &shown["authenticated"]), (&json!(id), &json!(true)), "{shown}");
        host.backup(["verify", id]).run().succeeded();
        host.backup(["verify", id, "--deep"]).run().succeeded();
    }
    for flags in [&[][..], &["--deep"], &["--sample", "50%"]] {
        let verified = host.backup(["verify", "--all", "--json"]).args(flags).run().json();
        assert_eq!(verified["backups"].as_array().unwrap().len(), ids.len());
        assert_eq!((&verified["wal"][0]["target"], &verified["wal"][0]["ok"]), (&json!("db"), &json!(true)));
    }
    let checked = host.backup(["wal", "check", "--target", "db", "--json"]).run();
    let checked: Value = serde_json::from_str(checked.text()).unwrap();
    assert_ne!(checked["clusters"][0]["timelines"][0]["tail_lsn"], Value::Null, "{checked}");
    host.backup(["key", "status", "--deep", "--json"]).run();
    host.backup(["list", "--runs"]).run().succeeded();
    all_comes_back(&host, &expected, &|run| run);
    // Reading changes nothing but the records of runs.
    let kept = |objects: Vec<(String, Vec<u8>)>| {
        objects.into_iter().filter(|(name, _)| !name.starts_with("runs/")).collect::<Vec<_>>()
    };
    assert!(kept(host.objects()) == kept(before));
}

#[test]
fn each_key_of_an_earlier_release_opens_what_was_wrapped_for_it() {
    let (host, expected) = world();
    let second = host.path("second.txt");
    // By what was wrapped again alone.
    all_comes_back(&host, &expected, &|run| run.env("BACKUP_IDENTITY_FILE", &second));
    let (by_both, signed) = (text(&expected["by_passphrase"]), text(&expected["signed"]));
    let by_passphrase = |id: &str| {
        let run = host.backup(["restore", id, "--to-stdout"]).env("BACKUP_IDENTITY_FILE", "");
        run.env("BACKUP_PASSPHRASE_FILE", host.path("passphrase.txt")).run()
    };
    assert_eq!(hash(by_passphrase(by_both).succeeded().stdout()), text(&expected["streams"][by_both]));
    by_passphrase(signed).failed(12);
    // And who signed.
    let trusting =
        |id: &str| host.backup(["restore", id, "--to-stdout", "--trusted-signer", text(&expected["signer"])]).run();
    assert_eq!(hash(trusting(signed).succeeded().stdout()), text(&expected["streams"][signed]));
    trusting(by_both).failed(13);
}

#[test]
fn what_an_earlier_release_wrote_can_be_copied_rewrapped_and_added_to() {
    let (mut host, expected) = world();
    let to = host.path("to");
    host.backup(["init", "--repo"]).args([&to]).run().succeeded();
    let copied = host.backup(["copy", "--json", "--to"]).args([&to]).run().json();
    assert_eq!((&copied["left_alone"], &copied["problem_count"]), (&json!(0), &json!(0)), "{copied}");
    host.set("BACKUP_REPO", &to);
    all_comes_back(&host, &expected, &|run| run);
    let third = host.path("third.txt");
    let recipient = host.backup(["key", "generate"]).args([&third]).run().succeeded();
    host.backup(["key", "rewrap", "-R", recipient.text().trim()]).run().succeeded();
    all_comes_back(&host, &expected, &|run| run.env("BACKUP_IDENTITY_FILE", &third));
    host.backup(["save", "app"]).stdin("more").run().id();
}

/// FORMAT.md, "Evolution".
#[test]
fn what_a_later_release_wrote_is_refused_by_name_or_left_alone() {
    let (host, expected) = world();
    let by_both = text(&expected["by_passphrase"]);
    let document = host.repository().join("repository.json");
    let original = fs::read_to_string(&document).unwrap();
    let with = |from: &str, to: &str| {
        assert!(original.contains(from), "{original}");
        fs::write(&document, original.replacen(from, to, 1)).unwrap();
    };
    let reading = [&["list"][..], &["show", by_both], &["verify", "--all"], &["restore", by_both, "--to-stdout"]];
    for (from, to) in [("\"format\": 1", "\"format\": 2"), ("\"critical\": []", "\"critical\": [\"shards\"]")] {
        with(from, to);
        for command in reading {
            host.backup(command).run().failed(2).saying("newer release");
        }
        host.backup(["save", "app"]).stdin("more").run().failed(2).saying("newer release");
        let fetch = ["wal", "fetch", "--target", "db", "000000010000000000000001", "fetched"];
        host.backup(fetch).run().failed(200);
        host.backup(["copy", "--to"]).args([host.path("to")]).run().failed(2).saying("newer release");
    }
    // A field that may be ignored is.
    with("{", "{ \"shards\": {\"a\": [7]},");
    for command in reading {
        host.backup(command).run().succeeded();
    }

    // Objects of kinds that nobody knows: in nobody's way, and nobody's to remove.
    let strange = [
        "format-2.bin",
        "app/drills/20261122T020000Z-aaaaaaaaaaaaaaaa.json",
        "app/index/all.bin",
        &format!("app/backups/{by_both}/pin.json"),
        &format!("app/backups/{by_both}/data.00000.patch"),
        &format!("db/wal/{}/00000001/summary.bin", text(&expected["wal"]["system_identifier"])),
    ];
    for object in strange {
        host.write(format!("repository/{object}"), "from the future");
    }
    for command in reading {
        host.backup(command).run().succeeded();
    }
    all_comes_back(&host, &expected, &|run| run);
    let to = host.path("to");
    host.backup(["init", "--repo"]).args([&to]).run().succeeded();
    let copied = host.backup(["copy", "--json", "--to"]).args([&to]).run().json();
    // That beside the targets belongs to none.
    assert_eq!(copied["left_alone"], json!(strange.len() - 1), "{copied}");
    assert!(strange.iter().all(|object| host.repository().join(object).exists()));

    // One backup from the future keeps nobody from the others.
    let manifest = host.repository().join(format!("app/backups/{by_both}/manifest.json"));
    let original = fs::read_to_string(&manifest).unwrap();
    for (from, to) in [("{\"format\":1", "{\"format\":2"), ("{\"format\":1", "{\"critical\":[\"holes\"],\"format\":1")]
    {
        fs::write(&manifest, original.replacen(from, to, 1)).unwrap();
        // Beside volumes of this release it is damage; alone it would be refused as of a later one.
        host.backup(["restore", by_both, "--to-stdout"]).run().failed(13);
        let all = host.backup(["verify", "--all", "--json"]).run();
        assert_eq!(all.code(), Some(13), "{all}");
        let verified: Value = serde_json::from_str(all.text()).unwrap();
        let sound = verified["backups"].as_array().unwrap().iter().filter(|backup| backup["ok"] == json!(true)).count();
        assert_eq!(sound + 1, verified["backups"].as_array().unwrap().len(), "{verified}");
    }
}

/// The only segment of the log of a cluster that never was.
const SEGMENT: u32 = 32;

fn add(archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(if kind.is_dir() { 0o700 } else { 0o600 });
    header.set_uid(65534);
    header.set_gid(65534);
    header.set_mtime(0);
    archive.append_data(&mut header, path, bytes).unwrap();
}

/// Files, and their descriptions, of a cluster that never was.
fn base_backup() -> (BaseBackup, Value) {
    let files = [
        ("PG_VERSION", b"15\n".to_vec()),
        ("backup_label", b"START WAL LOCATION: 0/2000028 (file 000000010000000000000020)\n".to_vec()),
        ("base/5/1259", Data::compressible(20_000, "1259").to_vec()),
        ("global/pg_control", Data::compressible(8192, "pg_control").to_vec()),
        ("postgresql.conf", b"port = 5432\n".to_vec()),
    ];
    // Mostly empty, as after a forced switch.
    let mut log = segment(SEGMENT, "fixture");
    log[4096..].fill(0);
    let (mut base, mut wal) = (tar::Builder::new(Vec::new()), tar::Builder::new(Vec::new()));
    for directory in ["base", "base/5", "global", "pg_tblspc", "pg_wal"] {
        add(&mut base, tar::EntryType::Directory, directory, &[]);
    }
    let (mut lines, mut expected) = (Vec::new(), serde_json::Map::new());
    for (path, bytes) in &files {
        add(&mut base, tar::EntryType::Regular, path, bytes);
        let size = bytes.len();
        lines.push(format!(
            "{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"2026-11-22 02:00:00 GMT\" }}"
        ));
        expected.insert((*path).to_owned(), hash(bytes).into());
    }
    add(&mut wal, tar::EntryType::Regular, &name(SEGMENT), &log);
    expected.insert(format!("pg_wal/{}", name(SEGMENT)), hash(&log).into());
    let cluster = ClusterEntry {
        system_identifier: SystemIdentifier(SYSTEM_IDENTIFIER),
        server_version_num: 150_018,
        wal_segment_bytes: SegmentSize::new(1 << 20).unwrap(),
        timeline: Timeline::FIRST,
        start_lsn: Lsn(0x200_0028),
        stop_lsn: Lsn(0x200_0100),
        stopped: "2026-11-22T02:00:00Z".parse().unwrap(),
        wal_included: true,
    };
    let streams =
        vec![("base".to_owned(), base.into_inner().unwrap()), ("pg_wal".to_owned(), wal.into_inner().unwrap())];
    let backup_manifest = sealed_manifest(&lines);
    (BaseBackup { streams, backup_manifest, cluster, tablespaces: Vec::new(), compression: None }, expected.into())
}

/// Receives log of a real server, as much of it as there is by then; returns its system identifier and the files.
async fn receive(host: &Host) -> Value {
    let server = NewServer::of_major(15).initdb("--wal-segsize=1").setting("wal_keep_size", "64MB");
    let server = server.setting("autovacuum", "off").setting("full_page_writes", "off");
    let server = server.setting("synchronous_commit", "on").start();
    let conninfo = format!("host={} port={} user=postgres", server.directory().display(), server.port());
    server.sql("SELECT pg_switch_wal()").await;
    let receive = ["wal", "receive", &conninfo, "--flush-interval", "1", "--target", "db"];
    let running = host.backup(receive).start();
    let position = "SELECT pg_logical_emit_message(true, 'fixture', 'some log'), pg_switch_wal()";
    let is_stored = |part: &str| host.stored().into_iter().filter(|name| name.contains(part)).count();
    while is_stored("db/wal/") < 3 {
        server.sql(position).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    // The beginning of another, in pieces.
    for _ in 0..4 {
        server.sql("SELECT pg_logical_emit_message(true, 'fixture', 'the newest')").await;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    running.signal(Signal::TERM);
    running.wait().succeeded();
    assert!(is_stored(".tail/") > 1, "{:?}", host.stored());
    let system = server.value("SELECT system_identifier::text FROM pg_control_system()").await;
    let mut files = serde_json::Map::new();
    for stored in host.stored().into_iter().filter(|name| name.contains("db/wal/")) {
        let file = stored.split('/').nth(4).unwrap()[..24].to_owned();
        let was = fs::read(server.data().join("pg_wal").join(&file)).unwrap();
        if stored.contains(".tail/") {
            // How much of it was received, only what comes back tells.
            let to = host.path("fetched");
            let fetch = ["wal", "fetch", "--target", "db", "--system-identifier", &system, &file, "--prefetch", "0"];
            host.backup(fetch).args([&to]).run().succeeded();
            let is = fs::read(to).unwrap();
            let end = is.iter().rposition(|byte| *byte != 0).unwrap();
            assert!(end > 100 && is.len() == was.len() && is[..=end] == was[..=end]);
            files.insert(file, hash(&is).into());
        } else {
            files.insert(file, hash(&was).into());
        }
    }
    json!({ "system_identifier": system, "files": files })
}

/// Makes it, if `BACKUP_MAKE_FIXTURE` says where.
#[test]
fn make() {
    let Some(to) = std::env::var_os("BACKUP_MAKE_FIXTURE") else { return };
    let to = PathBuf::from(to);
    let mut host = Host::initialised(BACKUP);
    let passphrase = host.write("passphrase.txt", "of no other use\n");
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).unwrap();
    let second = host.path("second.txt");
    let recipient = host.backup(["key", "generate"]).args([&second]).run().succeeded();
    let signer = host.backup(["key", "generate", "--signing"]).args([host.path("sign.pem")]).run().succeeded();

    let streams = [Data::compressible(20_000, "first").to_vec(), Data::random(5000, "second").to_vec()];
    let own = AgeIdentity::load(&host.identity_file()).unwrap().recipients().remove(0).describe().1;
    let by_passphrase = host.backup(["save", "app", "-R", &own]).env("BACKUP_PASSPHRASE_FILE", &passphrase);
    let by_passphrase = by_passphrase.stdin(streams[0].clone()).run().id();
    let signed = host.backup(["save", "app", "--codec", "none", "--cipher", "chacha20-poly1305"]);
    let signed = signed.env("BACKUP_SIGNING_KEY_FILE", host.path("sign.pem")).stdin(streams[1].clone()).run().id();
    for (file, contents) in [("folder/notes.txt", "some notes\n"), ("folder/sub/empty", "")] {
        host.write(file, contents);
    }
    std::os::unix::fs::symlink("notes.txt", host.path("folder/link")).unwrap();
    let home = host.backup(["save", "home", "--directory"]).args([host.path("folder")]).run().id();
    let (cluster, files) = base_backup();
    let cluster = cluster.store(&host, "cluster");
    let wal = tokio::runtime::Runtime::new().unwrap().block_on(receive(&host));
    host.set("BACKUP_RECIPIENTS", recipient.text().trim());
    host.backup(["key", "rewrap"]).run().succeeded();
    let expected = json!({
        "streams": { &by_passphrase: hash(&streams[0]), &signed: hash(&streams[1]) },
        "directories": { home: described(&host.path("folder")), cluster: files },
        "wal": wal,
        "by_passphrase": by_passphrase,
        "signed": signed,
        "signer": signer.text().trim(),
    });
    fs::create_dir_all(&to).unwrap();
    for (object, mut bytes) in host.objects() {
        if object.starts_with("runs/") {
            // Which machine it was made on is nobody's business.
            let mut record: Value = serde_json::from_slice(&bytes).unwrap();
            (record["who"]["host"], record["who"]["user"]) = ("db1".into(), "postgres".into());
            bytes = format!("{record}\n").into_bytes();
        }
        let path = to.join("repository").join(object);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::copy(host.identity_file(), to.join("identity.txt")).unwrap();
    for key in &KEYS[1..] {
        fs::copy(host.path(key), to.join(key)).unwrap();
    }
    fs::write(to.join("expected.json"), serde_json::to_string_pretty(&expected).unwrap() + "\n").unwrap();
}
