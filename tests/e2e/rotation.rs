//! Keys over the years: rotated, rewrapped, retired; and at no moment a backup that nobody can open.

mod edited;
mod recorded;
mod retired;
mod several;

use std::collections::BTreeMap;
use std::path::PathBuf;

use backup_core::clock::SystemClock;
use backup_core::keys::age::AgeIdentity;
use backup_tests::decoder::{decode, decode_wal};
use backup_tests::host::{Host, Outcome, Run};
use backup_tests::s3::S3;
use backup_tests::wal::{DataDirectory, SYSTEM_IDENTIFIER, segment};
use serde_json::Value;

use crate::BACKUP;

/// A host whose configuration has keys, and their identities in a safe.
struct Office {
    host: Host,
    now: &'static str,
}

impl Office {
    /// With one key, `2026`, made on 10 January.
    fn new() -> Self {
        let mut office = Self { host: Host::new(BACKUP), now: "2026-01-10T09:00:00Z" };
        let recipient = office.generate("2026");
        let text = format!(
            "# kept by hand\n\n[keys.2026]   # the first\nrecipient = \"{recipient}\"\ncreated = 2026-01-10T09:00:00Z\n"
        );
        office.host.write("backup.toml", text);
        office.host.set("BACKUP_CONFIG", office.host.path("backup.toml"));
        office.backup(&["init"]).run().succeeded();
        assert!(!office.host.identity_file().exists(), "there is a key already");
        office
    }

    /// Makes an identity and returns its public key.
    fn generate(&self, name: &str) -> String {
        let made = self.host.backup(["key", "generate"]).args([self.identity(name)]).run().succeeded();
        made.text().trim_end().to_owned()
    }

    /// The public key of a configured key.
    fn recipient(&self, name: &str) -> String {
        let listed = self.backup(&["key", "list", "--json"]).run().json();
        let key = listed["keys"].as_array().unwrap().iter().find(|key| key["name"] == name).unwrap();
        key["recipient"].as_str().unwrap().to_owned()
    }

    fn identity(&self, name: &str) -> PathBuf {
        self.host.path(format!("safe/{name}.txt"))
    }

    fn backup(&self, arguments: &[&str]) -> Run {
        self.host.backup(arguments).env("BACKUP_UNDER_TEST_NOW", self.now)
    }

    /// With the identity of a key.
    fn with(&self, key: &str, arguments: &[&str]) -> Run {
        self.backup(arguments).env("BACKUP_IDENTITY_FILE", self.identity(key))
    }

    fn save(&self, text: &str) -> String {
        self.backup(&["save", "app"]).stdin(text).run().id()
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.host.path("backup.toml")).unwrap()
    }

    /// The states of all keys, by `key list`.
    fn states(&self) -> String {
        let listed = self.backup(&["key", "list", "--json"]).run().json();
        let keys = listed["keys"].as_array().unwrap().iter();
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        keys.map(|key| format!("{} {}", word(&key["name"]), word(&key["state"]))).collect::<Vec<_>>().join(", ")
    }

    /// Whether that identity alone brings all of these back.
    fn opens(&self, key: &str, saved: &BTreeMap<String, String>) {
        for (id, text) in saved {
            let restored = self.with(key, &["restore", id, "--to-stdout"]).run().succeeded();
            assert_eq!(restored.stdout(), text.as_bytes(), "{id} with {key}");
        }
    }

    /// `key status`, which must end with this code.
    fn status(&self, code: i32) -> Outcome {
        let outcome = self.backup(&["key", "status"]).run();
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        outcome
    }
}

