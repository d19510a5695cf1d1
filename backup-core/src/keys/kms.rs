//! Recipients and identities that are keys of AWS KMS: `kms:arn:aws:kms:REGION:ACCOUNT:key/ID`.
//!
//! The data key is our own and KMS encrypts it: the host that writes needs `kms:Encrypt` and nothing else, the one that restores
//! `kms:Decrypt`. Both requests carry the [`EncryptionContext`] as `target` and `purpose`, so a policy can say
//! `kms:EncryptionContext:target`, and CloudTrail tells what was opened.
//!
//! A wrap is the ciphertext blob as KMS gave it; its recipient is the ARN of the key that KMS used, also where an alias was asked for.

mod arn;
mod client;
mod http;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures::future::BoxFuture;
use url::Url;

use super::{EncryptionContext, Identity, Recipient, Wrap};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::http::HttpOptions;
use arn::Arn;
use client::Kms;

/// The kind of a [`Wrap`] made by KMS, and what the names of such keys begin with.
pub const KIND: &str = "kms";

const PREFIX: &str = "kms:";
/// More would not be what KMS made of 32 bytes: those are about 180.
const BLOB_LEN_MAX: usize = 6144;

/// A key of AWS KMS by its ARN, or that of an alias, as a recipient and as an identity. Its region is that of the ARN, so keys of several
/// regions work side by side.
///
/// `kms:ARN?endpoint=https://…` asks another endpoint than `AWS_ENDPOINT_URL_KMS`, `AWS_ENDPOINT_URL` or, without these, the region's own. One
/// without TLS is refused but on this host, since the data key goes there. Credentials are found as those of the
/// [S3 store](crate::repository::S3Options) are.
///
/// As an identity, a multi-Region key (`mrk-…`) opens what its replicas in other regions wrapped; and an alias, which may have moved on since,
/// stands for every key of its account and region.
///
/// [`with_http_options`](Self::with_http_options) says how HTTP is spoken. Nothing is asked before the first use. A request has 30 s, retries included.
#[derive(Clone)]
pub struct KmsKey(Arc<Inner>);

struct Inner {
    arn: Arn,
    endpoint: Option<Url>,
    kms: Kms,
}

impl FromStr for KmsKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: String| {
            Error::config(format!("not a key of AWS KMS: {why}"))
                .with_hint("a key looks like 'kms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-…'")
        };
        let name =
            text.trim().strip_prefix(PREFIX).ok_or_else(|| refused(format!("it does not begin with {PREFIX}")))?;
        let (arn, query) = name.split_once('?').map_or((name, None), |(arn, query)| (arn, Some(query)));
        let arn: Arn = arn.parse().map_err(refused)?;
        let endpoint = match query.map(|query| query.split_once('=')) {
            None => None,
            Some(Some(("endpoint", url))) => Some(client::parse_endpoint(url)?),
            Some(_) => return Err(refused("'endpoint' is all that can follow the question mark".to_owned())),
        };
        let kms = Kms::new(arn.region.clone(), endpoint.clone(), HttpOptions::default());
        Ok(Self(Arc::new(Inner { arn, endpoint, kms })))
    }
}

/// What [`FromStr`] reads.
impl fmt::Display for KmsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.0.arn)?;
        self.0.endpoint.as_ref().map_or(Ok(()), |url| write!(f, "?endpoint={url}"))
    }
}

impl fmt::Debug for KmsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KmsKey({self})")
    }
}

impl KmsKey {
    /// The same key, reached in another way. What is remembered of KMS, such as connections, is not taken along.
    #[must_use]
    pub fn with_http_options(&self, http: &HttpOptions) -> Self {
        let Inner { arn, endpoint, .. } = &*self.0;
        let kms = Kms::new(arn.region.clone(), endpoint.clone(), http.clone());
        Self(Arc::new(Inner { arn: arn.clone(), endpoint: endpoint.clone(), kms }))
    }

    /// Which key to ask for, if this one opens what `wrapped_for` wrapped.
    fn to_ask_for(&self, wrapped_for: &Arn) -> Option<Arn> {
        let own = &self.0.arn;
        let here = || Arn { region: own.region.clone(), ..wrapped_for.clone() };
        let related = own.partition == wrapped_for.partition
            && own.account == wrapped_for.account
            && (own.region == wrapped_for.region || wrapped_for.is_multi_region());
        (related && (own.is_alias() || own.resource == wrapped_for.resource)).then(here)
    }

    /// The same of a wrap.
    fn asked_for(&self, wrap: &Wrap) -> Option<Arn> {
        // Who can write to the repository can write anything there. It may choose among keys that we named, and nothing else.
        let wrapped_for = wrap.recipient.strip_prefix(PREFIX).filter(|_| wrap.kind == KIND)?;
        self.to_ask_for(&wrapped_for.parse().ok()?)
    }

    async fn decrypt(&self, arn: &Arn, wrap: &Wrap, context: &EncryptionContext) -> Result<DataKey> {
        let damaged = |why: &str| {
            let message = format!("the data key wrapped for {} {why}", wrap.recipient);
            Error::new(ErrorKind::Integrity, Stage::Keys, message)
        };
        if wrap.wrap.is_empty() || wrap.wrap.len() > BLOB_LEN_MAX {
            return Err(damaged("is damaged: KMS gives no ciphertext of that length"));
        }
        let plaintext = self.0.kms.decrypt(arn, wrap.wrap.clone(), context).await?;
        let key = plaintext.as_slice().try_into().map_err(|_| damaged("is no data key: it has another length"))?;
        Ok(DataKey::from_bytes(key))
    }
}

impl Recipient for KmsKey {
    fn describe(&self) -> (&'static str, String) {
        (KIND, format!("{PREFIX}{}", self.0.arn))
    }

