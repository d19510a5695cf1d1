//! Which layer wins, and what is said of wrong values.

use clap::Parser;

use super::*;
use crate::args::Cli;

const FILE: &str = r#"
recipients = ["age1file"]
identity_files = ["keys/a.txt", "/b.txt"]
passphrase_file = "secret"
memory = "64MiB"
level = 9
codec = "none"
[repository]
url = "backups"
[repository.s3]
region = "eu-central-1"
"#;

fn merged(arguments: &[&str], environment: &[(&str, &str)], file: &str) -> Result<Config> {
    let cli = Cli::try_parse_from(["backup"].iter().chain(arguments)).unwrap();
    let file = ConfigFile::parse(Path::new("/etc/backup/backup.toml"), file.to_owned())?;
    Config::merge(&cli.globals, &cli.command, &Environment::of(environment), Some(&file))
}

fn seen<T: Clone>(setting: Option<&Setting<T>>) -> Option<(T, String)> {
    setting.map(|s| (s.value.clone(), s.origin.to_string()))
}

fn addresses(config: &Config) -> Vec<&str> {
    config.repositories().unwrap().iter().map(|repository| repository.url.value.as_str()).collect()
}

const SEVERAL: &str = r#"
optional_lag_seconds = 5
[repositories.primary]
url = "s3://a/p"
[repositories.primary.s3]
endpoint = "https://primary"
[repositories.archive]
url = "archive"
required = false
[repositories.dr]
url = "s3://c"
[repositories.dr.s3]
profile = "dr"
"#;

#[test]
fn several_repositories_come_in_the_order_of_the_file_and_each_is_reached_as_its_own_table_says() {
    let environment = [("AWS_ENDPOINT_URL", "https://everywhere"), ("AWS_REGION", "eu-1")];
    let config = merged(&["list"], &environment, SEVERAL).unwrap();
    assert_eq!(addresses(&config), ["s3://a/p", "/etc/backup/archive", "s3://c"]);
    let all = config.repositories().unwrap();
    assert_eq!(all.iter().map(|r| r.required).collect::<Vec<_>>(), [true, false, true]);
    let endpoint = |i: usize| seen(all[i].stores.s3.endpoint.as_ref()).map(|(endpoint, _)| endpoint);
    let region = |i: usize| seen(all[i].stores.s3.region.as_ref()).map(|(region, _)| region);
    assert_eq!(endpoint(0).as_deref(), Some("https://primary"));
    assert_eq!(region(0).as_deref(), Some("eu-1"));
    // Credentials of its own come with all the rest.
    assert_eq!((endpoint(2), region(2)), (None, None));
    assert_eq!(config.optional_lag.unwrap().value, 5);
}

#[test]
fn repositories_are_chosen_by_name_or_address_and_whoever_is_named_alone_is_required() {
    let chosen = |flags: &[&str], environment: &[(&str, &str)]| {
        let config = merged(&[flags, &["list"]].concat(), environment, SEVERAL).unwrap();
        let all = config.repositories().unwrap().iter();
        all.map(|r| format!("{} {}", r.name.as_deref().unwrap_or(&r.url.value), r.required)).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&["--repo", "archive"], &[]), ["archive true"]);
    assert_eq!(chosen(&["--repo", "./archive", "-r", "archive"], &[]), ["./archive true", "archive false"]);
    assert_eq!(chosen(&[], &[("BACKUP_REPO", "dr, /var/backups")]), ["dr true", "/var/backups true"]);
}