#[test]
fn a_key_lives_from_creation_to_retirement_and_everything_opens_at_every_moment() {
    let mut office = Office::new();
    let mut saved = BTreeMap::new();
    let mut save = |office: &Office, text: &str| {
        saved.insert(office.save(text), text.to_owned());
        saved.clone()
    };
    let all = save(&office, "in the first year");
    office.opens("2026", &all);
    let data = DataDirectory::create(office.host.path("data"));
    let name = data.add(3, "walk");
    office.backup(&["wal", "push", "--target", "app"]).args([data.pg_wal(&name)]).run().succeeded();
    office.status(0);

    // Ninety days ahead its end is announced, by every backup too.
    office.now = "2026-11-01T00:00:00Z";
    assert_eq!(office.states(), "2026 expiring");
    office.status(3).saying("backup key rotate 2026");
    let noted = office.backup(&["save", "app"]).stdin("while expiring").run().succeeded().saying("in 70 days");
    saved.insert(noted.id(), "while expiring".to_owned());
    office.backup(&["key", "retire", "2026"]).run().failed(2).saying("is used until").hinting("rotate");

    // Its successor comes in, and both are used for thirty days.
    let recipient = office.generate("2027");
    let before = office.config();
    let printed = office.backup(&["key", "rotate", "2026", "--recipient", &recipient, "--print"]).run().succeeded();
    assert!(printed.text().contains("[keys.2027]"), "{printed}");
    assert_eq!(office.config(), before, "nothing is written");
    office.backup(&["key", "rotate", "2026", "--recipient", &recipient]).run().succeeded().saying("key rewrap");
    assert!(office.config().starts_with(&before), "comments and order stay: {}", office.config());
    assert_eq!(office.states(), "2026 overlap, 2027 active");
    office.backup(&["key", "rotate", "2026", "--recipient", &recipient]).run().failed(2).saying("'2027'");
    let id = office.save("in the overlap");
    office.opens("2026", &BTreeMap::from([(id.clone(), "in the overlap".to_owned())]));
    office.opens("2027", &BTreeMap::from([(id.clone(), "in the overlap".to_owned())]));
    saved.insert(id, "in the overlap".to_owned());
    office.opens("2026", &saved);
    // What was made before is not open to the successor yet, which is said.
    office.status(3).saying("only keys in overlap open 2 backups and 1 WAL file");
    office.backup(&["key", "retire", "2026"]).run().failed(2).saying("is used until");

    // The overlap ends; nothing that is kept is lost with it.
    office.now = "2026-12-02T00:00:00Z";
    assert_eq!(office.states(), "2026 expired, 2027 active");
    let id = office.save("with the successor alone");
    office.with("2026", &["restore", &id, "--to-stdout"]).run().failed(12);
    saved.insert(id, "with the successor alone".to_owned());
    office.status(3).saying("no key of today opens 2 backups and 1 WAL file");
    let both = format!("{} {}", office.identity("2026").display(), office.identity("2027").display());
    let both: Vec<&str> = both.split(' ').flat_map(|file| ["--identity-file", file]).collect();
    let retire = || office.backup(&["key", "retire", "2026"]).args(&both);
    retire().run().failed(12).saying("still needed by 2 backups and 1 WAL file").hinting("key rewrap");
    office.with("2027", &["key", "retire", "2026"]).run().failed(12).saying("could not be opened");
    office.backup(&["key", "retire", "2026"]).run().failed(12).hinting("--identity-file");
    assert_eq!(office.states(), "2026 expired, 2027 active");

    let objects = office.host.objects();
    office.with("2026", &["key", "rewrap", "--dry-run"]).run().failed(12).saying("to be wrapped again: 3 data keys");
    assert_eq!(office.host.objects(), objects);
    let rewrapped = office.backup(&["key", "rewrap"]).args(&both).run().succeeded();
    rewrapped.saying("wrapped again: 3 data keys").saying("opened for a proof: 3").saying("not revoking");
    let after: BTreeMap<String, Vec<u8>> = office.host.objects().into_iter().collect();
    for (path, bytes) in objects {
        assert_eq!(after.get(&path), Some(&bytes), "{path} is untouched");
    }
    office.opens("2027", &saved);
    office.status(0);
    retire().args(["--dry-run"]).run().succeeded();
    retire().run().succeeded().saying("is retired");
    assert_eq!(office.states(), "2026 retired, 2027 active");
    retire().run().succeeded().saying("retired already");

    // The old key is destroyed. All that was ever saved still opens, with the program and without it.
    std::fs::remove_file(office.identity("2026")).unwrap();
    office.opens("2027", &saved);
    office.status(0);
    for (id, text) in &saved {
        let decoded = decode(&office.host.repository(), &office.identity("2027"), id, "data").expect("decoded");
        assert_eq!(decoded, text.as_bytes());
    }
    let cluster = format!("app/{SYSTEM_IDENTIFIER}");
    let decoded = decode_wal(&office.host.repository(), &office.identity("2027"), &cluster, &name).expect("decoded");
    assert!(decoded == segment(3, "walk"));
    let fetched = office.host.path("fetched");
    let fetch = office.with("2027", &["wal", "fetch", "--target", "app", &name]).args([&fetched]);
    fetch.args(["--system-identifier", &SYSTEM_IDENTIFIER.to_string()]).run().succeeded();
    assert!(std::fs::read(&fetched).unwrap() == segment(3, "walk"));
    office.with("2027", &["verify", "--all", "--deep"]).run().succeeded();
    office.with("2027", &["key", "status", "--deep"]).run().succeeded().saying("opened and proved");
}

