//! The AWS command line's own files, as far as a static profile goes: what people who have run `aws configure` expect to work.
//!
//! Not here: SSO, `credential_process`, `source_profile`. `aws configure export-credentials --format env` turns each into variables.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// These files hold a few lines for each profile.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// What a profile says. `Debug` is not derived: it holds a secret.
#[derive(Default, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) keys: Option<Keys>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

impl Profile {
    /// Reads the profile that `AWS_PROFILE` names, or `default`, from `~/.aws/credentials` and `~/.aws/config`, or from where
    /// `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` say. Missing files are as good as empty ones.
    pub(super) fn load(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let name = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
        let file = |overriding: &str, usual: &str| {
            let home = || Some(Path::new(&variable("HOME")?).join(".aws").join(usual));
            variable(overriding).map(PathBuf::from).or_else(home)
        };
        let credentials = read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
        let config = read(file("AWS_CONFIG_FILE", "config"))?;
        Ok(Self::parse(&credentials, &config, &name))
    }

    fn parse(credentials: &str, config: &str, name: &str) -> Self {
        let value = |key| lookup(credentials, name, key).or_else(|| lookup(config, name, key)).map(str::to_owned);
        let keys = value("aws_access_key_id").zip(value("aws_secret_access_key"));
        Self {
            keys: keys.map(|(id, secret)| Keys { id, secret, token: value("aws_session_token") }),
            region: value("region"),
            endpoint: value("endpoint_url"),
        }
    }
}

fn read(path: Option<PathBuf>) -> Result<String> {
    let Some(path) = path else { return Ok(String::new()) };
    let failed = |e| Error::config(format!("could not read {}", path.display())).with_source(e);
    match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Ok(metadata) if metadata.len() > FILE_LEN_MAX => {
            Err(Error::config(format!("{} is too large to hold AWS profiles", path.display())))
        }
        Ok(_) => std::fs::read_to_string(&path).map_err(failed),
        Err(e) => Err(failed(e)),
    }
}

/// The value of `key` in `[profile]` or `[profile profile]`. Indented lines belong to a nested section and are passed over.
fn lookup<'t>(text: &'t str, profile: &str, key: &str) -> Option<&'t str> {
    let mut inside = false;
    let mut found = None;
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t', '#', ';'])) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default().trim();
            inside = header.strip_prefix("profile ").map_or(header, str::trim) == profile;
        } else if inside && let Some((k, v)) = line.split_once('=') {
            let v = v.split(" #").next().unwrap_or_default().trim();
            if k.trim().eq_ignore_ascii_case(key) && !v.is_empty() {
                found = Some(v);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# mine\n[default]\naws_access_key_id = AKID1\naws_secret_access_key=s/e+c=ret1 # note\n\n\
        [ dr ]\r\naws_access_key_id = AKID2\r\naws_secret_access_key = secret2\r\naws_session_token = token2\r\n[half]\naws_access_key_id = AKID3\n";
    const CONFIG: &str = "[default]\nregion = eu-central-1\ns3 =\n  region = nested\n[profile dr]\nregion=eu-west-3\n\
        endpoint_url = https://s3.example\n[profile half]\naws_secret_access_key =\n";

    #[test]
    fn static_profiles_are_read_from_both_files() {
        let profile = Profile::parse(CREDENTIALS, CONFIG, "default");
        let keys = profile.keys.unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token), ("AKID1", "s/e+c=ret1", None));
        assert_eq!((profile.region.as_deref(), profile.endpoint), (Some("eu-central-1"), None));

        let profile = Profile::parse(CREDENTIALS, CONFIG, "dr");
        let keys = profile.keys.unwrap();
        assert_eq!(
            (keys.id.as_str(), keys.secret.as_str(), keys.token.as_deref()),
            ("AKID2", "secret2", Some("token2"))
        );
        assert_eq!(
            (profile.region.as_deref(), profile.endpoint.as_deref()),
            (Some("eu-west-3"), Some("https://s3.example"))
        );

        assert!(Profile::parse(CREDENTIALS, CONFIG, "half").keys.is_none());
        assert!(Profile::parse(CREDENTIALS, CONFIG, "absent") == Profile::default());
    }

    #[test]
    fn files_are_found_where_the_variables_say() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join(".aws")).unwrap();
        std::fs::write(temp.path().join(".aws/credentials"), CREDENTIALS).unwrap();
        std::fs::write(temp.path().join("other"), "[dr]\naws_access_key_id=A\naws_secret_access_key=B\n").unwrap();
        let load = |extra: &[(&str, &str)]| {
            let home = temp.path().display().to_string();
            let variables: Vec<(String, String)> =
                extra.iter().map(|(k, v)| ((*k).to_owned(), v.replace('~', &home))).collect();
            let lookup = |name: &str| {
                variables
                    .iter()
                    .find(|(k, _)| k == name)
                    .map(|(_, v)| v.clone())
                    .or((name == "HOME").then(|| home.clone()))
            };
            Profile::load(lookup).unwrap().keys.map(|k| k.id)
        };
        assert_eq!(load(&[]).as_deref(), Some("AKID1"));
        assert_eq!(load(&[("AWS_PROFILE", "dr")]).as_deref(), Some("AKID2"));
        assert_eq!(load(&[("AWS_PROFILE", "dr"), ("AWS_SHARED_CREDENTIALS_FILE", "~/other")]).as_deref(), Some("A"));
        assert_eq!(load(&[("AWS_SHARED_CREDENTIALS_FILE", "~/absent")]), None);
    }
}
