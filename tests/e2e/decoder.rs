//! Restoring without the program: by the decoder in Python, written from the format's page alone.

use backup_tests::data::Data;
use backup_tests::decoder::{decode, decode_wal};
use backup_tests::host::Host;

use crate::BACKUP;

#[test]
fn the_decoder_restores_what_the_program_saved() {
    let host = Host::initialised(BACKUP);
    for flags in [&[][..], &["--codec", "none"], &["--cipher", "chacha20-poly1305"], &["--level", "19"]] {
        for data in [Data::random(2_500_000, "a"), Data::compressible(2_500_000, "b"), Data::random(1, "c")] {
            let id = host.backup(["save", "app"]).args(flags).stdin(data.clone()).run().id();
            let decoded = decode(&host.repository(), &host.identity_file(), &id, "data").expect("decoded");
            assert!(decoded == data.to_vec(), "{flags:?}");
        }
    }
    let empty = host.backup(["save", "app"]).run();
    let decoded = decode(&host.repository(), &host.identity_file(), empty.text().trim_end(), "data");
    assert_eq!(decoded, Ok(vec![]));
}

#[test]
fn the_decoder_refuses_what_was_damaged() {
    let host = Host::initialised(BACKUP);
    let id = host.save("app", Data::random(100_000, "damaged"));
    let volume = host.path(format!("repository/app/backups/{id}/data.00000.vol"));
    let mut bytes = std::fs::read(&volume).unwrap();
    bytes[50_000] ^= 1;
    std::fs::write(&volume, bytes).unwrap();
    let said = decode(&host.repository(), &host.identity_file(), &id, "data").expect_err("refused");
    assert!(said.contains("data.00000.vol"), "{said}");
}

#[test]
fn a_file_of_write_ahead_log_can_be_restored_without_us() {
    use backup_tests::wal::{DataDirectory, SYSTEM_IDENTIFIER, segment};
    let host = Host::initialised(BACKUP);
    let data = DataDirectory::create(host.path("data"));
    let name = data.add(3, "decoder");
    host.backup(["wal", "push", "--target", "app"]).args([data.pg_wal(&name)]).run().succeeded();
    let cluster = format!("app/{SYSTEM_IDENTIFIER}");
    let plain = decode_wal(&host.repository(), &host.identity_file(), &cluster, &name).unwrap();
    assert!(plain == segment(3, "decoder"));
    decode_wal(&host.repository(), &host.identity_file(), &cluster, "00000002.history").unwrap_err();
}
