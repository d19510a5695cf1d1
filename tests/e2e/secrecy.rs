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
