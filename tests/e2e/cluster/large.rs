//! A large cluster: many relations, a large one, tablespaces.

use backup_tests::postgres::NewServer;
use backup_tests::site::{Site, opened};

use crate::BACKUP;

const RELATIONS: u32 = 50_000;
/// Bytes of the large table, in pages that are almost empty.
const LARGE: u64 = 2 << 30;
/// What saving and restoring may have resident. 48 MiB are promised of a release; the program that is tested is larger, and its own pages count, too.
const PEAK_BYTES_MAX: u64 = 64 << 20;

#[tokio::test]
async fn fifty_thousand_relations_and_a_table_of_two_gigabytes_come_back_intact() {
    let site = Site::new(BACKUP);
    let server = NewServer::of_major(15)
        .setting("max_wal_size", "4GB")
        .setting("autovacuum", "off")
        .setting("shared_buffers", "256MB")
        .start();
    for name in ["one", "two"] {
        let location = server.make_tablespace_directory(name);
        server.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display())).await;
    }
    server
        .sql(&format!(
            "DO $$ BEGIN FOR i IN 1..{RELATIONS} LOOP
               EXECUTE format('CREATE %s TABLE r%s (n int) %s',
                 CASE i % 10 WHEN 0 THEN 'UNLOGGED' ELSE '' END, i,
                 CASE i % 50 WHEN 1 THEN 'TABLESPACE one' WHEN 2 THEN 'TABLESPACE two' ELSE '' END);
               IF i % 100 IN (0, 99) THEN EXECUTE format('INSERT INTO r%s VALUES (%s)', i, i); END IF;
               IF i % 1000 = 0 THEN COMMIT; END IF;
             END LOOP; END $$"
        ))
        .await;
    server.sql("CREATE TABLE large (n int, filler text) WITH (fillfactor = 10) TABLESPACE two").await;
    server.sql("ALTER TABLE large ALTER filler SET STORAGE PLAIN").await;
    let rows = LARGE / 8192;
    server
        .sql(&format!("INSERT INTO large SELECT n, repeat(md5(n::text), 25) FROM generate_series(1, {rows}) n"))
        .await;
    assert_eq!(server.value("SELECT pg_relation_size('large')").await, LARGE.to_string());

    let saved = site.saving(&server).run().succeeded();
    assert!(saved.peak_bytes < PEAK_BYTES_MAX, "{} MiB", saved.peak_bytes >> 20);
    let restoring = site.restoring(&server);
    let restored = restoring.run().succeeded();
    assert!(restored.peak_bytes < PEAK_BYTES_MAX, "{} MiB", restored.peak_bytes >> 20);
    let data = server.data();
    server.client("pg_verifybackup", &["--quiet", data.to_str().unwrap()]);
    server.start();
    opened(&server).await;

    server.sql("CREATE EXTENSION amcheck").await;
    server.client("pg_amcheck", &["--jobs=2", "postgres"]);
    let relations = "SELECT count(*) FROM pg_class WHERE relname ~ '^r[0-9]+$'";
    assert_eq!(server.value(relations).await, RELATIONS.to_string());
    let filled =
        "SELECT count(*) || ' ' || count(DISTINCT n) || ' ' || bool_and(filler = repeat(md5(n::text), 25)) FROM large";
    assert_eq!(server.value(filled).await, format!("{rows} {rows} true"));
    // Of these the second is unlogged.
    assert_eq!(server.value("SELECT (SELECT n FROM r99) || ' ' || (SELECT count(*) FROM r100)").await, "99 0");
}