    fn is_stable(&self) -> bool {
        !self.0.arn.is_alias()
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Wrap>> {
        Box::pin(async move {
            let (used, wrap) = self.0.kms.encrypt(&self.0.arn, key.expose(), context).await?;
            // An alias may point elsewhere tomorrow; what opens this is the key.
            let arn = used.and_then(|arn| arn.parse().ok()).unwrap_or_else(|| self.0.arn.clone());
            Ok(Wrap { kind: KIND.to_owned(), recipient: format!("{PREFIX}{arn}"), wrap })
        })
    }
}

impl Identity for KmsKey {
    fn is_costly(&self, wrap: &Wrap) -> bool {
        self.asked_for(wrap).is_some()
    }

    fn unwrap<'a>(&'a self, wrap: &'a Wrap, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Option<DataKey>>> {
        Box::pin(async move {
            match self.asked_for(wrap) {
                Some(arn) => self.decrypt(&arn, wrap, context).await.map(Some),
                None => Ok(None),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "kms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    const MRK: &str = "kms:arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab";
    const ALIAS: &str = "kms:arn:aws:kms:eu-central-1:111122223333:alias/backup";

    fn asks_for(identity: &str, wrapped_for: &str) -> Option<String> {
        let identity: KmsKey = identity.parse().unwrap();
        identity.to_ask_for(&wrapped_for.strip_prefix(PREFIX).unwrap().parse().unwrap()).map(|arn| format!("kms:{arn}"))
    }

    #[test]
    fn keys_read_as_they_are_written() {
        for text in [KEY, MRK, ALIAS, &format!("{KEY}?endpoint=https://kms.example:8443/")] {
            assert_eq!(text.parse::<KmsKey>().unwrap().to_string(), *text);
        }
        let (kind, recipient) = format!("{KEY}?endpoint=http://127.0.0.1:1").parse::<KmsKey>().unwrap().describe();
        assert_eq!((kind, recipient.as_str()), ("kms", KEY));
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        for (text, reason) in [
            ("arn:aws:kms:eu-central-1:111122223333:key/1", "begin with kms:"),
            ("kms:1234abcd-12ab-34cd-56ef-1234567890ab", "not an ARN"),
            ("kms:alias/backup", "not an ARN"),
            ("kms:arn:aws:s3:eu-central-1:111122223333:key/1", "not an ARN of KMS"),
            ("kms:arn:aws:kms::111122223333:key/1", "region"),
            ("kms:arn:aws:kms:eu/../x:111122223333:key/1", "region"),
            ("kms:arn:aws:kms:eu-central-1:1111:key/1", "account"),
            ("kms:arn:aws:kms:eu-central-1:111122223333:grant/1", "neither"),
            ("kms:arn:aws:kms:eu-central-1:111122223333:key/", "neither"),
            ("kms:arn:aws:kms:eu-central-1:111122223333:key/1?region=x", "endpoint"),
        ] {
            let error = text.parse::<KmsKey>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn an_endpoint_that_would_see_the_data_key_in_the_clear_is_refused() {
        for url in ["http://kms.example", "ftp://127.0.0.1", "https://key:hush@kms.example", "hush"] {
            let error = format!("{KEY}?endpoint={url}").parse::<KmsKey>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
        for url in ["http://127.0.0.1:5000", "http://[::1]:5000", "http://localhost:5000", "https://kms.example"] {
            format!("{KEY}?endpoint={url}").parse::<KmsKey>().unwrap();
        }
    }

    #[test]
    fn an_identity_asks_for_its_own_key_its_replica_or_what_its_alias_stood_for() {
        let elsewhere = |key: &str| key.replace("eu-central-1", "us-west-2");
        assert_eq!(asks_for(KEY, KEY).unwrap(), KEY);
        assert_eq!(asks_for(KEY, MRK), None);
        assert_eq!(asks_for(KEY, &elsewhere(KEY)), None);
        assert_eq!(asks_for(MRK, &elsewhere(MRK)).unwrap(), MRK);
        assert_eq!(asks_for(&elsewhere(MRK), MRK).unwrap(), elsewhere(MRK));
        assert_eq!(asks_for(MRK, &MRK.replace("111122223333", "999999999999")), None);
        assert_eq!(asks_for(ALIAS, KEY).unwrap(), KEY);
        assert_eq!(asks_for(ALIAS, &elsewhere(KEY)), None);
        assert_eq!(asks_for(ALIAS, &elsewhere(MRK)).unwrap(), MRK);
        assert_eq!(asks_for(ALIAS, &KEY.replace("111122223333", "999999999999")), None);
        assert_eq!(asks_for(ALIAS, &KEY.replace("arn:aws:", "arn:aws-cn:")), None);
    }

    #[tokio::test]
    async fn wraps_of_others_are_left_alone_and_ask_nobody() {
        let identity: KmsKey = KEY.parse().unwrap();
        let context = EncryptionContext::of_backup(&"app".parse().unwrap());
        for (kind, recipient) in [("age", KEY), ("kms", MRK), ("kms", "hush"), ("kms", "arn:aws:kms:x:1:key/1")] {
            let wrap = Wrap { kind: kind.to_owned(), recipient: recipient.to_owned(), wrap: vec![1; 100] };
            assert!(identity.unwrap(&wrap, &context).await.unwrap().is_none(), "{kind} {recipient}");
        }
        // Before anything is asked for.
        let wrap = Wrap { kind: KIND.to_owned(), recipient: KEY.to_owned(), wrap: vec![1; BLOB_LEN_MAX + 1] };
        assert_eq!(identity.unwrap(&wrap, &context).await.unwrap_err().kind(), ErrorKind::Integrity);
    }
}
