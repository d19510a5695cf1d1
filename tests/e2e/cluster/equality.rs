//! What is restored equals what was there, by the servers' own account.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::postgres::wire::{Connection, Mode};
use backup_tests::postgres::{NewServer, Server};
use backup_tests::site::{Site, archived, opened};

use crate::BACKUP;

const SCHEMA: &str = "
CREATE TABLE parent (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL, at timestamptz DEFAULT now());
CREATE TABLE child (parent bigint REFERENCES parent, body jsonb, large bytea, CHECK (parent > 0));
CREATE INDEX ON child USING gin (body);
CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 1000) n;
CREATE SEQUENCE numbers;
CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM parent;
CREATE VIEW recent AS SELECT * FROM parent ORDER BY id DESC LIMIT 10;
CREATE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT $1 + 1';
COMMENT ON TABLE parent IS 'it''s \\ commented';
CREATE ROLE reader; GRANT SELECT ON parent TO reader;
";

/// One transaction of each kind.
const WRITE: &str = "
INSERT INTO parent (note) SELECT md5(random()::text) FROM generate_series(1, 20);
INSERT INTO child SELECT max(id), jsonb_build_object('n', nextval('numbers')), convert_to(repeat(md5(random()::text), 100), 'UTF8') FROM parent;
UPDATE parent SET note = note || '.' WHERE id IN (SELECT (random() * max(id))::bigint FROM parent);
DELETE FROM child WHERE parent IN (SELECT min(parent) FROM child);
";

/// Connections that write until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    fn start(server: &Server) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = |_| {
            let (options, stop) = (server.options("dbname=postgres"), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut connection = Connection::connect(&options, Mode::Sql).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    connection.query(WRITE).await.unwrap();
                }
            })
        };
        let tasks = (0..3).map(task).collect();
        Self { stop, tasks }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// All that the server holds. The distribution's `pg_dump` knows its own major version and older ones; of newer ones every row of every table
/// and every definition is asked for.
async fn dump(server: &Server, major: u32) -> String {
    if major <= 15 {
        let dump = server.client("pg_dump", &["--dbname=postgres"]) + &server.client("pg_dumpall", &["--globals-only"]);
        let of_run = |line: &&str| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict ");
        return dump.lines().filter(of_run).flat_map(|line| [line, "\n"]).collect();
    }
    let mut dump = String::new();
    let tables = "SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'm') AND relnamespace = 'public'::regnamespace ORDER BY 1";
    for table in server.sql(tables).await {
        let table = table[0].as_ref().unwrap();
        let rows = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {table} t");
        dump += &format!("{table}:\n{}\n", server.value(&rows).await);
    }
    for (catalog, definition) in [
        ("pg_sequences", "sequencename || ' ' || last_value"),
        ("pg_class WHERE relkind = 'v'", "pg_get_viewdef(oid)"),
        ("pg_class WHERE relkind = 'i'", "pg_get_indexdef(oid)"),
        ("pg_constraint", "conrelid::regclass || ' ' || pg_get_constraintdef(oid)"),
        ("pg_proc WHERE pronamespace = 'public'::regnamespace", "pg_get_functiondef(oid)"),
        ("pg_attribute", "attrelid::regclass || ' ' || attname || ' ' || format_type(atttypid, atttypmod)"),
        ("pg_description", "objoid || ' ' || description"),
        ("pg_roles", "rolname"),
    ] {
        let all = format!("SELECT string_agg(d, E'\\n' ORDER BY d) FROM (SELECT {definition} AS d FROM {catalog}) x");
        dump += &(server.value(&all).await + "\n");
    }
    dump
}

/// Two majors with `pg_dump`, besides the distribution's own, and the newest one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_restored_to_a_position_equals_what_was_there() {
    for major in [13, 14, 15, 18] {
        let site = Site::new(BACKUP);
        let server = site.archiving(NewServer::of_major(major).initdb("--wal-segsize=1")).start();
        server.sql(SCHEMA).await;
        let writers = Writers::start(&server);
        site.back_up(&server);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        writers.stop().await;
        server.sql("REFRESH MATERIALIZED VIEW summary").await;
        // In the log a sequence is up to 32 values ahead, and so is one that was recovered, unless it was set.
        for sequence in ["numbers", "parent_id_seq"] {
            server.sql(&format!("SELECT setval('{sequence}', nextval('{sequence}'))")).await;
        }
        let lsn = server.value("SELECT pg_current_wal_insert_lsn()").await;
        let was = dump(&server, major).await;
        assert!(was.len() > 100_000, "{major}: {} bytes", was.len());
        server.sql(WRITE).await;
        server.sql("INSERT INTO scratch VALUES (0)").await;
        archived(&server).await;
        assert_ne!(dump(&server, major).await.len(), was.len(), "{major}: nothing was written afterwards");

        let flags = ["--target-lsn", &lsn, "--target-action", "promote"];
        site.restoring(&server).args(flags).run().succeeded();
        if major == 15 {
            server.client("pg_verifybackup", &["--quiet", server.data().to_str().unwrap()]);
        }
        server.start();
        opened(&server).await;
        assert_eq!(server.value("SELECT count(*) FROM scratch").await, "0", "{major}: unlogged tables are empty");
        // The source had rows in its unlogged table, and nothing else may differ.
        server.sql("INSERT INTO scratch SELECT generate_series(1, 1000)").await;
        let is = dump(&server, major).await;
        assert!(was == is, "{major}: {}", first_difference(&was, &is));
        if major == 15 {
            server.sql("CREATE EXTENSION amcheck").await;
            server.client("pg_amcheck", &["--heapallindexed", "postgres"]);
        }
    }
}

fn first_difference(was: &str, is: &str) -> String {
    let differing = was.lines().zip(is.lines()).find(|(was, is)| was != is);
    format!("{differing:?}, {} and {} bytes", was.len(), is.len())
}
