//! Signing keys in files: PKCS#8 in PEM (RFC 8410), as `openssl genpkey -algorithm ed25519` writes it.

use std::path::Path;

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::key_error;
use super::secret::read_private_file;
use crate::clock::Clock;
use crate::durable;
use crate::encrypt::signature::SigningKey;
use crate::error::Result;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// A key is some two hundred bytes; a larger file is something else.
const FILE_LEN_MAX: usize = 16 * 1024;

impl SigningKey {
    /// Reads the key from a PEM file. Blocks; the file is at most 16 KiB.
    ///
    /// A file that others could read is refused: they could sign, too.
    ///
    /// # Errors
    /// Of kind [`ErrorKind::Key`](crate::ErrorKind::Key), when the file cannot be read, is open to others, or holds anything else than one Ed25519 key.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_private_file(path, "signing key file", FILE_LEN_MAX)?;
        parse(&text).map_err(|reason| {
            key_error(format!("{} is not a usable signing key: {reason}", path.display())).with_hint(
                "it is an Ed25519 key in PEM, as 'backup key generate --signing FILE' or 'openssl genpkey -algorithm ed25519' writes it",
            )
        })
    }

    /// Writes the key to `path`, which must not exist: mode 0600, made durable, missing directories made with mode 0700. Blocks.
    ///
    /// # Errors
    /// Of kind [`ErrorKind::Key`](crate::ErrorKind::Key).
    pub fn create_file(&self, path: &Path, clock: &dyn Clock) -> Result<()> {
        let created = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        // What precedes the first line of dashes is for people (RFC 7468, section 2).
        let head = format!("created: {created}\npublic key: {}\n{BEGIN}\n", self.signer());
        let der = self.to_pkcs8();
        let mut text = Zeroizing::new(String::with_capacity(head.len() + 2 * der.len() + END.len() + 2));
        text.push_str(&head);
        BASE64.encode_append(&der, &mut text);
        text.push('\n');
        text.push_str(END);
        text.push('\n');
        durable::create_private_file(path, text.as_bytes()).map_err(|e| {
            let exists = e.kind() == std::io::ErrorKind::AlreadyExists;
            let error = key_error(format!("could not create the signing key file {}", path.display())).with_source(e);
            if exists { error.with_hint("a key is never overwritten: choose another name") } else { error }
        })
    }
}

/// The key in a PEM text. The reason never quotes the text.
fn parse(text: &str) -> Result<SigningKey, &'static str> {
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        return Err("it is protected by a passphrase");
    }
    let Some((_, rest)) = text.split_once(BEGIN) else { return Err("it holds no PKCS#8 key in PEM") };
    let Some((body, rest)) = rest.split_once(END) else { return Err("its end is missing") };
    if rest.contains("-----BEGIN") {
        return Err("it holds several things");
    }
    let mut base64 = Zeroizing::new(String::with_capacity(body.len()));
    base64.extend(body.chars().filter(|c| !c.is_ascii_whitespace()));
    let der = BASE64.decode(base64.as_bytes()).map(Zeroizing::new).map_err(|_| "it is not Base64")?;
    SigningKey::from_pkcs8(&der).ok_or("it is no Ed25519 key")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ErrorKind;
    use crate::clock::SystemClock;

    #[test]
    fn a_key_is_read_from_the_file_that_was_written_and_from_those_of_openssl() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("keys/sign.pem");
        let key = SigningKey::generate();
        key.create_file(&path, &SystemClock).unwrap();
        assert_eq!(SigningKey::load(&path).unwrap().signer(), key.signer());
        assert!(std::fs::read_to_string(&path).unwrap().contains(&format!("public key: {}\n", key.signer())));
        assert!(key.create_file(&path, &SystemClock).unwrap_err().hint().unwrap().contains("never overwritten"));

        // The example of RFC 8410, section 10.3.
        let example = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let signer = parse(example).unwrap().signer();
        assert_eq!(signer.to_string(), "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=");
        assert_eq!(parse(&example.replace('\n', "\r\n")).unwrap().signer(), signer);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("sign.pem");
        SigningKey::generate().create_file(&path, &SystemClock).unwrap();
        for mode in [0o640, 0o604, 0o666] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = SigningKey::load(&path).unwrap_err();
            assert_eq!(
                (error.kind(), error.hint().unwrap()),
                (ErrorKind::Key, &*format!("chmod 600 {}", path.display()))
            );
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        SigningKey::load(&path).unwrap();
    }

    #[test]
    fn what_is_no_signing_key_is_named_and_never_quoted() {
        for (text, expected) in [
            ("", "no PKCS#8 key"),
            ("AGE-SECRET-KEY-1XYZ", "no PKCS#8 key"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nXYZ", "passphrase"),
            ("-----BEGIN PRIVATE KEY-----\nXYZ", "end is missing"),
            ("-----BEGIN PRIVATE KEY-----\nXYZ\n-----END PRIVATE KEY-----\n", "not Base64"),
            ("-----BEGIN PRIVATE KEY-----\nWFla\n-----END PRIVATE KEY-----\n", "no Ed25519 key"),
        ] {
            let reason = parse(text).unwrap_err();
            assert!(reason.contains(expected) && !reason.contains("XYZ"), "{reason}");
        }
    }
}