#[test]
fn without_a_key_whose_time_it_is_nothing_is_backed_up() {
    let mut office = Office::new();
    let data = DataDirectory::create(office.host.path("data"));
    let name = data.add(3, "refused");
    for (now, why) in [
        ("2026-01-10T08:59:00Z", "key '2026' is not used before 2026-01-10T09:00:00Z"),
        ("2027-01-10T09:00:00Z", "key '2026' ended on 2027-01-10T09:00:00Z"),
    ] {
        office.now = now;
        let stored = office.host.stored();
        office.backup(&["save", "app"]).stdin("x").run().failed(12).saying(why).hinting("backup key rotate");
        office.backup(&["wal", "push", "--target", "app"]).args([data.pg_wal(&name)]).run().failed(12).saying(why);
        // Naming it does not help; naming another does.
        let recipient = office.backup(&["key", "list", "--json"]).run().json()["keys"][0]["recipient"].clone();
        let named = ["save", "app", "--recipient", recipient.as_str().unwrap()];
        office.backup(&named).stdin("x").run().failed(12).saying(why);
        assert_eq!(office.host.stored(), stored);
        let other = AgeIdentity::generate().recipients()[0].to_string();
        office.backup(&["save", "app", "--recipient", &other]).stdin("x").run();
    }
    // An end without a successor is a warning of every backup that goes to others.
    let other = AgeIdentity::generate().recipients()[0].to_string();
    office.host.write("backup.toml", format!("recipients = [\"{other}\"]\n{}", office.config()));
    let saved = office.backup(&["save", "app"]).stdin("x").run();
    assert_eq!(saved.code(), Some(3), "{saved}");
    saved.saying("ended on 2027-01-10T09:00:00Z without a successor");
    office.backup(&["wal", "push", "--target", "app"]).args([data.pg_wal(&name)]).run().succeeded();
}

#[test]
fn a_host_without_a_policy_has_a_status_and_can_rewrap() {
    let host = Host::initialised(BACKUP);
    let id = host.save("app", "plain");
    let listed = host.backup(["key", "list"]).run().succeeded();
    listed.saying("no key is configured");
    let status = host.backup(["key", "status", "--json"]).run().json();
    assert_eq!((&status["ok"], &status["kept"]["backups"]), (&true.into(), &1.into()));
    assert_eq!(status["others"][0]["needed_by"]["backups"], 1);

    // Another key, such as one for the safe.
    let safe = host.path("safe.txt");
    let recipient = host.backup(["key", "generate"]).args([&safe]).run().succeeded().text().trim_end().to_owned();
    host.backup(["key", "generate"]).args([&safe]).run().failed(12).hinting("never overwritten");
    host.backup(["key", "rewrap", "--recipient", &recipient])
        .run()
        .succeeded()
        .saying("wrapped again: 1 data key, for");
    let restored = host.backup(["restore", &id, "--to-stdout"]).env("BACKUP_IDENTITY_FILE", &safe).run().succeeded();
    assert_eq!(restored.stdout(), b"plain");
    host.backup(["key", "rotate", "x", "--recipient", &recipient]).run().failed(2).hinting("[keys.NAME]");
    host.backup(["key", "status", "nothing"]).run().failed(10).saying("no target 'nothing'");
    let shown = host.backup(["show", &id, "--json"]).run().json();
    assert_eq!(shown["rewrapped_for"][0]["recipient"], recipient);
}

#[test]
fn a_secret_key_in_the_place_of_a_recipient_is_shown_by_nobody() {
    let host = Host::new(BACKUP);
    host.backup(["init"]).run().succeeded();
    let identity = std::fs::read_to_string(host.identity_file()).unwrap();
    let secret = identity.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    host.write("backup.toml", format!("[keys.a]\nrecipient = \"{secret}\"\ncreated = 2026-01-01\n"));
    for arguments in [
        &["key", "list"][..],
        &["key", "status", "--json"],
        &["key", "retire", "a"],
        &["key", "rotate", "a", "--recipient", secret],
        &["config", "show"],
        &["config", "check"],
        &["save", "app"],
    ] {
        let outcome = host.backup(arguments).run();
        assert!(!outcome.stderr.contains(secret) && !outcome.text().contains(secret), "{arguments:?}: {outcome}");
        assert!(outcome.code() == Some(2) || arguments == ["config", "show"], "{outcome}");
    }
}

