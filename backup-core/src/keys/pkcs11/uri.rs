//! `pkcs11:` URIs ([RFC 7512](https://www.rfc-editor.org/rfc/rfc7512)), as far as they name one key. No I/O.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::hpke::{POINT_LEN, Point};
use crate::error::{Error, Result};
use crate::keys::secret::SecretSource;

pub(super) const SCHEME: &str = "pkcs11:";
const URI_LEN_MAX: usize = 4096;
/// What need not be encoded in either half. A comma may stand there too, but separates recipients in lists of ours.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':');

/// What a URI says.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Uri {
    pub(super) token: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) manufacturer: Option<String>,
    pub(super) model: Option<String>,
    pub(super) object: Option<String>,
    pub(super) id: Option<Vec<u8>>,
    pub(super) module: Option<PathBuf>,
    pub(super) pin: Option<SecretSource>,
    /// Not of the RFC, which leaves room for such attributes: the public half, so that the token need not be there to encrypt to it.
    pub(super) public_key: Option<Point>,
}

impl Uri {
    /// The same key without what is only true of this host.
    pub(super) fn public(&self) -> Self {
        Self { module: None, pin: None, ..self.clone() }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bytes: Vec<u8> = percent_decode_str(value).collect();
        let text = || String::from_utf8(bytes.clone()).map_err(|_| format!("the value of '{name}' is no text"));
        let twice = match name {
            "token" => self.token.replace(text()?).is_some(),
            "serial" => self.serial.replace(text()?).is_some(),
            "manufacturer" => self.manufacturer.replace(text()?).is_some(),
            "model" => self.model.replace(text()?).is_some(),
            "object" => self.object.replace(text()?).is_some(),
            "id" => self.id.replace(bytes).is_some(),
            // Which half of a pair is needed follows from what is done with it.
            "type" => !matches!(text()?.as_str(), "public" | "private" | "secret-key"),
            _ => return Err(format!("the attribute '{name}' is not known")),
        };
        if twice { Err(format!("'{name}' cannot be understood")) } else { Ok(()) }
    }

    fn set_query(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = percent_decode_str(value).decode_utf8().map_err(|_| format!("the value of '{name}' is no text"))?;
        let twice = match name {
            "module-path" => self.module.replace(PathBuf::from(&*text)).is_some(),
            "pin-source" => self.pin.replace(pin_source(&text)?).is_some(),
            "public-key" => self.public_key.replace(point(&text)?).is_some(),
            "pin-value" => {
                return Err("a PIN in it can be seen by others; name a file or a command with 'pin-source'".to_owned());
            }
            _ => return Err(format!("the attribute '{name}' is not known")),
        };
        if twice { Err(format!("'{name}' stands there twice")) } else { Ok(()) }
    }
}

/// `/path`, `file:/path`, or `|command`.
fn pin_source(text: &str) -> Result<SecretSource, String> {
    if let Some(command) = text.strip_prefix('|') {
        return match command.trim() {
            "" => Err("the command that prints the PIN is empty".to_owned()),
            command => Ok(SecretSource::Command(command.to_owned())),
        };
    }
    let path = text.strip_prefix("file://").or_else(|| text.strip_prefix("file:")).unwrap_or(text);
    if path.starts_with('/') {
        Ok(SecretSource::File(PathBuf::from(path)))
    } else {
        // Neither is a PIN that somebody took 'source' to mean repeated.
        Err("'pin-source' is neither an absolute path nor a '|' and a command".to_owned())
    }
}

fn point(text: &str) -> Result<Point, String> {
    let bytes = BASE64URL_NOPAD.decode(text.trim_end_matches('=').as_bytes()).ok();
    let point = bytes.and_then(|bytes| Point::try_from(bytes).ok()).filter(|point| point[0] == 4);
    point.ok_or_else(|| format!("'public-key' is not base64url of the {POINT_LEN} bytes of a point of P-256"))
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: String| {
            Error::config(format!("not a key on a PKCS#11 token: {why}")).with_hint(
                "such a key looks like 'pkcs11:token=backup;object=dr?module-path=/usr/lib/softhsm/libsofthsm2.so'",
            )
        };
        let text = text.trim();
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refused(format!("it does not begin with {SCHEME}")))?;
        if text.len() > URI_LEN_MAX {
            return Err(refused(format!("it is longer than {URI_LEN_MAX} bytes")));
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let pairs = |text: &'static str, part: &str| -> Result<Vec<(String, String)>, String> {
            let parts = part.split(|c| text.contains(c)).filter(|part| !part.is_empty());
            let pair = |part: &str| {
                let (name, value) = part.split_once('=').ok_or("a part of it is not NAME=VALUE")?;
                Ok((name.to_owned(), value.to_owned()))
            };
            parts.map(pair).collect()
        };
        for (name, value) in pairs(";", path).map_err(refused)? {
            uri.set(&name, &value).map_err(refused)?;
        }
        for (name, value) in pairs("&", query).map_err(refused)? {
            uri.set_query(&name, &value).map_err(refused)?;
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err(refused("it names neither 'object' nor 'id'".to_owned()));
        }
        Ok(uri)
    }
}

