//! What `docs/FORMAT.md` shows is true.

use std::path::Path;
use std::process::Command;

use super::world::manifest;
use super::{example, files, make, rewriting, sound, vectors};
use backup_tests::decoder;

const TITLES: [&str; 2] = ["\n## A worked example\n\n", "\n## Restoring by hand\n\n"];

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/FORMAT.md")
}

/// The page, cut at the titles.
fn page() -> [String; 3] {
    let page = std::fs::read_to_string(path()).expect("docs/FORMAT.md is there");
    let (before, rest) = page.split_once(TITLES[0]).expect("it has an example");
    let (example, after) = rest.split_once(TITLES[1]).expect("it tells how to restore by hand");
    [before, example, after].map(str::to_owned)
}

#[test]
fn the_worked_example_is_a_vector() {
    let all = vectors();
    let vector = all.vectors.iter().find(|v| v.name == sound::EXAMPLE).expect("the example");
    let manifest = manifest(&all, &vector.stream).encode(&make::data_key()).expect("a manifest");
    let text = example::text(&all, vector, &files()[&vector.objects[0].file], &manifest);
    let [before, example, after] = page();
    if rewriting() {
        let page = [&before, TITLES[0], &text, TITLES[1], &after].concat();
        std::fs::write(path(), page).expect("docs can be written");
    } else {
        assert!(example == text, "the example in docs/FORMAT.md is not this:\n{text}");
    }
}

/// The commands of the page, run as they stand there, in the folder of a backup.
#[test]
fn a_backup_is_restored_by_hand() {
    let all = vectors();
    let [.., by_hand] = page();
    let block = |language: &str| {
        let (_, rest) = by_hand.split_once(&format!("```{language}\n")).expect("a block of code");
        rest.split_once("```").expect("blocks end").0.to_owned()
    };
    let name = "several-volumes-zstd-aes-256-gcm";
    let vector = all.vectors.iter().find(|v| v.name == name).expect("a vector");
    let folder = tempfile::tempdir().expect("a temporary directory");
    for object in &vector.objects {
        std::fs::write(folder.path().join(&object.path), &files()[&object.file]).expect("it can be written");
    }
    std::fs::write(folder.path().join("key.txt"), &all.identity).expect("it can be written");
    std::fs::write(folder.path().join("frames.py"), block("python")).expect("it can be written");
    let python = decoder::interpreter();
    let path = std::env::var("PATH").expect("a search path");
    let path = python.parent().map_or_else(|| path.clone(), |directory| format!("{}:{path}", directory.display()));
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &block("sh")]).current_dir(folder.path()).env("PATH", path);
    let output = decoder::run(&mut bash);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "needs age, zstd and python3 (run: scripts/install-deps test)\n{said}");
    let restored = std::fs::read(folder.path().join("dump")).expect("the commands make the file 'dump'");
    assert!(restored == make::letters(4 * make::CHUNK + 1));
}
