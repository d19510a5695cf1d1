//! Pages that are wrong on disk, in ways that a look at their headers would excuse.

use std::fs::File;
use std::os::unix::fs::FileExt;

use backup_tests::host::Host;
use backup_tests::postgres::NewServer;

use super::save;
use crate::BACKUP;

const PAGE_BYTES: usize = 8192;

#[tokio::test]
async fn a_page_of_garbage_and_a_flipped_bit_of_a_position_are_found() {
    let server = NewServer::of_major(15).initdb("--data-checksums").setting("autovacuum", "off").start();
    let mut paths = Vec::new();
    for name in ["t", "u"] {
        server.sql(&format!("CREATE TABLE {name} AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g")).await;
        paths.push(server.value(&format!("SELECT pg_relation_filepath('{name}')")).await);
    }
    server.stop();
    let file = |path: &str| File::options().read(true).write(true).open(server.data().join(path)).unwrap();
    // By its position both are of a time that is yet to come.
    let garbage: Vec<u8> = (0..PAGE_BYTES).map(|i| (i * i % 251).to_le_bytes()[0] | 0x80).collect();
    file(&paths[0]).write_all_at(&garbage, 300 * PAGE_BYTES as u64).unwrap();
    let (mut byte, at) = ([0], 100 * PAGE_BYTES as u64 + 1);
    file(&paths[1]).read_exact_at(&mut byte, at).unwrap();
    file(&paths[1]).write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    server.start();

    let outcome = save(&Host::initialised(BACKUP), &server, &[]).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    for (path, block, name) in [(&paths[0], 300, "t"), (&paths[1], 100, "u")] {
        for words in
            [format!("checksum verification failed in {path}, block {block}: "), format!("({name} in the database")]
        {
            assert!(outcome.to_string().contains(&words), "{words}: {outcome}");
        }
    }
}

#[tokio::test]
async fn a_file_that_lacks_a_part_of_its_last_page_is_found() {
    let server = NewServer::of_major(15).initdb("--data-checksums").setting("autovacuum", "off").start();
    server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g").await;
    let path = server.value("SELECT pg_relation_filepath('t')").await;
    server.stop();
    let file = File::options().write(true).open(server.data().join(&path)).unwrap();
    let bytes = file.metadata().unwrap().len();
    file.set_len(bytes - 100).unwrap();
    server.start();
    let outcome = save(&Host::initialised(BACKUP), &server, &[]).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    let block = bytes / PAGE_BYTES as u64 - 1;
    let words = format!("checksum verification failed in {path}, block {block}: the file ends after 8092 bytes of it");
    assert!(outcome.to_string().contains(&words), "{words}: {outcome}");
}
