//! The addresses that messages may be sent to.
//!
//! A merchant chooses where its events go, and the service sends from inside its own network. So it accepts
//! only addresses that anybody can reach: none of a private network, of the service's own host or of a
//! cloud's metadata service, and none that stands for another address (6to4, Teredo).
//!
//! A name says little about where it leads, so it's refused only where it can't be public: without a domain, or
//! in one that is reserved for private networks.
//!
//! Not promised: that a host name keeps its address. The client checks each address that it connects to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 blocks that aren't public: the first address and the prefix length in bits (RFC 6890, the registry of
/// special-purpose addresses, and the one public address under which a cloud, Azure, serves its hosts).
const SPECIAL_V4: &[(Ipv4Addr, u32)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The public block of IPv6, except for …
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// … these parts of it.
const SPECIAL_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether `ip` is an address of the public internet. An IPv4 address in IPv6 notation counts as the IPv4
/// address.
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let is_in =
                |&(block, bits): &(Ipv4Addr, u32)| (ip.to_bits() ^ block.to_bits()) >> (32 - bits) == 0;
            !SPECIAL_V4.iter().any(is_in)
        }
        IpAddr::V6(ip) => {
            let is_in =
                |&(block, bits): &(Ipv6Addr, u32)| (ip.to_bits() ^ block.to_bits()) >> (128 - bits) == 0;
            is_in(&GLOBAL_V6) && !SPECIAL_V6.iter().any(is_in)
        }
    }
}

/// Domains that never lead to a public address: the host's own, those of private networks, and Tor's (RFC 6761,
/// 6762, 7686 and 8375; ICANN has reserved `internal`).
const PRIVATE_DOMAINS: &[&str] = &["localhost", "local", "internal", "home.arpa", "onion"];

/// Whether `name`, in lower case, can be a name of the public internet: at least two labels, none of them empty, in
/// a domain that isn't private. A dot at its end makes no difference.
pub fn can_be_public(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_private =
        |domain: &&str| name.strip_suffix(*domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    name.contains('.')
        && name.split('.').all(|label| !label.is_empty())
        && !PRIVATE_DOMAINS.iter().any(is_private)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First and last address of each block that is refused, and their neighbors that aren't.
    #[rustfmt::skip]
    const CASES: &[(&str, bool)] = &[
        ("0.0.0.0", false), ("0.255.255.255", false), ("1.0.0.0", true),
        ("9.255.255.255", true), ("10.0.0.0", false), ("10.255.255.255", false), ("11.0.0.0", true),
        ("100.63.255.255", true), ("100.64.0.0", false), ("100.127.255.255", false), ("100.128.0.0", true),
        ("126.255.255.255", true), ("127.0.0.0", false), ("127.0.0.1", false), ("127.255.255.255", false), ("128.0.0.0", true),
        ("168.63.129.15", true), ("168.63.129.16", false), ("168.63.129.17", true),
        ("169.253.255.255", true), ("169.254.0.0", false), ("169.254.169.254", false), ("169.254.255.255", false), ("169.255.0.0", true),
        ("172.15.255.255", true), ("172.16.0.0", false), ("172.31.255.255", false), ("172.32.0.0", true),
        ("191.255.255.255", true), ("192.0.0.0", false), ("192.0.0.255", false), ("192.0.1.0", true),
        ("192.0.1.255", true), ("192.0.2.0", false), ("192.0.2.255", false), ("192.0.3.0", true),
        ("192.88.98.255", true), ("192.88.99.0", false), ("192.88.99.255", false), ("192.88.100.0", true),
        ("192.167.255.255", true), ("192.168.0.0", false), ("192.168.255.255", false), ("192.169.0.0", true),
        ("198.17.255.255", true), ("198.18.0.0", false), ("198.19.255.255", false), ("198.20.0.0", true),
        ("198.51.99.255", true), ("198.51.100.0", false), ("198.51.100.255", false), ("198.51.101.0", true),
        ("203.0.112.255", true), ("203.0.113.0", false), ("203.0.113.255", false), ("203.0.114.0", true),
        ("223.255.255.255", true), ("224.0.0.0", false), ("239.255.255.255", false),
        ("240.0.0.0", false), ("255.255.255.255", false),
        ("8.8.8.8", true), ("1.1.1.1", true),
        ("::", false), ("::1", false), ("::7f00:1", false), ("64:ff9b::808:808", false), ("100::", false),
        ("1fff:ffff::", false), ("2000::", true), ("3ffe:ffff::", true), ("4000::", false),
        ("2001::", false), ("2001:0:53aa:64c::", false), ("2001:1ff:ffff::", false), ("2001:200::", true),
        ("2001:db7:ffff::", true), ("2001:db8::", false), ("2001:db8:ffff::", false), ("2001:db9::", true),
        ("2001:ffff::", true), ("2002::", false), ("2002:7f00:1::", false), ("2002:ffff::", false), ("2003::", true),
        ("3fff::", false), ("3fff:fff:ffff::", false), ("3fff:1000::", true),
        ("2606:4700:4700::1111", true),
        ("fc00::", false), ("fd00:ec2::254", false), ("fe80::1", false), ("fec0::1", false), ("ff02::1", false),
        ("::ffff:8.8.8.8", true), ("::ffff:127.0.0.1", false), ("::ffff:169.254.169.254", false), ("::ffff:10.0.0.1", false),
    ];

    #[test]
    fn only_what_anybody_can_reach_is_public() {
        for (text, expected) in CASES {
            assert_eq!(is_public(text.parse().unwrap()), *expected, "{text}");
        }
    }
}
