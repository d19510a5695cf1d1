//! What a restored server is told, and what it is not.

use clap::Parser;

use super::*;
use crate::args::Cli;

/// What the server is told of this: its flags, without `--config FILE`, and the variables that it needs.
fn told(flags: &[&str], variables: &[(&str, &str)], file: &str) -> Result<(String, Vec<&'static str>)> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("backup.toml");
    std::fs::write(&path, file).unwrap();
    let config = ["backup", "--config", path.to_str().unwrap(), "restore", "app", "--to", "/to"];
    let cli = Cli::try_parse_from(config.iter().chain(flags)).unwrap();
    let environment = Environment::of(variables);
    let config = Config::load(&cli.globals, &cli.command, &environment)?;
    let fetching = Fetching::new(&config, &environment)?;
    Ok((fetching.flags[2..].join(" "), fetching.needs.variables))
}

fn flags_of(flags: &[&str], variables: &[(&str, &str)], file: &str) -> String {
    told(flags, variables, file).unwrap().0
}

const TWO: &str = "[repositories.primary]\nurl = \"s3://backups-a\"\n[repositories.primary.s3]\nregion = \"eu-1\"\n\
    [repositories.second]\nurl = \"s3://backups-b\"\n";
const ONE: &str = "[repository]\nurl = \"s3://backups-a\"\n";
const LOCAL: &str = "[repository]\nurl = \"/var/backups\"\n";

#[test]
fn a_region_of_the_environment_does_not_win_over_the_table_that_won_over_it() {
    let region = [("AWS_REGION", "us-9")];
    assert_eq!(flags_of(&["--repo", "primary"], &region, TWO), "--repo primary");
    assert_eq!(flags_of(&["--repo", "second"], &region, TWO), "--repo second --s3-region us-9");
    assert_eq!(flags_of(&[], &region, ONE), "--s3-region us-9");
    // A flag cannot say it for the second alone.
    let error = told(&[], &region, TWO).unwrap_err();
    assert!(error.to_string().contains("AWS_REGION") && error.to_string().contains("'primary'"), "{error}");
    assert!(error.hint().unwrap().contains("--repo"), "{error:?}");
    // One that says the same takes no harm, and what a flag says is so for all.
    assert_eq!(flags_of(&[], &[("AWS_REGION", "eu-1")], TWO), "--s3-region eu-1");
    assert_eq!(flags_of(&["--s3-region", "x"], &region, TWO), "--s3-region x");
    let profile = TWO.replace("region = \"eu-1\"", "profile = \"dr\"");
    assert!(told(&[], &region, &profile).is_err());
}

#[test]
fn of_stores_that_are_not_used_nothing_is_written_and_no_secret_of_any() {
    let endpoint = [("AWS_ENDPOINT_URL", "https://user:hush@minio"), ("AZURE_STORAGE_ACCOUNT", "hush")];
    assert_eq!(flags_of(&[], &endpoint, LOCAL), "");
    let proxy = ["--proxy", "http://user:hush@proxy:3128"];
    assert_eq!(flags_of(&proxy, &[], LOCAL), "");
    for (flags, variables) in [(&[][..], &endpoint[..]), (&proxy[..], &[])] {
        let error = told(flags, variables, ONE).unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
    assert_eq!(flags_of(&[], &[("AWS_ENDPOINT_URL", "https://minio")], ONE), "--s3-endpoint https://minio");
}

#[test]
fn a_proxy_and_an_authority_of_the_environment_are_told_where_a_flag_says_the_same() {
    let bundle = [("AWS_CA_BUNDLE", "/etc/ca.pem")];
    let unused = |variables: &[(&str, &str)], file: &str| told(&[], variables, file).unwrap();
    let mine = format!("{ONE}[http]\nca_file = \"/etc/mine.pem\"\n");
    assert_eq!(unused(&bundle, ONE), ("--ca-file /etc/ca.pem".to_owned(), vec![]));
    assert_eq!(unused(&bundle, &mine), (String::new(), vec!["AWS_CA_BUNDLE"]));
    assert_eq!(unused(&bundle, LOCAL), (String::new(), vec![]));

    let proxy = ("HTTPS_PROXY", "http://proxy:3128");
    assert_eq!(unused(&[proxy], ONE), ("--proxy http://proxy:3128".to_owned(), vec![]));
    assert_eq!(unused(&[("all_proxy", "proxy:3128")], ONE), ("--proxy http://proxy:3128".to_owned(), vec![]));
    let with_exceptions = unused(&[proxy, ("NO_PROXY", "minio")], ONE);
    assert_eq!(with_exceptions, (String::new(), vec!["HTTPS_PROXY", "NO_PROXY"]));
    let with_password = unused(&[("https_proxy", "http://me:hush@proxy")], ONE);
    assert_eq!(with_password, (String::new(), vec!["https_proxy"]));
    let plain = format!("{ONE}[repository.s3]\nendpoint = \"http://minio\"\n");
    assert_eq!(unused(&[proxy], &plain), (String::new(), vec!["HTTPS_PROXY"]));
    assert_eq!(unused(&[("HTTP_PROXY", "http://proxy")], ONE), (String::new(), vec![]));
}

#[test]
fn variables_that_no_flag_says_are_named_if_they_are_needed() {
    let all = [
        ("AWS_PROFILE", "dr"),
        ("AWS_ENDPOINT_URL_KMS", "https://kms"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/k"),
        ("AZURE_STORAGE_KEY", "hush"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
    ];
    let needed = |flags: &[&str], file: &str| told(flags, &all, file).unwrap().1;
    assert_eq!(needed(&[], LOCAL), [""; 0]);
    assert_eq!(needed(&[], ONE), ["AWS_PROFILE", "AWS_SECRET_ACCESS_KEY"]);
    assert_eq!(needed(&[], &format!("{ONE}[repository.s3]\nprofile = \"own\"\n")), [""; 0]);
    assert_eq!(needed(&["--repo", "gs://backups"], ""), ["GOOGLE_APPLICATION_CREDENTIALS"]);
    assert_eq!(needed(&["--repo", "az://backups"], ""), ["AZURE_STORAGE_KEY"]);
    let key = "kms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    assert_eq!(needed(&["--identity", key], LOCAL), ["AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_KMS"]);
}

#[test]
fn a_command_that_prints_a_pin_or_a_passphrase_is_not_written() {
    let pin = "pkcs11:object=dr?pin-source=%7Cecho%20hush";
    for flags in [["--identity", pin], ["--passphrase-command", "echo hush"]] {
        let error = told(&flags, &[], LOCAL).unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        assert!(error.hint().unwrap().contains("configuration file"), "{error:?}");
    }
    assert_eq!(flags_of(&[], &[], &format!("identities = [\"{pin}\"]\n{LOCAL}")), "");
    let file = "pkcs11:object=dr?module-path=/m&pin-source=/etc/pin";
    assert_eq!(flags_of(&["--identity", file], &[], LOCAL), format!("--identity {file}"));
}
