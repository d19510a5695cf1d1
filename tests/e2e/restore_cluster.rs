//! A whole cluster back from a base backup: `restore --to` of what `pg_basebackup` gave.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use backup_tests::host::{Host, files_below};
use backup_tests::physical::{BaseBackup, PublicDir, Restored, compressed, edit_manifest, edit_tar, prepend};
use backup_tests::postgres::Cluster;
use tar::EntryType;

use crate::BACKUP;

/// A cluster with a table `t` of so many rows in the database `app`.
fn cluster(rows: u32) -> &'static Cluster {
    let cluster = Cluster::shared();
    cluster.create("app");
    let fill = format!("CREATE TABLE t AS SELECT n, md5(n::text) AS hash FROM generate_series(1, {rows}) n;");
    cluster.sql("app", &format!("{fill} CREATE UNLOGGED TABLE u AS SELECT 1;"));
    cluster
}

/// The arguments that make the user who runs servers own the files, where that is not ourselves.
fn owner() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["--owner", "postgres"] } else { &[] }
}

#[test]
fn a_backup_with_its_log_starts_by_itself_and_postgresql_finds_it_intact() {
    let cluster = cluster(1000);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let to = public.path("new/data");
    let id = BaseBackup::take(cluster).store(&host, "app");
    cluster.sql("app", "INSERT INTO t VALUES (0, 'later')");
    let outcome = host.backup(["restore", "app", "--to"]).args([&to]).args(owner()).run().succeeded();
    let outcome = outcome.saying(&format!("restored {id} of app to {}: ", to.display()));
    outcome.saying("when it is started, PostgreSQL recovers to the end of the backup, and opens");
    let mode = |name: &str| fs::metadata(to.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("base"), mode("PG_VERSION"), mode("backup_manifest")), (0o700, 0o700, 0o600, 0o600));

    let restored = Restored::new(cluster, &to);
    assert_eq!(restored.verify(), "");
    let restored = restored.started();
    assert_eq!(restored.sql("app", "SELECT count(*), max(n), min(n) FROM t"), "1000|1000|1");
    assert_eq!(restored.sql("app", "SELECT count(*) FROM u"), "0", "unlogged tables are empty");
    assert_eq!(restored.sql("postgres", "SELECT pg_is_in_recovery()"), "f");
}

