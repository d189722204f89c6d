//! Reads a table back from the kernel, so that what is there can be compared with what was asked for.

use super::{
    GET_CHAIN, GET_ELEMENTS, GET_RULE, GET_SET, INET, NetlinkError, NetlinkSocket, RawElement, attributes,
    big_endian_u32, message, text,
};

/// A chain as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChainState {
    pub(crate) name: String,
    /// Hook number and priority of a base chain.
    pub(crate) hook: Option<(u32, i32)>,
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleState {
    pub(crate) chain: String,
    pub(crate) label: String,
    /// Names of its expressions, in order.
    pub(crate) expressions: Vec<String>,
    /// Packets that its counter has seen.
    pub(crate) packets: Option<u64>,
}

pub(crate) fn chains(socket: &NetlinkSocket, table: &str) -> Result<Vec<ChainState>, NetlinkError> {
    socket.dump(&message(GET_CHAIN, 0, INET), |received| {
        let attributes_read = received.attributes(4);
        if attributes_read.find(1).map(text).as_deref() != Some(table) {
            return None;
        }
        let hook = attributes_read.find(4).and_then(|nest| {
            let nest = attributes(nest);
            let priority = nest.find(2).and_then(big_endian_u32)?;
            Some((nest.find(1).and_then(big_endian_u32)?, priority.cast_signed()))
        });
        Some(ChainState { name: attributes_read.find(3).map(text)?, hook })
    })
}

pub(crate) fn rules(socket: &NetlinkSocket, table: &str) -> Result<Vec<RuleState>, NetlinkError> {
    let mut request = message(GET_RULE, 0, INET);
    request.string(1, table);
    socket.dump(&request, |received| {
        let attributes_read = received.attributes(4);
        if attributes_read.find(1).map(text).as_deref() != Some(table) {
            return None;
        }
        let expressions = attributes_read.find(4).unwrap_or_default();
        Some(RuleState {
            chain: attributes_read.find(2).map(text)?,
            label: attributes_read.find(7).map(comment).unwrap_or_default(),
            expressions: expression_names(expressions),
            packets: packets(expressions),
        })
    })
}

pub(crate) fn sets(socket: &NetlinkSocket, table: &str) -> Result<Vec<String>, NetlinkError> {
    let mut request = message(GET_SET, 0, INET);
    request.string(1, table);
    socket.dump(&request, |received| {
        let attributes_read = received.attributes(4);
        (attributes_read.find(1).map(text).as_deref() == Some(table)).then(|| attributes_read.find(2).map(text))?
    })
}

pub(crate) fn elements(socket: &NetlinkSocket, table: &str, set: &str) -> Result<Vec<RawElement>, NetlinkError> {
    let mut request = message(GET_ELEMENTS, 0, INET);
    request.string(1, table);
    request.string(2, set);
    let parts = socket.dump(&request, |received| {
        let list = received.attributes(4).find(3)?;
        Some(attributes(list).filter_map(|(_, element)| raw_element(element)).collect::<Vec<_>>())
    })?;
    Ok(parts.into_iter().flatten().collect())
}

/// The names of the expressions in a rule's list of them.
pub(crate) fn expression_names(list: &[u8]) -> Vec<String> {
    attributes(list).filter_map(|(_, expression)| attributes(expression).find(1).map(text)).collect()
}

fn packets(list: &[u8]) -> Option<u64> {
    attributes(list).find_map(|(_, expression)| {
        let expression = attributes(expression);
        let counter = expression.find(1).map(text).as_deref() == Some("counter");
        let value = counter.then(|| attributes(expression.find(2)?).find(2))??;
        Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))
    })
}

fn raw_element(element: &[u8]) -> Option<RawElement> {
    let element = attributes(element);
    let key = attributes(element.find(1)?).find(1)?.to_vec();
    let flags = element.find(3).and_then(big_endian_u32).unwrap_or(0);
    Some(RawElement { key, range_end: flags & super::ELEMENT_INTERVAL_END != 0 })
}

/// The comment in libnftnl's user data: entries of type, length, value.
fn comment(mut user_data: &[u8]) -> String {
    while let [kind, length, rest @ ..] = user_data {
        let length = usize::from(*length);
        if *kind == 0 {
            return text(rest.get(..length).unwrap_or(rest));
        }
        user_data = rest.get(length..).unwrap_or_default();
    }
    String::new()
}