#[test]
fn readers_ask_for_rewraps_only_when_a_header_does_not_open() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    let id = host.save("app", "over there");
    let identity = AgeIdentity::generate();
    let file = host.path("new.txt");
    identity.create_file(&file, &SystemClock).unwrap();
    let recipient = identity.recipients()[0].to_string();
    let versions = |server: &S3| -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
        let stat = |key: &String| std::fs::metadata(server.path(key)).unwrap().modified().unwrap();
        server.objects().into_iter().map(|key| (key.clone(), (server.object(&key), stat(&key)))).collect()
    };
    let before = versions(&server);
    host.backup(["key", "rewrap", "--recipient", &recipient]).run().succeeded();
    let after = versions(&server);
    assert!(before.iter().all(|(key, was)| after.get(key) == Some(was)), "objects are untouched");
    assert_eq!(after.len(), before.len() + 1);

    let asked = |server: &S3| {
        let requests = server.take_requests();
        requests.iter().filter(|request| format!("{request:?}").contains("keys")).count()
    };
    asked(&server);
    host.backup(["restore", &id, "--to-stdout"]).run().succeeded();
    assert_eq!(asked(&server), 0, "the header opens");
    host.backup(["restore", &id, "--to-stdout"]).env("BACKUP_IDENTITY_FILE", &file).run().succeeded();
    assert_eq!(asked(&server), 2, "a listing, and the newest");
}

/// The commands of the page on rotation, by the headings that they stand under.
fn documented() -> Vec<(String, String)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ROTATION.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut sections = Vec::new();
    for section in text.split("\n## ").skip(1) {
        let heading = section.lines().next().unwrap_or_default().to_owned();
        let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
        sections.push((heading, blocks.collect::<String>()));
    }
    sections.retain(|(_, commands)| !commands.is_empty());
    sections
}

#[test]
fn every_command_of_the_page_on_rotation_works() {
    let mut host = Host::new(BACKUP);
    host.unset("BACKUP_REPO");
    std::fs::create_dir(host.path("bin")).unwrap();
    std::os::unix::fs::symlink(BACKUP, host.path("bin/backup")).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    host.set("PATH", format!("{}:{path}", host.path("bin").display()));
    let times = [
        ("The first key", "2026-01-10T09:00:00Z"),
        ("Once a year", "2026-11-20T09:00:00Z"),
        ("When the overlap is over", "2026-12-21T09:00:00Z"),
        ("Watching", "2026-12-22T09:00:00Z"),
    ];
    let sections = documented();
    assert_eq!(
        sections.iter().map(|(heading, _)| heading.as_str()).collect::<Vec<_>>(),
        times.map(|(heading, _)| heading)
    );
    for ((heading, commands), (_, now)) in sections.iter().zip(times) {
        let commands = commands.replace("/srv/backups", &host.path("srv").display().to_string());
        let script = format!("set -ex\n{commands}\necho '{heading}' | backup save app\n");
        host.shell(&script).env("BACKUP_UNDER_TEST_NOW", now).run().succeeded();
    }
    let listed = host.shell("backup list --json").run().json();
    assert_eq!(listed["backups"].as_array().unwrap().len(), times.len());
}

#[test]
fn the_decoder_passes_over_forged_rewraps_too() {
    let host = Host::initialised(BACKUP);
    let id = host.save("app", "decoded");
    let identity = host.path("new.txt");
    let recipient = host.backup(["key", "generate"]).args([&identity]).run().succeeded().text().trim_end().to_owned();
    decode(&host.repository(), &identity, &id, "data").expect_err("not yet");
    host.backup(["key", "rewrap", "--recipient", &recipient]).run().succeeded();
    let folder = host.stored().into_iter().find(|name| name.contains("/keys/")).unwrap();
    let (folder, name) = folder.rsplit_once('/').unwrap();
    let sound = std::fs::read_to_string(host.repository().join(folder).join(name)).unwrap();
    for forged in
        [sound.replacen("app", "db1", 1), sound.replacen("\"created\":\"2", "\"created\":\"1", 1), "junk".into()]
    {
        assert_ne!(forged, sound);
        host.write(format!("repository/{folder}/00000009-aaaaaaaaaaaaaaaa.json"), &forged);
        let decoded = decode(&host.repository(), &identity, &id, "data");
        assert_eq!(decoded.as_deref(), Ok(&b"decoded"[..]), "the older one is sound");
        let restored = host.backup(["restore", &id, "--to-stdout"]).env("BACKUP_IDENTITY_FILE", &identity).run();
        assert_eq!(restored.succeeded().stdout(), b"decoded");
        // Without the sound one there is nothing to believe.
        std::fs::rename(host.repository().join(folder).join(name), host.path("aside")).unwrap();
        decode(&host.repository(), &identity, &id, "data").expect_err("forged");
        host.backup(["restore", &id, "--to-stdout"]).env("BACKUP_IDENTITY_FILE", &identity).run().failed(12);
        std::fs::rename(host.path("aside"), host.repository().join(folder).join(name)).unwrap();
    }
}

