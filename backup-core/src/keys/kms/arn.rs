//! Names of keys and of their aliases. No I/O.

use std::fmt;
use std::str::FromStr;

const ARN_LEN_MAX: usize = 2048;

/// `arn:PARTITION:kms:REGION:ACCOUNT:RESOURCE`, where the resource is `key/ID` or `alias/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arn {
    pub(super) partition: String,
    pub(super) region: String,
    pub(super) account: String,
    pub(super) resource: String,
}

impl Arn {
    pub(super) fn is_alias(&self) -> bool {
        self.resource.starts_with("alias/")
    }

    /// Whether the key has replicas in other regions, with the same id there.
    pub(super) fn is_multi_region(&self) -> bool {
        self.resource.starts_with("key/mrk-")
    }
}

impl FromStr for Arn {
    /// Why it is none.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", partition, service, region, account, resource] = parts[..] else {
            return Err("it is not an ARN, which tells region and account".to_owned());
        };
        if service != "kms" || !partition.starts_with("aws") || text.len() > ARN_LEN_MAX {
            return Err("it is not an ARN of KMS".to_owned());
        }
        // It becomes a part of the host's name.
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if region.is_empty() || !region.bytes().all(plain) || !partition.bytes().all(plain) {
            return Err("the region in it cannot be one".to_owned());
        }
        if account.len() != 12 || !account.bytes().all(|c| c.is_ascii_digit()) {
            return Err("the account in it does not have 12 digits".to_owned());
        }
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'_' | b'-');
        match resource.split_once('/') {
            Some(("key" | "alias", name)) if !name.is_empty() && name.bytes().all(allowed) => {}
            _ => return Err("it names neither a key nor an alias".to_owned()),
        }
        let own = str::to_owned;
        Ok(Self { partition: own(partition), region: own(region), account: own(account), resource: own(resource) })
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:{}:kms:{}:{}:{}", self.partition, self.region, self.account, self.resource)
    }
}
