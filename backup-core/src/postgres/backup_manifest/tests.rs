use proptest::prelude::*;

use super::*;

/// A manifest with these lines of files, as PostgreSQL lays it out.
fn manifest(files: &[&str]) -> Vec<u8> {
    let mut text = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned();
    text.push_str(&files.iter().map(|file| format!("\n{file}")).collect::<Vec<_>>().join(","));
    text.push_str(
        "\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n",
    );
    signed(&text)
}

fn signed(text: &str) -> Vec<u8> {
    let sum = data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
    format!("{text}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
}

const TWO: [&str; 2] = [
    r#"{ "Path": "backup_label", "Size": 3, "Last-Modified": "2026-11-22 02:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "b73f4b36" }"#,
    r#"{ "Encoded-Path": "62ff", "Size": 0, "Last-Modified": "2026-11-22 02:00:00 GMT" }"#,
];

fn all(bytes: &[u8]) -> Result<(Vec<ManifestFile>, Summary)> {
    let mut files = Vec::new();
    let summary = read(bytes, |file| {
        files.push(file);
        Ok(())
    })?;
    Ok((files, summary))
}

#[test]
fn files_and_ranges_are_read() {
    let (files, summary) = all(&manifest(&TWO)).unwrap();
    assert_eq!((files[0].path.as_slice(), files[0].size), (&b"backup_label"[..], 3));
    assert_eq!((files[0].algorithm, files[1].algorithm), (Algorithm::Crc32c, Algorithm::None));
    // What pg_verifybackup computes for the three bytes "abc".
    let mut hasher = Algorithm::Crc32c.hasher();
    hasher.update(b"a");
    hasher.update(b"bc");
    assert_eq!(files[0].checksum, hasher.finish());
    assert_eq!(files[1].path, b"b\xff");
    let range = WalRange { timeline: Timeline::FIRST, start: Lsn(0x200_0028), end: Lsn(0x200_0100) };
    assert_eq!(summary, Summary { files: 2, wal_ranges: vec![range] });
}

#[test]
fn any_changed_byte_and_any_cut_shows() {
    let bytes = manifest(&TWO);
    for i in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[i] ^= 1;
        assert!(all(&changed).is_err(), "byte {i}");
        assert!(all(&bytes[..i]).is_err(), "cut at {i}");
    }
    assert!(all(&[&bytes[..], b"x"].concat()).is_err());
}

#[test]
fn what_contradicts_itself_is_refused() {
    for file in [
        r#"{ "Path": "a", "Encoded-Path": "61", "Size": 0 }"#,
        r#"{ "Size": 0 }"#,
        r#"{ "Path": "a" }"#,
        r#"{ "Path": "a", "Size": -1 }"#,
        r#"{ "Path": "a", "Size": 0, "Size": 1 }"#,
        r#"{ "Path": "a", "Size": 0, "Checksum-Algorithm": "CRC32C", "Checksum": "00" }"#,
        r#"{ "Path": "a", "Size": 0, "Checksum-Algorithm": "CRC32C" }"#,
        r#"{ "Path": "a", "Size": 0, "Checksum-Algorithm": "MD5", "Checksum": "00" }"#,
        "[]",
    ] {
        assert_eq!(all(&manifest(&[file])).unwrap_err().kind(), ErrorKind::Integrity, "{file}");
    }
    let twice = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n\"Files\": [],\n\"WAL-Ranges\": [],\n";
    assert!(all(&signed(twice)).is_err());
    let newer = "{ \"PostgreSQL-Backup-Manifest-Version\": 3,\n\"Files\": [],\n\"WAL-Ranges\": [],\n";
    assert_eq!(all(&signed(newer)).unwrap_err().kind(), ErrorKind::Config);
    let later = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [],\n\"WAL-Ranges\": [],\n";
    all(&signed(later)).unwrap();
}

#[test]
fn a_line_without_end_takes_no_memory() {
    let endless = io::repeat(b' ').take(1 << 32);
    let error = read(b"{ ".chain(endless), |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn whoever_is_given_the_files_can_stop_it() {
    let error = read(&manifest(&TWO)[..], |_| Err(Error::config("enough"))).unwrap_err();
    assert_eq!(error.to_string(), "enough");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(all(&bytes).is_err());
    }
}
