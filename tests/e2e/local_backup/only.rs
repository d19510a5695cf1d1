//! Single files out of base backups: `restore --only`.

use std::fs;

use backup_tests::host::{Host, files_below};
use backup_tests::postgres::NewServer;

use super::{shown, streams};
use crate::BACKUP;

/// How many bytes the program reads, of files and pipes, to run with these arguments. Linux counts them for the parent, too.
fn bytes_read(host: &Host, arguments: &[&str]) -> u64 {
    let run = host.shell("\"$BACKUP\" \"$@\" && cat /proc/$$/io").args(["sh"]).args(arguments);
    let outcome = run.run().succeeded();
    let line = outcome.text().lines().find_map(|line| line.strip_prefix("rchar: ")).expect("a count of bytes read");
    line.parse().expect("a number")
}

#[tokio::test]
async fn single_files_databases_and_tablespaces_come_out_of_both_kinds() {
    let server = NewServer::of_major(15).setting("autovacuum", "off").start();
    let location = server.make_tablespace_directory("fast");
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", location.display())).await;
    // Enough to be of several streams, and far more to read than a file takes.
    server
        .sql("CREATE TABLE big AS SELECT g, md5(g::text) || md5((g + 1)::text) AS h FROM generate_series(1, 900000) g")
        .await;
    server.sql("CREATE TABLE in_fast TABLESPACE fast AS SELECT g FROM generate_series(1, 10000) g; CHECKPOINT").await;
    let path = server.value("SELECT pg_relation_filepath('pg_am')").await;
    let database = server.value("SELECT 'base/' || oid FROM pg_database WHERE datname = current_database()").await;
    let tablespace = server.value("SELECT 'pg_tblspc/' || oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    assert_eq!(fs::metadata(server.data().join(&path)).unwrap().len(), 8192);
    let host = Host::initialised(BACKUP);
    for method in ["local", "stream"] {
        let save = host.backup(["save", "db", "--method", method, "--base-backup", &server.conninfo()]);
        let id = save.run().succeeded().id();
        if method == "local" {
            assert!(streams(&shown(&host, &id)).contains(&"base-01"), "its files are in several streams");
        }
        let to = |name: &str| host.path(format!("{method}-{name}"));
        let file = to("file").display().to_string();
        let read = bytes_read(&host, &["restore", &id, "--only", &path, "--to", &file]);
        assert!(read < 8 << 20, "{method}: {read} bytes were read for 8 KiB");
        assert_eq!(files_below(&to("file")), [path.as_str()], "{method}");

        let only = ["--only", &database, "--only", &tablespace, "--only", "global/pg_control"];
        let outcome = host.backup(["restore", &id, "--to"]).args([to("more")]).args(only).run().succeeded();
        outcome.saying("which no server starts from");
        let found = files_below(&to("more"));
        assert!(found.len() > 250 && found.iter().any(|path| path.starts_with(&tablespace)), "{method}: {found:?}");
        for path in found {
            let (is, was) = (fs::read(to("more").join(&path)).unwrap(), fs::read(server.data().join(&path)).unwrap());
            assert!(is == was || path == "global/pg_control", "{method}: {path} differs");
        }
        let restore = |more: &[&str]| host.backup(["restore", &id, "--to"]).args([to("none")]).args(more).run();
        restore(&["--only", "base/0"]).failed(10).saying("the backup has no base/0");
        restore(&["--only", "pg_wal"]).failed(10).hinting("--stream pg_wal");
        restore(&["--only", "/etc"]).failed(2).saying("is no path in a data directory");
        restore(&["--only", "base", "--standby"]).failed(2).saying("no cluster that could recover");
        assert!(!to("none").exists(), "nothing was made");
    }
    host.save("dump", "x");
    let other = host.backup(["restore", "dump", "--only", "base", "--to"]).args([host.path("x")]);
    other.run().failed(2).saying("does not say where its files are");
}