#[test]
fn tablespaces_come_back_where_they_are_mapped_to_and_nowhere_else() {
    let cluster = cluster(10);
    let (mut host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let originals = ["old-one", "old-two"].map(|name| public.for_server(cluster, name));
    for (name, path) in ["one", "two"].iter().zip(&originals) {
        cluster.sql("app", &format!("CREATE TABLESPACE {name} LOCATION '{}'", path.display()));
        cluster.sql("app", &format!("CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 100)"));
    }
    BaseBackup::take(cluster).store(&host, "app");
    let to = public.path("data");
    let restore = |host: &Host| host.backup(["restore", "app", "--to"]).args([&to]).args(owner());

    // Where they were they still are.
    restore(&host).run().failed(2).saying("is not empty").hinting("--tablespace-mapping");
    let mapping = |path: &Path, new: &Path| format!("--tablespace-mapping={}={}", path.display(), new.display());
    let (one, two) = (mapping(&originals[0], &public.path("one")), mapping(&originals[1], &public.path("two")));
    fs::create_dir(public.path("two")).unwrap();
    fs::write(public.path("two/theirs"), "x").unwrap();
    restore(&host).args([&one, &two]).run().failed(2).saying("two is not empty");
    restore(&host)
        .args([&mapping(Path::new("/nowhere"), &public.path("x"))])
        .run()
        .failed(2)
        .hinting("has tablespaces at");
    restore(&host).args([&one, &mapping(&originals[1], &to.join("in"))]).run().failed(2).saying("one in the other");
    assert!(!to.exists() && !public.path("one").exists(), "nothing was made");

    fs::remove_file(public.path("two/theirs")).unwrap();
    host.set("LC_ALL", "C");
    let outcome = restore(&host).args([&one, &two]).run().succeeded();
    outcome.saying(&format!("is at {}", public.path("one").display()));
    let restored = Restored::new(cluster, &to);
    assert_eq!(restored.verify(), "");
    let restored = restored.started();
    for name in ["one", "two"] {
        assert_eq!(restored.sql("app", &format!("SELECT count(*) FROM in_{name}")), "100");
        let location = format!("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = '{name}'");
        assert_eq!(restored.sql("app", &location), public.path(name).display().to_string());
    }
    let relations = |path: &Path| files_below(path).len();
    assert!(relations(&public.path("one")) >= relations(&originals[0]));
}

#[test]
fn what_the_server_compressed_and_what_came_in_several_tars_is_put_together() {
    let cluster = cluster(10);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let taken = BaseBackup::take(cluster);
    let mut reference = None;
    for (program, name) in [("gzip", "gzip"), ("lz4", "lz4"), ("zstd", "zstd"), ("", "several")] {
        let mut backup = taken.clone();
        if program.is_empty() {
            let half = |first: bool| {
                move |_: &mut tar::Header, path: &str, c: Vec<u8>| (path.starts_with("base/") == first).then_some(c)
            };
            let (one, two) =
                (edit_tar(backup.stream("base"), half(true)), edit_tar(backup.stream("base"), half(false)));
            *backup.stream("base") = one;
            backup.streams.push(("base-01".to_owned(), two));
        } else {
            backup.compression = Some(program);
            for (_, bytes) in &mut backup.streams {
                *bytes = compressed(program, bytes);
            }
        }
        backup.store(&host, name);
        let to = public.path(name);
        host.backup(["restore", name, "--to"]).args([&to]).args(owner()).run().succeeded();
        assert_eq!(Restored::new(cluster, &to).verify(), "", "{name}");
        let files = files_below(&to);
        assert_eq!(reference.get_or_insert_with(|| files.clone()), &files, "{name}");
    }
}

/// Restores `backup`, which must fail with 13 and leave nothing; returns what is said.
fn refused(host: &Host, backup: &BaseBackup, public: &PublicDir) -> String {
    let id = backup.store(host, "app");
    let to = public.path("data");
    let outcome = host.backup(["restore", &id, "--to"]).args([&to]).args(owner()).run().failed(13);
    assert!(!to.exists(), "something was left: {outcome}");
    outcome.stderr
}

#[test]
fn what_differs_from_postgresqls_manifest_is_refused_by_name() {
    let cluster = cluster(10);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let taken = BaseBackup::take(cluster);
    type Edit<'a> = &'a dyn Fn(&str, Vec<u8>) -> Option<Vec<u8>>;
    let changed = |edit: Edit<'_>| {
        let mut backup = taken.clone();
        *backup.stream("base") = edit_tar(backup.stream("base"), |_, path, contents| edit(path, contents));
        refused(&host, &backup, &public)
    };
    let of_conf = |change: fn(&mut Vec<u8>)| {
        move |path: &str, mut contents: Vec<u8>| {
            if path == "postgresql.conf" {
                change(&mut contents);
            }
            Some(contents)
        }
    };
    let said = changed(&of_conf(|contents| contents[0] ^= 1));
    assert!(
        said.contains("postgresql.conf is not as the backup's own manifest says\n  caused by: its checksum is "),
        "{said}"
    );
    let said = changed(&of_conf(|contents| contents.push(b'\n')));
    assert!(said.contains("postgresql.conf") && said.contains("bytes and should have"), "{said}");
    let said = changed(&|path, contents| (path != "pg_hba.conf").then_some(contents));
    assert!(said.contains("are missing from the backup: pg_hba.conf\n"), "{said}");

    let with = |edit: &dyn Fn(&mut BaseBackup)| {
        let mut backup = taken.clone();
        edit(&mut backup);
        refused(&host, &backup, &public)
    };
    let said = with(&|b| *b.stream("base") = prepend(b.stream("base"), "base/extra", EntryType::Regular, "", b"x"));
    assert!(said.contains("base/extra is not as") && said.contains("it is not in the manifest"), "{said}");
    let said = with(&|b| {
        let at = b.backup_manifest.len() / 2;
        b.backup_manifest[at] ^= 1;
    });
    assert!(said.contains("backup manifest"), "{said}");
    let said = with(&|b| b.backup_manifest.truncate(5000));
    assert!(said.contains("backup manifest is malformed"), "{said}");
    let said = with(&|b| b.cluster.stop_lsn.0 += 8);
    assert!(said.contains("names other log"), "{said}");
    let said = with(&|b| *b.stream("pg_wal") = edit_tar(b.stream("pg_wal"), |_, _, _| None));
    assert!(said.contains("own log is incomplete: 0000000"), "{said}");
    let said = with(&|b| b.streams.retain(|(name, _)| name != "pg_wal"));
    assert!(said.contains("does not have the log that it should"), "{said}");
    let said = with(&|b| b.tablespaces.push((16385, "/srv/ts".to_owned())));
    assert!(said.contains("one stream for each of its tablespaces"), "{said}");
}