#[test]
fn what_the_commands_say() {
    let mut office = Office::new();
    let first =
        office.backup(&["key", "list", "--json"]).run().json()["keys"][0]["recipient"].as_str().unwrap().to_owned();
    let second = office.generate("2027");
    office.save("one");
    office.now = "2026-12-20T00:00:00Z";
    office.backup(&["key", "rotate", "2026", "-R", &second, "--activates", "2026-12-24"]).run().succeeded();
    let said = |office: &Office, arguments: &[&str]| {
        let outcome = office.with("2026", arguments).run();
        let text = format!("{}{}{}\n", outcome.text(), outcome.stderr, outcome.code().unwrap());
        let text = text.replace(&first, "age1first").replace(&second, "age1second");
        text.replace(&office.host.path("").display().to_string(), "~/")
    };
    let mut all = said(&office, &["key", "list"]);
    all += &said(&office, &["key", "status"]);
    office.now = "2026-12-25T00:00:00Z";
    all += &said(&office, &["key", "status"]);
    all += &said(&office, &["key", "rewrap"]);
    all += &said(&office, &["key", "retire", "2026"]);
    office.now = "2027-01-10T09:00:00Z";
    all += &said(&office, &["key", "status", "--deep"]);
    all += &said(&office, &["key", "retire", "2026", "--dry-run"]);
    all += &said(&office, &["key", "rotate", "2025", "-R", "age1x"]);
    all += &said(&office, &["key", "rotate", "2027", "-R", "age1x"]);
    assert_eq!(all, SAID);
}

const SAID: &str = "\
KEY   STATE    FROM                  UNTIL                 REPLACES  RECIPIENT
2026  active   2026-01-10T09:00:00Z  2027-01-10T09:00:00Z  -         age1first
2027  pending  2026-12-24T00:00:00Z  2027-12-20T00:00:00Z  2026      age1second
0
KEY   STATE    UNTIL                 OPENS     NEEDED BY  RECIPIENT
2026  active   2027-01-10T09:00:00Z  1 backup  1 backup   age1first
2027  pending  2027-12-20T00:00:00Z  -         -          age1second
1 backup with 1 data key, as the repository says; --deep proves it
0
KEY   STATE    UNTIL                 OPENS     NEEDED BY  RECIPIENT
2026  overlap  2027-01-10T09:00:00Z  1 backup  1 backup   age1first
2027  active   2027-12-20T00:00:00Z  -         -          age1second
warning: only keys in overlap open 1 backup: run 'backup key rewrap' before they end
1 backup with 1 data key, as the repository says; --deep proves it
not wrapped for all keys of today: 1 backup; 'backup key rewrap' does that
3
wrapped again: 1 data key, for age1first, age1second; 0 had been before
new wraps opened for a proof: 0; read back and found authentic: 1
whoever has an old identity can still open what was wrapped for it: rewrapping is not revoking
0
error: key '2026' is used until 2027-01-10T09:00:00Z (overlap), so it cannot be retired
hint: if it must end at once, set 'expires' in its table of the configuration file
2
KEY   STATE    UNTIL                 OPENS     NEEDED BY  RECIPIENT
2026  expired  2027-01-10T09:00:00Z  1 backup  -          age1first
2027  active   2027-12-20T00:00:00Z  1 backup  1 backup   age1second
1 backup with 1 data key, opened and proved
0
1 backup can be opened without '2026'
0
error: no key '2025' is configured
hint: configured are: 2026, 2027
2
error: not an age recipient: invalid Bech32 encoding
hint: a recipient looks like 'age1…', as 'age-keygen -y key.txt' prints it
2
";
