//! What somebody learns who has the repository and no key.

use backup_tests::host::Host;
use backup_tests::postgres::Cluster;

use crate::BACKUP;

/// Demands that none of `secrets` stands in any stored object or its name.
fn holds_none_of(host: &Host, secrets: &[&str]) {
    let objects = host.objects();
    assert!(objects.len() > 3, "there is something to look at");
    for (name, bytes) in &objects {
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|window| window.eq_ignore_ascii_case(secret.as_bytes()));
            assert!(!found && !name.contains(secret), "'{secret}' can be read in {name}");
        }
    }
}

#[test]
fn stored_objects_show_neither_data_nor_the_names_of_databases_and_tables() {
    let cluster = Cluster::shared();
    let mut host = Host::initialised(BACKUP);
    cluster.serve(&mut host);
    cluster.create("wirecard_ledger");
    cluster.sql(
        "wirecard_ledger",
        "CREATE SCHEMA payroll; CREATE TABLE payroll.salaries (employee text, amount int);
         INSERT INTO payroll.salaries SELECT 'Zacharias Dase', 123456789 FROM generate_series(1, 10000);",
    );
    for flags in [&[][..], &["--codec", "none"]] {
        host.backup(["save", "app", "--pg-dump", "dbname=wirecard_ledger"]).args(flags).run().id();
    }
    holds_none_of(
        &host,
        &["wirecard", "payroll", "salaries", "employee", "Zacharias", "123456789", "CREATE TABLE", "postgres"],
    );
}

#[test]
fn stored_objects_show_neither_the_names_of_files_nor_the_command() {
    let host = Host::initialised(BACKUP);
    host.write("from/merger-with-acme.txt", "the price is seventeen million");
    host.write("from/plans/layoffs.ods", "everyone");
    host.backup(["save", "dir", "--codec", "none", "--directory"]).args([host.path("from")]).run().id();
    let command = ["save", "cmd", "--codec", "none", "--", "printf", "%s", "open sesame"];
    host.backup(command).run().id();
    let secrets = ["merger", "layoffs", "seventeen", "everyone", "sesame", "printf", "ustar", "backup-test."];
    holds_none_of(&host, &secrets);
    // Without a key the program itself shows no more.
    let mut stranger = Host::new(BACKUP);
    stranger.set("BACKUP_REPO", host.repository());
    for reference in ["dir", "cmd"] {
        let shown = stranger.backup(["show", reference, "--json"]).run().json();
        assert_eq!((&shown["authenticated"], &shown["details"]), (&serde_json::json!(false), &serde_json::Value::Null));
    }
}

#[test]
fn the_repository_is_its_owner_s_and_what_is_in_it_has_the_modes_that_the_umask_leaves() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new(BACKUP);
    host.shell("umask 022; \"$BACKUP\" init; umask 027; head -c 5000000 /dev/urandom | \"$BACKUP\" save app")
        .run()
        .succeeded();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.repository()), 0o700);
    let stored = host.stored();
    assert!(stored.len() == 3, "{stored:?}");
    for name in stored {
        let file = host.repository().join(&name);
        assert_eq!(mode(&file), 0o640, "{name}");
        for directory in file.ancestors().skip(1).take_while(|path| *path != host.repository()) {
            assert_eq!(mode(directory), 0o750, "{}", directory.display());
        }
    }
}