#[test]
fn every_kind_of_checksum_is_checked() {
    let cluster = cluster(10);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    for (n, algorithm) in ["NONE", "CRC32C", "SHA224", "SHA256", "SHA384", "SHA512"].iter().enumerate() {
        let backup = BaseBackup::take_with(cluster, &[&format!("--manifest-checksums={algorithm}")]);
        backup.store(&host, algorithm);
        let to = public.path(&format!("data{n}"));
        host.backup(["restore", algorithm, "--to"]).args([&to]).args(owner()).run().succeeded();
        let mut changed = backup.clone();
        *changed.stream("base") = edit_tar(changed.stream("base"), |_, path, mut contents| {
            if path == "pg_ident.conf" {
                contents[7] ^= 1;
            }
            Some(contents)
        });
        if *algorithm != "NONE" {
            assert!(refused(&host, &changed, &public).contains("pg_ident.conf"), "{algorithm}");
        }
    }
}

#[test]
fn hostile_entries_make_nothing_outside_of_the_directory() {
    let cluster = cluster(10);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let taken = BaseBackup::take(cluster);
    fs::create_dir(public.path("outside")).unwrap();
    let outside = public.path("outside");
    let absolute = outside.join("file").display().to_string();
    for (path, kind, link) in [
        ("../outside/file", EntryType::Regular, ""),
        ("base/../../outside/file", EntryType::Regular, ""),
        (absolute.as_str(), EntryType::Regular, ""),
        ("../outside/made", EntryType::Directory, ""),
    ] {
        let mut backup = taken.clone();
        *backup.stream("base") = prepend(backup.stream("base"), path, kind, link, b"");
        let id = backup.store(&host, "app");
        let outcome = host.backup(["restore", &id, "--to"]).args([public.path("data")]).args(owner()).run();
        outcome.failed(1).saying("outside of itself");
    }
    // Links are never made from a stream, so nothing is ever written through one.
    let outside_link = outside.display().to_string();
    let mut backup = taken;
    let tar = prepend(backup.stream("base"), "hard", EntryType::Link, &absolute, b"");
    *backup.stream("base") = prepend(&tar, "pg_logical", EntryType::Symlink, &outside_link, b"");
    let id = backup.store(&host, "app");
    let outcome = host.backup(["restore", &id, "--to"]).args([public.path("linked")]).args(owner()).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    let outcome = outcome.saying("warning: pg_logical: no file and no directory").saying("warning: hard: ");
    assert!(public.path("linked/pg_logical").is_dir(), "{outcome}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!public.path("data").exists());
}

#[test]
fn a_directory_that_is_in_use_is_refused_with_a_hint_and_not_touched() {
    let cluster = cluster(10);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    BaseBackup::take(cluster).store(&host, "app");
    let to = public.path("data");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("theirs"), "x").unwrap();
    host.backup(["restore", "app", "--to"])
        .args([&to])
        .run()
        .failed(2)
        .saying("is not empty")
        .hinting("empty directory");
    assert_eq!(files_below(&to), ["theirs"]);
}

