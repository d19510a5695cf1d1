//! The environment as far as stores and key services look at it, taken once, so that tests can make one up.

use std::collections::BTreeMap;

pub(crate) type Environment = BTreeMap<String, String>;

/// What cloud providers' own tools read.
const PREFIXES: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_"];

pub(crate) fn environment() -> Environment {
    // Empty is unset: an empty session token would be sent and refused.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| {
            let matters = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            (matters || name == "HOME" || name == "IDENTITY_ENDPOINT") && !value.is_empty()
        })
        .collect()
}
