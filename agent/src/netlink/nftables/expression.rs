//! Pure: the expressions of nf_tables rules, as bytes.
//!
//! A rule is a small program: load into a register, compare, and at the end a verdict. `intercept`'s
//! wire file strings these together; register 1 is 16 bytes wide and enough for all but pairs.

use crate::netlink::message::Message;

/// Register that all values are loaded into.
pub(crate) const REGISTER: u32 = 1;
/// The 4-byte register behind an IPv4 address in `REGISTER` (NFT_REG32_01).
pub(crate) const AFTER_IPV4: u32 = 9;
/// The register behind an IPv6 address in `REGISTER` (NFT_REG_2).
pub(crate) const AFTER_IPV6: u32 = 2;

/// Keys of `meta`.
pub(crate) mod meta {
    pub(crate) const MARK: u32 = 3;
    pub(crate) const INPUT_INTERFACE: u32 = 6;
    pub(crate) const OUTPUT_INTERFACE: u32 = 7;
    pub(crate) const SOCKET_UID: u32 = 10;
    pub(crate) const NETWORK_PROTOCOL: u32 = 15;
    pub(crate) const TRANSPORT_PROTOCOL: u32 = 16;
}

/// Keys of `ct`.
pub(crate) mod ct {
    pub(crate) const DIRECTION: u32 = 1;
    pub(crate) const MARK: u32 = 3;
}

/// Keys of `socket`.
pub(crate) mod socket {
    pub(crate) const TRANSPARENT: u32 = 0;
    pub(crate) const CGROUP_V2: u32 = 3;
}

/// Which header a payload is read from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Header {
    Network,
    Transport,
}

/// What ends a rule.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    Accept,
    Return,
}

pub(crate) fn meta_load(rule: &mut Message, key: u32) {
    expression(rule, "meta", |data| {
        data.big_endian(2, key);
        data.big_endian(1, REGISTER);
    });
}

pub(crate) fn meta_set(rule: &mut Message, key: u32, value: u32) {
    immediate(rule, &value.to_ne_bytes());
    expression(rule, "meta", |data| {
        data.big_endian(2, key);
        data.big_endian(3, REGISTER);
    });
}

pub(crate) fn ct_load(rule: &mut Message, key: u32) {
    expression(rule, "ct", |data| {
        data.big_endian(1, REGISTER);
        data.big_endian(2, key);
    });
}

pub(crate) fn ct_set(rule: &mut Message, key: u32, value: u32) {
    immediate(rule, &value.to_ne_bytes());
    expression(rule, "ct", |data| {
        data.big_endian(2, key);
        data.big_endian(4, REGISTER);
    });
}

/// Only packets whose register holds this value go on.
pub(crate) fn equal(rule: &mut Message, value: &[u8]) {
    compare(rule, 0, value);
}

/// Only packets whose register holds another value go on.
pub(crate) fn not_equal(rule: &mut Message, value: &[u8]) {
    compare(rule, 1, value);
}

pub(crate) fn mask(rule: &mut Message, mask: &[u8]) {
    let length = u32::try_from(mask.len()).expect("at most a register");
    expression(rule, "bitwise", |data| {
        data.big_endian(1, REGISTER);
        data.big_endian(2, REGISTER);
        data.big_endian(3, length);
        data.nest(4, |value| value.attribute(1, mask));
        data.nest(5, |value| value.attribute(1, &vec![0; mask.len()]));
    });
}

pub(crate) fn payload(rule: &mut Message, header: Header, offset: u32, length: u32, register: u32) {
    expression(rule, "payload", |data| {
        data.big_endian(1, register);
        data.big_endian(
            2,
            match header {
                Header::Network => 1,
                Header::Transport => 2,
            },
        );
        data.big_endian(3, offset);
        data.big_endian(4, length);
    });
}

/// Only packets whose registers hold an element of the set go on.
pub(crate) fn lookup(rule: &mut Message, set: &str) {
    expression(rule, "lookup", |data| {
        data.big_endian(2, REGISTER);
        data.string(1, set);
    });
}

pub(crate) fn socket_load(rule: &mut Message, key: u32, level: Option<u32>) {
    expression(rule, "socket", |data| {
        data.big_endian(1, key);
        data.big_endian(2, REGISTER);
        if let Some(level) = level {
            data.big_endian(3, level);
        }
    });
}

/// Loads the kind of the destination address, as the routing table sees it.
pub(crate) fn destination_kind(rule: &mut Message) {
    const BY_DESTINATION: u32 = 2;
    const ADDRESS_KIND: u32 = 3;
    expression(rule, "fib", |data| {
        data.big_endian(3, BY_DESTINATION);
        data.big_endian(2, ADDRESS_KIND);
        data.big_endian(1, REGISTER);
    });
}

pub(crate) fn counter(rule: &mut Message) {
    expression(rule, "counter", |_| {});
}

pub(crate) fn redirect(rule: &mut Message, port: u16) {
    /// The port in the register is a definite one (NF_NAT_RANGE_PROTO_SPECIFIED).
    const PORT_GIVEN: u32 = 2;
    immediate(rule, &port.to_be_bytes());
    expression(rule, "redir", |data| {
        data.big_endian(1, REGISTER);
        data.big_endian(3, PORT_GIVEN);
    });
}

/// Keeps the destination address as it is and keeps later NAT chains from changing it; `family` is
/// the kernel's number (2 or 10), the address is in the register.
pub(crate) fn keep_destination(rule: &mut Message, family: u32) {
    const DESTINATION: u32 = 1;
    expression(rule, "nat", |data| {
        data.big_endian(1, DESTINATION);
        data.big_endian(2, family);
        data.big_endian(3, REGISTER);
    });
}

pub(crate) fn tproxy(rule: &mut Message, port: u16) {
    const ANY_FAMILY: u32 = 0;
    immediate(rule, &port.to_be_bytes());
    expression(rule, "tproxy", |data| {
        data.big_endian(1, ANY_FAMILY);
        data.big_endian(3, REGISTER);
    });
}

pub(crate) fn reject_with_reset(rule: &mut Message) {
    const TCP_RESET: u32 = 1;
    expression(rule, "reject", |data| {
        data.big_endian(1, TCP_RESET);
        data.attribute(2, &[0]);
    });
}

pub(crate) fn verdict(rule: &mut Message, verdict: Verdict) {
    const VERDICT_REGISTER: u32 = 0;
    let code: i32 = match verdict {
        Verdict::Accept => 1,
        Verdict::Return => -5,
    };
    expression(rule, "immediate", |data| {
        data.big_endian(1, VERDICT_REGISTER);
        data.nest(2, |value| value.nest(2, |nest| nest.big_endian(1, code.cast_unsigned())));
    });
}

fn immediate(rule: &mut Message, value: &[u8]) {
    expression(rule, "immediate", |data| {
        data.big_endian(1, REGISTER);
        data.nest(2, |nest| nest.attribute(1, value));
    });
}

fn compare(rule: &mut Message, operator: u32, value: &[u8]) {
    expression(rule, "cmp", |data| {
        data.big_endian(1, REGISTER);
        data.big_endian(2, operator);
        data.nest(3, |nest| nest.attribute(1, value));
    });
}

fn expression(rule: &mut Message, name: &str, write: impl FnOnce(&mut Message)) {
    rule.nest(1, |element| {
        element.string(1, name);
        element.nest(2, write);
    });
}
