//! Reads the table back and says what differs from what was applied.
//!
//! `status` and the watchdog call it through `Interception::verify`. An owned table cannot be changed
//! by others, so there a difference means the table is gone.

use std::collections::BTreeSet;

use super::ruleset::Ruleset;
use super::{NetlinkSocket, nftables, wire};
use crate::netlink::NetlinkError;
use crate::netlink::message::Message;
use crate::netlink::nftables::RawElement;
use crate::netlink::nftables::read::{self, RuleState};

/// How often one rule has matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hits {
    pub chain: String,
    pub rule: String,
    pub packets: u64,
}

/// What differs, one sentence each; `owner` is the port of the socket that must own the table.
pub(crate) fn differences(
    socket: &NetlinkSocket,
    rules: &Ruleset,
    owner: Option<u32>,
) -> Result<Vec<String>, NetlinkError> {
    let Some(table) = nftables::table(socket, rules.table)? else {
        return Ok(vec![format!("table inet {} is missing", rules.table)]);
    };
    let mut found = Vec::new();
    if table.owner != owner {
        found.push(format!("table inet {} is not owned by this agent", rules.table));
    }
    found.extend(chains(socket, rules)?);
    found.extend(sets(socket, rules)?);
    Ok(found)
}

/// Every rule with a counter.
pub(crate) fn hits(socket: &NetlinkSocket, table: &str) -> Result<Vec<Hits>, NetlinkError> {
    let counted = |rule: RuleState| Some(Hits { packets: rule.packets?, chain: rule.chain, rule: rule.label });
    Ok(read::rules(socket, table)?.into_iter().filter_map(counted).collect())
}

fn chains(socket: &NetlinkSocket, rules: &Ruleset) -> Result<Vec<String>, NetlinkError> {
    let mut found = Vec::new();
    let present = read::chains(socket, rules.table)?;
    let present_rules = read::rules(socket, rules.table)?;
    for chain in &rules.chains {
        let hook = wire::hook(chain);
        match present.iter().find(|present| present.name == chain.name) {
            None => found.push(format!("chain {} is missing", chain.name)),
            Some(present) if present.hook != Some((hook.number, hook.priority)) => {
                found.push(format!("chain {} hangs elsewhere", chain.name));
            }
            Some(_) => {}
        }
        let wanted: Vec<(&str, Vec<String>)> = chain
            .rules
            .iter()
            .map(|rule| {
                let mut message = Message::new(0, 0);
                wire::write_rule(&mut message, rule);
                (rule.label, read::expression_names(&message.finish(0)[MESSAGE_HEADER_BYTES..]))
            })
            .collect();
        let actual = present_rules.iter().filter(|rule| rule.chain == chain.name);
        let actual: Vec<(&str, Vec<String>)> =
            actual.map(|rule| (rule.label.as_str(), rule.expressions.clone())).collect();
        if wanted != actual {
            found.push(format!("the rules of chain {} were changed", chain.name));
        }
    }
    let known: BTreeSet<&str> = rules.chains.iter().map(|chain| chain.name).collect();
    let strangers = present.iter().filter(|chain| !known.contains(chain.name.as_str()));
    found.extend(strangers.map(|chain| format!("chain {} is not ours", chain.name)));
    Ok(found)
}

fn sets(socket: &NetlinkSocket, rules: &Ruleset) -> Result<Vec<String>, NetlinkError> {
    let mut found = Vec::new();
    let present = read::sets(socket, rules.table)?;
    for set in &rules.sets {
        if !present.contains(&set.name) {
            found.push(format!("set {} is missing", set.name));
            continue;
        }
        let wanted: BTreeSet<_> = wire::raw_elements(set).into_iter().collect();
        let (missing, extra) =
            compare(&wanted, || Ok(read::elements(socket, rules.table, &set.name)?.into_iter().collect()))?;
        if missing + extra > 0 {
            found.push(format!("set {} lacks {missing} elements and has {extra} that are not ours", set.name));
        }
    }
    Ok(found)
}

/// How many elements are missing, and how many are not ours, in each of [`LOOKS`] looks. The kernel
/// lists a set in parts and by position: while it moves a grown set to a larger table behind our back,
/// one listing lacks elements that are there. The next lacks others, or none.
fn compare(
    wanted: &BTreeSet<RawElement>,
    mut look: impl FnMut() -> Result<BTreeSet<RawElement>, NetlinkError>,
) -> Result<(usize, usize), NetlinkError> {
    let first = look()?;
    let mut missing: BTreeSet<&RawElement> = wanted.difference(&first).collect();
    let mut extra: BTreeSet<RawElement> = first.difference(wanted).cloned().collect();
    for _ in 1..LOOKS {
        if missing.is_empty() && extra.is_empty() {
            break;
        }
        let again = look()?;
        missing.retain(|element| !again.contains(element));
        extra.retain(|element| again.contains(element));
    }
    Ok((missing.len(), extra.len()))
}

/// Looks at a set that seems to differ. Of one that does not there is one.
const LOOKS: usize = 4;

const MESSAGE_HEADER_BYTES: usize = 16;

#[cfg(test)]
mod tests;
