use super::*;

const INDEX: &str = r#"{"path":"","stream":"base","type":"directory","offset":0,"size":0,"mode":448,"mtime_ns":0}
{"path":"base","stream":"base","type":"directory","offset":512,"size":0,"mode":448,"mtime_ns":0}
{"path":"base/5/1","stream":"base-01","type":"file","offset":512,"size":8192,"mode":384,"mtime_ns":0}
{"path":"base/50/1","stream":"base","type":"file","offset":1536,"size":1,"mode":384,"mtime_ns":0}
{"path":"PG_15_1/5/1","stream":"tablespace-7-01","type":"file","offset":512,"size":2,"mode":384,"mtime_ns":0}
{"path":"pg_tblspc/7","stream":"base","type":"symlink","offset":2560,"size":0,"mode":511,"mtime_ns":0}
"#;

fn lengths() -> Lengths {
    [("base", 1537), ("base-01", 1 << 20), ("tablespace-7-01", 1024)]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into()
}

fn chosen_of(index: &str, wanted: &[&str]) -> Result<Vec<(String, String)>> {
    let wanted: Vec<PathBuf> = wanted.iter().map(PathBuf::from).collect();
    let choice = read_index(index.as_bytes(), &wanted, &lengths())?;
    let files = choice.files.iter().flat_map(|(stream, files)| files.iter().map(move |file| (stream, file)));
    Ok(files.map(|(stream, file)| (stream.clone(), file.path.display().to_string())).collect())
}

fn chosen(wanted: &[&str]) -> Result<Vec<(String, String)>> {
    chosen_of(INDEX, wanted)
}

/// A line for a file in `base-01`.
fn line(path: &str, offset: u64, size: u64) -> String {
    let entry = serde_json::json!({
        "path": path, "stream": "base-01", "type": "file", "offset": offset, "size": size, "mode": 384, "mtime_ns": 0,
    });
    format!("{entry}\n")
}

/// What is said of an index that cannot be.
fn refused(index: &str) -> String {
    let error = chosen_of(index, &["base"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
    std::error::Error::source(&error).expect("a reason").to_string()
}

#[test]
fn files_are_chosen_by_whole_names() {
    let pair = |stream: &str, path: &str| (stream.to_owned(), path.to_owned());
    assert_eq!(chosen(&["base/5"]).unwrap(), [pair("base-01", "base/5/1")]);
    assert_eq!(chosen(&["base"]).unwrap().len(), 2);
    assert_eq!(chosen(&["pg_tblspc/7"]).unwrap(), [pair("tablespace-7-01", "pg_tblspc/7/PG_15_1/5/1")]);
    let missing = chosen(&["base", "base/51"]).unwrap_err();
    assert_eq!((missing.kind(), missing.to_string().as_str()), (ErrorKind::NotFound, "the backup has no base/51"));
    assert!(chosen(&["pg_wal/0"]).unwrap_err().hint().unwrap().contains("--stream pg_wal"));
    assert!(refused("{\n").contains("EOF"));
}

#[test]
fn paths_are_those_of_a_data_directory() {
    assert_eq!(plain(Path::new("./base//5/")).unwrap(), Path::new("base/5"));
    for path in ["", ".", "/base", "../x", "base/../..", "base/\0"] {
        assert_eq!(plain(Path::new(path)).unwrap_err().kind(), ErrorKind::Config, "{path}");
    }
}

#[test]
fn an_index_that_names_a_path_elsewhere_is_refused_whether_or_not_that_is_wanted() {
    for path in ["../x", "base/../../x", "base/5/..", "/base/5", "/", "base/\0x"] {
        let index = line("base/1", 512, 1) + &line(path, 2048, 1);
        assert!(refused(&index).contains("outside of the backup"), "{path}");
        let tablespace = line(path, 512, 1).replace("base-01", "tablespace-7-01");
        assert!(refused(&tablespace).contains("outside of the backup"), "{path}");
        let bytes = data_encoding::BASE64.encode(path.as_bytes());
        let hidden = line("base/1", 512, 1).replace("{\"mode\"", &format!("{{\"path_base64\":\"{bytes}\",\"mode\""));
        assert!(hidden.contains("path_base64") && refused(&hidden).contains("outside of the backup"), "{path}");
    }
    for stream in ["pg_wal", "files", "details", "base-x"] {
        refused(&line("base/1", 512, 1).replace("base-01", stream));
    }
}

#[test]
fn a_file_must_end_within_its_stream() {
    let end = 1 << 20;
    chosen_of(&line("base/1", end - 1, 1), &["base"]).unwrap();
    chosen_of(&line("base/1", end, 0), &["base"]).unwrap();
    for (offset, size) in [(end, 1), (end - 1, 2), (end + 1, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        assert!(refused(&line("base/1", offset, size)).contains("base/1 lies beyond"), "{offset} {size}");
    }
    // A stream that the backup does not have.
    assert!(refused(&line("base/1", 512, 1).replace("base-01", "base-02")).contains("lies beyond"));
}

#[test]
fn files_that_overlap_are_refused() {
    let two = |one: (u64, u64), other: (u64, u64)| line("base/1", one.0, one.1) + &line("base/2", other.0, other.1);
    chosen_of(&two((512, 1000), (1512, 5)), &["base"]).unwrap();
    for (one, other) in
        [((512, 1000), (1511, 5)), ((600, 10), (512, 1000)), ((512, 8), (512, 8)), ((512, 10), (515, 0))]
    {
        assert!(refused(&two(one, other)).contains("overlap"), "{one:?} {other:?}");
    }
    // What is in another stream is elsewhere.
    let apart = line("base/1", 512, 8) + &line("base/2", 512, 8).replace("base-01", "base");
    chosen_of(&apart, &["base"]).unwrap();
}
