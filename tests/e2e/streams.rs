//! Standard input there and back.

use backup_tests::data::Data;
use backup_tests::host::{Host, Outcome};

use crate::BACKUP;

/// What the program may have resident at once with a local repository.
const PEAK_BYTES_MAX: u64 = 48 << 20;

/// How long the long streams are, unless the variable says otherwise: memory that grew with the data would show. There and back takes
/// about ten seconds each, with the dependencies optimised.
const LONG_BYTES: u64 = 3 << 30;

fn long() -> u64 {
    let bytes = std::env::var("BACKUP_TEST_STREAM_BYTES").ok();
    bytes.map_or(LONG_BYTES, |bytes| bytes.parse().expect("BACKUP_TEST_STREAM_BYTES is a number of bytes"))
}

/// Saves and restores, compares, and returns both runs.
fn there_and_back(host: &Host, data: Data, flags: &[&str]) -> [Outcome; 2] {
    let digest = data.digest();
    let saved = host.backup(["save", "rnd"]).args(flags).stdin(data).run().succeeded();
    let restored = host.backup(["restore", "rnd", "--to-stdout"]).args(flags).run().succeeded();
    assert!(*restored.digest() == digest, "what came back is not what was saved: {restored}");
    [saved, restored]
}

fn stored_bytes(host: &Host) -> u64 {
    host.stored().iter().map(|name| host.repository().join(name).metadata().expect("it was listed").len()).sum()
}

fn stays_small(runs: &[Outcome]) {
    for run in runs {
        assert!((1..=PEAK_BYTES_MAX).contains(&run.peak_bytes), "{} MiB resident: {run}", run.peak_bytes >> 20);
    }
}

#[test]
fn a_long_random_stream_comes_back_within_48_mib() {
    let host = Host::initialised(BACKUP);
    stays_small(&there_and_back(&host, Data::random(long(), "random"), &[]));
    let (stored, long) = (stored_bytes(&host), long());
    assert!(stored > long && stored < long + long / 100, "{stored} bytes are stored of {long}");
}

#[test]
fn a_long_compressible_stream_comes_back_within_48_mib() {
    let host = Host::initialised(BACKUP);
    stays_small(&there_and_back(&host, Data::compressible(long(), "compressible"), &[]));
    let (stored, long) = (stored_bytes(&host), long());
    assert!(stored < long / 6, "{stored} bytes are stored of {long}");
}

#[test]
fn any_codec_cipher_level_and_memory_brings_the_same_back() {
    let host = Host::initialised(BACKUP);
    for flags in [
        &["--codec", "none"][..],
        &["--cipher", "chacha20-poly1305"],
        &["--codec", "none", "--cipher", "chacha20-poly1305"],
        &["--level", "-7"],
        &["--level", "19", "--memory", "64MiB"],
        &["--memory", "32MiB"],
        &["--workers", "1"],
    ] {
        let data = Data::compressible(5_000_001, "flags");
        let saved = host.backup(["save", "rnd"]).args(flags).stdin(data.clone()).run();
        let id = saved.id();
        let restored = host.backup(["restore", &id, "--to-stdout"]).run().succeeded();
        assert!(*restored.digest() == data.digest(), "{flags:?}: {restored}");
    }
}

#[test]
fn a_stream_of_one_byte_comes_back() {
    let host = Host::initialised(BACKUP);
    host.save("rnd", "x");
    assert_eq!(host.backup(["restore", "rnd", "--to-stdout"]).run().succeeded().stdout(), b"x");
}

#[test]
fn an_empty_stream_is_kept_and_comes_back_empty() {
    let host = Host::initialised(BACKUP);
    let saved = host.backup(["save", "rnd"]).run();
    let saved = saved.succeeded().saying("the stream was empty");
    let restored = host.backup(["restore", saved.text().trim_end(), "--to-stdout"]).run().succeeded();
    assert!(restored.digest().is_empty());
    host.backup(["verify", "rnd", "--deep"]).run().succeeded();
}

#[test]
fn many_saves_at_once_into_one_repository_do_not_disturb_each_other() {
    let host = Host::initialised(BACKUP);
    let data = |n: usize| Data::random(3_000_000, &n.to_string());
    let running: Vec<_> = (0..6).map(|n| host.backup(["save", "rnd"]).stdin(data(n)).start()).collect();
    let ids: Vec<String> = running.into_iter().map(|run| run.wait().id()).collect();
    for (n, id) in ids.iter().enumerate() {
        let restored = host.backup(["restore", id, "--to-stdout"]).run().succeeded();
        assert!(*restored.digest() == data(n).digest(), "{id}");
    }
    let mut listed = host.listed();
    listed.sort();
    let mut ids = ids;
    ids.sort();
    assert_eq!(listed, ids);
}