#[test]
fn repositories_that_cannot_be_meant_are_refused_with_their_line() {
    let refused = |file: &str| merged(&["list"], &[], file).unwrap_err().to_string();
    let one = "[repositories.a]\nurl = \"/a\"\n";
    for (file, expected) in [
        (format!("[repository]\nurl = \"/b\"\n{one}"), ":2: there are a [repository] and [repositories.NAME]"),
        ("[repository]\nurl = \"/b\"\nrequired = true\n".to_owned(), ":3: the only repository is always required"),
        (format!("{one}required = false\n"), "none of the repositories is required"),
        ("[repositories.a]\nrequired = true\n".to_owned(), ":1: the repository 'a' has no url"),
        ("[repositories.\"a,b\"]\nurl = \"/a\"\n".to_owned(), ":1: 'a,b' cannot name a repository"),
    ] {
        let message = refused(&file);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let flags = ["save", "app", "--level", "-3", "--repo", "/r"];
    let environment = [("BACKUP_REPO", "/e"), ("BACKUP_LEVEL", "5"), ("BACKUP_CODEC", "zstd"), ("BACKUP_MEMORY", "")];
    let config = merged(&flags, &environment, FILE).unwrap();
    assert_eq!(seen(Some(&config.repositories.all[0].url)), Some(("/r".into(), "--repo".into())));
    assert_eq!(seen(Some(&config.encoding.level)), Some((-3, "--level".into())));
    assert_eq!(seen(Some(&config.encoding.codec)), Some((CodecName::Zstd, "BACKUP_CODEC".into())));
    assert_eq!(seen(config.memory.as_ref()), Some((ByteSize::mib(64), "/etc/backup/backup.toml:5".into())));
    assert_eq!(seen(Some(&config.encoding.cipher)), Some((CipherName::Aes256Gcm, "default".into())));
}

#[test]
fn identities_that_are_no_files_are_lists_on_every_layer() {
    let file = "identities = [\"kms:arn:file\"]\n";
    let seen_with = |flags: &[&str], environment: &[(&str, &str)]| {
        seen(merged(&[&["list"], flags].concat(), environment, file).unwrap().identities.as_ref()).unwrap()
    };
    let environment = [("BACKUP_IDENTITIES", "kms:arn:env, pkcs11:object=a%2Cb,")];
    assert_eq!(seen_with(&[], &[]), (vec!["kms:arn:file".to_owned()], "/etc/backup/backup.toml:1".to_owned()));
    let (value, origin) = seen_with(&[], &environment);
    assert_eq!(
        (value, origin.as_str()),
        (vec!["kms:arn:env".to_owned(), "pkcs11:object=a%2Cb".to_owned()], "BACKUP_IDENTITIES")
    );
    let (value, origin) = seen_with(&["--identity", "kms:arn:1", "--identity", "kms:arn:2"], &environment);
    assert_eq!((value, origin.as_str()), (vec!["kms:arn:1".to_owned(), "kms:arn:2".to_owned()], "--identity"));
}

#[test]
fn paths_in_the_file_are_relative_to_it_and_others_are_not() {
    let config = merged(&["list"], &[], FILE).unwrap();
    assert_eq!(addresses(&config), ["/etc/backup/backups"]);
    assert_eq!(config.identity_files.unwrap().value, [Path::new("/etc/backup/keys/a.txt"), Path::new("/b.txt")]);
    assert_eq!(config.passphrase.unwrap().value, SecretSource::File("/etc/backup/secret".into()));
    let config = merged(&["list"], &[("BACKUP_REPO", "backups"), ("BACKUP_IDENTITY_FILE", "k")], FILE).unwrap();
    assert_eq!(addresses(&config), ["backups"]);
    assert_eq!(config.identity_files.unwrap().value, [Path::new("k")]);
}

#[test]
fn a_mistyped_address_in_the_file_does_not_become_a_path() {
    for address in ["s3:/bucket", "s3:bucket", "memory:", "s3://bucket"] {
        let config = merged(&["list"], &[], &format!("[repository]\nurl = \"{address}\"")).unwrap();
        assert_eq!(addresses(&config), [address]);
    }
}

#[test]
fn recipients_are_separated_by_commas_in_the_environment() {
    let config = merged(&["save", "app"], &[("BACKUP_RECIPIENTS", "age1a, age1b,")], FILE).unwrap();
    assert_eq!(config.recipients.unwrap().value, ["age1a", "age1b"]);
    let config = merged(&["save", "app", "-R", "age1c", "-R", "age1d"], &[], FILE).unwrap();
    assert_eq!(config.recipients.unwrap().value, ["age1c", "age1d"]);
}

#[test]
fn of_a_passphrase_file_and_command_the_higher_layer_wins_and_equals_are_refused() {
    let command = ("BACKUP_PASSPHRASE_COMMAND", "pass show backup");
    let config = merged(&["list"], &[command], FILE).unwrap();
    assert_eq!(config.passphrase.unwrap().value, SecretSource::Command("pass show backup".into()));
    assert!(merged(&["list"], &[command, ("BACKUP_PASSPHRASE_FILE", "/p")], FILE).is_err());
}

#[test]
fn the_default_identity_follows_xdg_then_home() {
    let default = |environment: &[(&str, &str)]| merged(&["list"], environment, "").unwrap().identity_files;
    let home = ("HOME", "/home/u");
    assert_eq!(default(&[home]).unwrap().value, [Path::new("/home/u/.config/backup/identity.txt")]);
    assert_eq!(default(&[home, ("XDG_CONFIG_HOME", "/x")]).unwrap().value, [Path::new("/x/backup/identity.txt")]);
    assert_eq!(default(&[]), None);
}

#[test]
fn wrong_values_say_where_they_stand() {
    let message =
        |environment: &[(&str, &str)], file: &str| merged(&["list"], environment, file).unwrap_err().to_string();
    assert_eq!(
        message(&[("BACKUP_WORKERS", "0")], ""),
        "BACKUP_WORKERS: invalid value '0': number would be zero for non-zero type"
    );
    assert_eq!(message(&[], "\nlevel = 20"), "/etc/backup/backup.toml:2: level 20 is not between -7 and 19");
}

#[test]
fn a_profile_wins_over_the_environment_in_the_only_table_too() {
    let file = "[repository]\nurl = \"s3://a\"\n[repository.s3]\nprofile = \"dr\"\n";
    let environment =
        [("AWS_ENDPOINT_URL", "https://everywhere"), ("AWS_REGION", "eu-1"), ("AZURE_STORAGE_ACCOUNT", "mine")];
    let stores = merged(&["list"], &environment, file).unwrap().stores;
    assert_eq!((stores.s3.endpoint, stores.s3.region), (None, None));
    // It is a profile of AWS.
    assert_eq!(stores.azure.account.unwrap().value, "mine");
    let stores = merged(&["list", "--s3-region", "x"], &environment, file).unwrap().stores;
    assert_eq!(stores.s3.region.unwrap().value, "x");
}

#[test]
fn a_connection_string_says_all_at_once_unless_a_flag_or_the_file_says_otherwise() {
    let environment = [
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=mine"),
        ("AZURE_STORAGE_ACCOUNT", "other"),
        ("AZURE_STORAGE_ENDPOINT", "https://other"),
    ];
    let azure = |arguments: &[&str], environment: &[(&str, &str)], file: &str| {
        let azure = merged(arguments, environment, file).unwrap().stores.azure;
        (azure.account.map(|setting| setting.value), azure.endpoint.map(|setting| setting.value))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(azure(&["list"], &environment, ""), (None, None));
    assert_eq!(azure(&["list"], &environment[1..], ""), (some("other"), some("https://other")));
    assert_eq!(azure(&["list", "--azure-account", "flag"], &environment, "").0, some("flag"));
    assert_eq!(azure(&["list"], &environment, "[repository.azure]\naccount = \"file\"\n").0, some("file"));
}
