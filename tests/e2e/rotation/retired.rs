//! What keeps a key from being retired.

use super::Office;

impl Office {
    /// After a rotation to `2027`, whose overlap is over; its public key.
    pub(super) fn rotated(&mut self) -> String {
        self.now = "2026-11-01T00:00:00Z";
        let recipient = self.generate("2027");
        self.backup(&["key", "rotate", "2026", "--recipient", &recipient]).run().succeeded();
        self.now = "2026-12-02T00:00:00Z";
        recipient
    }

    /// The flags for the identities of these keys.
    pub(super) fn identities(&self, names: &[&str]) -> Vec<String> {
        names
            .iter()
            .flat_map(|name| ["--identity-file".to_owned(), self.identity(name).display().to_string()])
            .collect()
    }
}

#[test]
fn a_key_is_not_retired_while_anything_is_opened_by_no_key_of_today() {
    let mut office = Office::new();
    let stray = office.generate("stray");
    office.backup(&["save", "app", "--recipient", &stray]).stdin("for nobody of today").run().succeeded();
    office.rotated();
    // Nothing names the key, and still nobody of today opens it.
    let both = office.identities(&["stray", "2027"]);
    let before = office.config();
    let retire = || office.backup(&["key", "retire", "2026"]).args(&both);
    let refused = retire().run().failed(12).saying("no key of today opens 1 backup").hinting("key rewrap");
    assert!(!refused.stderr.contains("still needed"), "{refused}");
    assert_eq!(office.config(), before);
    office.backup(&["key", "rewrap"]).args(&both).run().succeeded();
    retire().run().succeeded();
}

#[test]
fn a_key_whose_time_it_is_not_opens_nothing_for_a_retirement_whoever_names_it() {
    let mut office = Office::new();
    let spare = office.generate("spare");
    let table = format!("\n[keys.spare]\nrecipient = \"{spare}\"\ncreated = 2026-01-10\nexpires = 2026-06-01\n");
    office.host.write("backup.toml", office.config() + &table);
    office.save("for both");
    office.now = "2027-02-01T00:00:00Z";
    assert_eq!(office.states(), "2026 expired, spare expired");
    let retire = || office.with("2026", &["key", "retire", "2026"]);
    retire().run().failed(12).saying("still needed by 1 backup");
    retire().env("BACKUP_RECIPIENTS", &spare).run().failed(12).saying("still needed by 1 backup");
    office.host.write("backup.toml", format!("recipients = [\"{spare}\"]\n{}", office.config()));
    retire().run().failed(12).saying("still needed by 1 backup");
    assert!(!office.config().contains("retired"), "{}", office.config());
    // Nor is it one of today for anybody else who asks.
    let status = office.backup(&["key", "status"]).run();
    status.saying("no key is used");
}

#[test]
fn a_key_that_unfinished_runs_may_need_is_retired_with_a_warning() {
    let mut office = Office::new();
    let unfinished = office.save("unfinished");
    office.save("whole");
    office.rotated();
    // What a run leaves that is killed, or has not ended yet.
    let manifest = format!("app/backups/{unfinished}/manifest.json");
    std::fs::remove_file(office.host.repository().join(manifest)).unwrap();
    let both = office.identities(&["2026", "2027"]);
    office.backup(&["key", "rewrap"]).args(&both).run().succeeded();
    let retire = |rest: &[&str]| office.backup(&["key", "retire", "2026"]).args(rest).args(&both).run();
    for rest in [&["--dry-run"][..], &[]] {
        let outcome = retire(rest);
        assert_eq!(outcome.code(), Some(3), "{outcome}");
        outcome.saying("unfinished, or going on: 1 run; what they wrote may need '2026'");
    }
    assert_eq!(office.states(), "2026 retired, 2027 active");
}

#[test]
fn a_pin_command_is_shown_by_no_command_that_tells_of_keys() {
    let mut office = Office::new();
    // The base point of P-256, for which nobody here has a token.
    let base = "BGsX0fLhLEJH-Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU";
    let recipient = format!("pkcs11:object=dr?pin-source=%7Cecho%20hush&public-key={base}");
    let table = format!("\n[keys.dr]\nrecipient = \"{recipient}\"\ncreated = 2026-01-10\nexpires = 2026-06-01\n");
    office.host.write("backup.toml", office.config() + &table);
    office.now = "2026-07-01T00:00:00Z";
    let public = format!("pkcs11:object=dr?public-key={base}");
    for (arguments, shown) in [
        (&["key", "list"][..], true),
        (&["key", "list", "--json"], true),
        (&["key", "status"], true),
        (&["key", "status", "--json"], true),
        (&["config", "show"], true),
        (&["save", "app", "--recipient", &recipient], true),
        (&["key", "rotate", "2026", "--recipient", &recipient], false),
        (&["key", "retire", "dr", "-vv"], false),
    ] {
        let outcome = office.backup(arguments).run();
        let told = format!("{}{}", outcome.text(), outcome.stderr);
        assert!(!told.contains("hush") && told.contains(&public) == shown, "{arguments:?}: {outcome}");
    }
}
