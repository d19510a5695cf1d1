//! The connection service file ("The Connection Service File" in libpq's manual; `parseServiceFile` in `fe-connect.c`).

use std::io;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::settings::is_known;
use crate::error::{Error, Result};

/// Where distributions keep the file for all users, when `PGSYSCONFDIR` does not say it; the first is Debian's.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/etc/postgresql-common", "/etc"];
const FILE_NAME: &str = "pg_service.conf";

/// The parameters of a service: of the file that is named, or else of the user's, or else of the system's.
pub(super) fn find(name: &str, file: Option<&str>, environment: &Environment) -> Result<Vec<(String, String)>> {
    let named = file.map(PathBuf::from);
    let own = environment.home().map(|home| home.join(".pg_service.conf")).filter(|_| named.is_none());
    let system = match environment.get("PGSYSCONFDIR") {
        Some(directory) => vec![PathBuf::from(directory)],
        None => SYSTEM_DIRECTORIES.map(PathBuf::from).to_vec(),
    };
    if let Some(path) = named {
        // Unlike the others it must be there.
        if let Some(found) = group_of(&path, name)?.ok_or_else(|| no_file(&path))? {
            return Ok(found);
        }
    }
    for path in own.into_iter().chain(system.into_iter().map(|directory| directory.join(FILE_NAME))) {
        if let Some(Some(found)) = group_of(&path, name)? {
            return Ok(found);
        }
    }
    Err(Error::config(format!("there is no service \"{}\"", name.escape_debug()))
        .with_hint("services are defined in ~/.pg_service.conf, or where PGSERVICEFILE and PGSYSCONFDIR say"))
}

type Group = Vec<(String, String)>;

/// The group of that name: the inner `None` when the file has none, the outer when there is no file.
fn group_of(path: &Path, name: &str) -> Result<Option<Option<Group>>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, name).map(Some).map_err(|line| {
            Error::config(format!("line {line} of the service file {} is malformed", path.display()))
                .with_hint("a line is [service], key=value, or a comment that begins with #")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::config(format!("cannot read the service file {}", path.display())).with_source(error)),
    }
}

fn no_file(path: &Path) -> Error {
    Error::config(format!("there is no service file {}", path.display()))
}

/// The first group of that name, its keys as they are first given; or the number of the line that is wrong.
fn parse(text: &str, name: &str) -> Result<Option<Group>, usize> {
    let mut group: Option<Group> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if group.is_some() {
                break;
            }
            if header.strip_suffix(']') == Some(name) {
                group = Some(Vec::new());
            }
            continue;
        }
        let Some(group) = &mut group else { continue };
        // No service in a service; and the key "ldap://…" of a line that asks a directory is none that is known.
        let (key, value) = line.split_once('=').ok_or(number + 1)?;
        if !is_known(key) || matches!(key, "service" | "servicefile") {
            return Err(number + 1);
        }
        if group.iter().all(|(known, _)| known != key) {
            group.push((key.to_owned(), value.to_owned()));
        }
    }
    Ok(group)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "# all of ours\n[app]\n host=db1 \nport=5433\nport=1\n\n[other]\nhost=db2\n[app]\nhost=db3\n";

    #[test]
    fn a_service_is_its_first_group_and_first_values() {
        let group = parse(FILE, "app").unwrap().unwrap();
        assert_eq!(group, [("host".into(), "db1".into()), ("port".into(), "5433".into())]);
        assert_eq!(parse(FILE, "other").unwrap().unwrap(), [("host".into(), "db2".into())]);
        assert_eq!(parse(FILE, "none").unwrap(), None);
    }

    #[test]
    fn lines_that_libpq_refuses_are_refused_by_number() {
        for line in ["host", "nonsense=1", "service=other", "ldap://dir/x?y", "host =h"] {
            assert_eq!(parse(&format!("[a]\n\n{line}\n"), "a"), Err(3), "{line}");
            assert_eq!(parse(&format!("[b]\n\n{line}\n"), "a"), Ok(None), "{line}: not our group");
        }
    }

    #[test]
    fn files_are_looked_for_where_libpq_looks() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, host: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("[{name}]\nhost={host}\n[all]\nhost={host}\n")).unwrap();
            path.display().to_string()
        };
        let named = write("named", "from-named");
        write(".pg_service.conf", "from-home");
        write("pg_service.conf", "from-system");
        let home = Environment::empty()
            .with_home(directory.path())
            .with("PGSYSCONFDIR", &directory.path().display().to_string());
        let host = |name: &str, file: Option<&str>| find(name, file, &home).map(|group| group[0].1.clone());
        assert_eq!(host("all", Some(&named)).unwrap(), "from-named");
        assert_eq!(host("all", None).unwrap(), "from-home");
        assert_eq!(host("pg_service.conf", None).unwrap(), "from-system");
        assert_eq!(host("pg_service.conf", Some(&named)).unwrap(), "from-system");
        assert!(host(".pg_service.conf", Some(&named)).is_err(), "the user's file is not read when another is named");
        assert!(host("all", Some("/no/such/file")).is_err());
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "[\\[\\]a-z#= \n\\\\é]{0,60}") {
            let _ = parse(&text, "a");
        }
    }
}
