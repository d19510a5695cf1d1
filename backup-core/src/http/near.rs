//! Whom no proxy is asked for.

use std::net::IpAddr;

use url::Host;

/// Whether it is this host, or on the link next to it, as are all that hand out a machine's or a container's credentials (169.254.169.254,
/// 169.254.170.2, 169.254.170.23, and with IPv6 those of `fd00:ec2::`). A proxy would ask its own, and learn what they say.
pub(super) fn is_near(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Ok(Host::Ipv4(address)) => is_near_address(address.into()),
        Ok(Host::Ipv6(address)) => is_near_address(address.into()),
        Err(_) => false,
    }
}

fn is_near_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.segments()[..2] == [0xfd00, 0x0ec2]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hands_out_credentials_is_never_asked_by_way_of_a_proxy() {
        for near in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "[fd00:ec2::23]",
            "[fd00:ec2::254]",
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "[fe80::1]",
            "[::ffff:169.254.170.2]",
            "2852039170",
            "localhost",
            "LOCALHOST",
            "azurite.localhost.",
        ] {
            assert!(is_near(near), "{near}");
        }
        for far in ["10.0.0.1", "169.253.0.1", "[fd00:ec3::23]", "[2001:db8::1]", "s3.test", "localhost.example", ""] {
            assert!(!is_near(far), "{far}");
        }
    }
}