/// What [`FromStr`] reads, without the command that prints the PIN: people put secrets into commands.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |value: &[u8]| percent_encode(value, ENCODED).to_string();
        let text = |name: &str, value: &Option<String>| Some(format!("{name}={}", encode(value.as_ref()?.as_bytes())));
        let id = self.id.as_ref().map(|id| {
            let hex: String = id.iter().map(|byte| format!("%{byte:02X}")).collect();
            format!("id={hex}")
        });
        let path = [
            text("token", &self.token),
            text("serial", &self.serial),
            text("manufacturer", &self.manufacturer),
            text("model", &self.model),
            text("object", &self.object),
            id,
        ];
        let module =
            self.module.as_ref().map(|path| format!("module-path={}", encode(path.as_os_str().as_encoded_bytes())));
        let pin = self.pin.as_ref().and_then(|source| match source {
            SecretSource::File(path) => Some(format!("pin-source={}", encode(path.as_os_str().as_encoded_bytes()))),
            SecretSource::Command(_) => None,
        });
        let public_key = self.public_key.map(|point| format!("public-key={}", BASE64URL_NOPAD.encode(&point)));
        let path: Vec<String> = path.into_iter().flatten().collect();
        let query: Vec<String> = [module, pin, public_key].into_iter().flatten().collect();
        let mark = if query.is_empty() { "" } else { "?" };
        write!(f, "{SCHEME}{}{mark}{}", path.join(";"), query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn uris_read_as_they_are_written() {
        let point = BASE64URL_NOPAD.encode(&[&[4][..], &[7; 64]].concat());
        for text in [
            "pkcs11:object=dr".to_owned(),
            "pkcs11:token=Backup%20HSM;serial=12ab;manufacturer=M;model=SoftHSM%20v2;object=dr%2C1;id=%01%FF"
                .to_owned(),
            "pkcs11:id=%00?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/backup/pin".to_owned(),
            format!("pkcs11:token=a;object=dr?public-key={point}"),
        ] {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
        }
        let uri: Uri = "pkcs11:object=dr;type=private?pin-source=file:/etc/pin".parse().unwrap();
        assert_eq!(uri.pin, Some(SecretSource::File("/etc/pin".into())));
        let uri: Uri = "pkcs11:object=dr?pin-source=%7Cpass%20show%20hsm%20%3B%20true&module-path=/m".parse().unwrap();
        assert_eq!(uri.pin, Some(SecretSource::Command("pass show hsm ; true".into())));
        assert_eq!(uri.to_string(), "pkcs11:object=dr?module-path=/m");
        let public = "pkcs11:object=dr?module-path=/m&pin-source=/p".parse::<Uri>().unwrap().public();
        assert_eq!(public.to_string(), "pkcs11:object=dr");
    }

    #[test]
    fn what_names_no_key_is_refused_and_a_pin_never_repeated() {
        for (text, reason) in [
            ("token=a", "begin with pkcs11:"),
            ("pkcs11:token=a", "neither 'object' nor 'id'"),
            ("pkcs11:object", "NAME=VALUE"),
            ("pkcs11:object=a;object=b", "'object'"),
            ("pkcs11:object=a;type=cert", "'type'"),
            ("pkcs11:object=a;colour=red", "'colour' is not known"),
            ("pkcs11:object=%FF", "no text"),
            ("pkcs11:object=a?pin-value=hush", "'pin-source'"),
            ("pkcs11:object=a?pin-source=hush", "absolute path"),
            ("pkcs11:object=a?pin-source=%7C%20", "empty"),
            ("pkcs11:object=a?module-name=softhsm", "'module-name' is not known"),
            ("pkcs11:object=a?public-key=BAcH", "public-key"),
        ] {
            let error = text.parse::<Uri>().map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }
}