#[test]
fn what_a_standby_or_an_earlier_restore_left_does_not_steer_the_restored_cluster() {
    let cluster = cluster(10);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let mut backup = BaseBackup::take(cluster);
    let mut lines = Vec::new();
    *backup.stream("base") = edit_tar(backup.stream("base"), |_, path, contents| match path {
        "postgresql.auto.conf" => Some(b"recovery_target_time = '2020-01-01 00:00:00+00'\nwork_mem = '7MB'\n".to_vec()),
        _ => Some(contents),
    });
    *backup.stream("base") = prepend(backup.stream("base"), "standby.signal", EntryType::Regular, "", b"");
    let checksum = |bytes: &[u8]| {
        let mut hasher = backup_core::postgres::backup_manifest::Algorithm::Crc32c.hasher();
        hasher.update(bytes);
        data_encoding::HEXLOWER.encode(&hasher.finish())
    };
    for (path, bytes) in [
        ("postgresql.auto.conf", &b"recovery_target_time = '2020-01-01 00:00:00+00'\nwork_mem = '7MB'\n"[..]),
        ("standby.signal", b""),
    ] {
        lines.push(format!(
            "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            bytes.len(),
            checksum(bytes)
        ));
    }
    backup.backup_manifest = edit_manifest(&backup.backup_manifest, |files| {
        files.retain(|line| !line.contains("\"postgresql.auto.conf\""));
        files.extend(lines);
    });
    backup.store(&host, "app");
    let to = public.path("data");
    host.backup(["restore", "app", "--to"]).args([&to]).args(owner()).run().succeeded();
    let restored = Restored::new(cluster, &to).started();
    assert_eq!(restored.sql("postgres", "SELECT pg_is_in_recovery(), current_setting('work_mem')"), "f|7MB");
    assert_eq!(fs::read_to_string(to.join("postgresql.auto.conf")).unwrap(), "work_mem = '7MB'\n");
}

#[test]
fn root_gives_the_files_to_whoever_owns_the_directory_or_did_own_them() {
    if !rustix::process::geteuid().is_root() {
        // Others own what they write, and may not give it away.
        return;
    }
    let cluster = cluster(10);
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let mut backup = BaseBackup::take(cluster);
    let (server, _) = cluster.owner();
    *backup.stream("base") = edit_tar(backup.stream("base"), |header, _, contents| {
        header.set_mode(if header.entry_type().is_dir() { 0o750 } else { 0o640 });
        Some(contents)
    });
    backup.store(&host, "app");
    let to = |name: &str| public.path(name);
    let all = |path: &Path| -> Vec<(u32, u32)> {
        let mut found = vec![path.to_owned()];
        found.extend(files_below(path).iter().map(|f| path.join(f)));
        found
            .iter()
            .map(|f| fs::symlink_metadata(f).unwrap())
            .map(|m| (m.uid(), m.permissions().mode() & 0o777))
            .collect()
    };
    host.backup(["restore", "app", "--to"]).args([to("a/b")]).run().succeeded();
    assert!(
        all(&to("a/b")).iter().all(|(uid, mode)| *uid == server && [0o750, 0o640].contains(mode)),
        "{:?}",
        all(&to("a/b"))
    );
    assert_eq!(fs::metadata(to("a")).unwrap().uid(), server, "what is made above it would be in the way");

    fs::create_dir(to("owned")).unwrap();
    std::os::unix::fs::chown(to("owned"), Some(4711), Some(4712)).unwrap();
    let outcome = host.backup(["restore", "app", "--to"]).args([to("owned")]).run().succeeded();
    outcome.saying("belong to user 4711, which this host does not know");
    assert!(all(&to("owned")).iter().all(|(uid, _)| *uid == 4711));
    host.backup(["restore", "app", "--owner", "4713:4714", "--to"]).args([to("asked")]).run().succeeded();
    assert!(all(&to("asked")).iter().all(|(uid, _)| *uid == 4713));
    host.backup(["restore", "app", "--owner", "nobody-such", "--to"])
        .args([to("none")])
        .run()
        .failed(2)
        .saying("no user");
}

#[test]
fn flags_of_base_backups_are_for_base_backups() {
    let host = Host::initialised(BACKUP);
    host.save("app", "data");
    let to = host.path("to").display().to_string();
    let id = host.listed().remove(0);
    host.backup(["restore", &id, "--to", &to, "--target", "immediate"]).run().failed(2).saying("is no base backup");
    host.backup(["restore", "app", "--to", &to, "--target-lsn", "0/1"]).run().failed(10).saying("no good base backup");
    for flags in [
        &["--target-time", "x"][..],
        &["--target-time", "2026-01-01 00:00:00", "--target-lsn", "0/1"],
        &["--target-lsn", "0"],
        &["--target-name", ""],
        &["--target", "later"],
        &["--target-timeline", "0"],
        &["--target-action", "promote"],
        &["--standby", "--target", "immediate"],
        &["--primary-conninfo", "host=a"],
        &["--archive-mode", "on"],
        &["--tablespace-mapping", "a=b"],
    ] {
        host.backup(["restore", "app", "--to", &to]).args(flags).run().failed(2);
    }
    host.backup(["restore", "app", "--to-stdout", "--standby"]).run().failed(2);
    assert!(!host.path("to").exists());
}
