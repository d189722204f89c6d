//! Checks of the kernel: owned tables (by making one), cgroup v2, what a dead agent left, and other
//! programs' rules that come before ours.

use std::borrow::Cow;

use api::admin::{Check, CheckOutcome};
use nftables::schema::{NfListObject, NfObject, Nftables};
use nftables::types::NfHook;
use telemetry::Chain;

use super::{Agent, check, ok};
use crate::cgroup;
use crate::intercept::{self, ruleset};
use crate::netlink::nftables::{Batch, TABLE_OWNER, table};
use crate::netlink::socket::{NETFILTER, NetlinkSocket};

/// Makes a table as the agent's would be, looks at it, and lets the kernel take it away.
pub(super) fn owned_tables() -> Check {
    let name = "kernel: owned tables";
    let throwaway = format!("tombolo_doctor_{}", std::process::id());
    let made = || -> Result<bool, String> {
        let socket = NetlinkSocket::open(NETFILTER).map_err(|error| Chain(&error).to_string())?;
        let mut batch = Batch::default();
        batch.add_table(&throwaway, TABLE_OWNER);
        batch.send(&socket, None).map_err(|error| Chain(&error).to_string())?;
        let found = table(&socket, &throwaway).map_err(|error| Chain(&error).to_string())?;
        // Closing the socket would do; a table without an owner must be taken away by hand.
        let owned = found.is_some_and(|found| found.owner.is_some());
        let mut batch = Batch::default();
        batch.delete_table(&throwaway);
        batch.send(&socket, None).map_err(|error| Chain(&error).to_string())?;
        Ok(owned)
    };
    match made() {
        Ok(true) => ok(name, "the kernel removes the agent's rules when the agent dies"),
        Ok(false) => check(
            name,
            CheckOutcome::Warn,
            "this kernel does not own tables (before 5.12): ExecStopPost and the watchdog remove the rules",
            "run the agent under systemd with the shipped unit, or use a newer kernel",
        ),
        Err(error) => check(
            name,
            CheckOutcome::Fail,
            format!("no table can be made: {error}"),
            "run as root; the kernel needs nf_tables (modprobe nf_tables)",
        ),
    }
}

pub(super) fn cgroups() -> Check {
    let name = "kernel: cgroup v2";
    match cgroup::mount_point() {
        Ok(path) => ok(name, format!("mounted at {}", path.display())),
        Err(error) => check(
            name,
            CheckOutcome::Warn,
            format!("{}: workloads cannot be told apart by unit", Chain(&error)),
            "boot with systemd.unified_cgroup_hierarchy=1, or select workloads by uid",
        ),
    }
}

pub(super) fn leftovers(agent: &Agent) -> Check {
    let name = "rules left behind";
    match (intercept::leftovers(), agent) {
        (Ok(found), _) if found.is_empty() => ok(name, "none"),
        (Ok(_), Agent::Running { .. }) => ok(name, "the rules there are the running agent's"),
        (Ok(found), Agent::Absent) => {
            let what: Vec<String> = found.into_iter().map(|leftover| leftover.what).collect();
            let cure = "remove them: tombolo agent --cleanup";
            check(name, CheckOutcome::Fail, format!("a dead agent left {}", what.join(", ")), cure)
        }
        (Err(error), _) => check(name, CheckOutcome::Skipped, Chain(&error).to_string(), "run as root"),
    }
}

/// Asks `nft`, which names other programs' rules as their owners know them.
pub(super) fn conflicts() -> Check {
    let name = "other rules";
    let listed: Result<Nftables<'static>, _> = nftables::helper::get_current_ruleset();
    let rules = match listed {
        Ok(rules) => rules,
        Err(error) => {
            let detail = format!("nft cannot be asked: {}", Chain(&error));
            return check(name, CheckOutcome::Skipped, detail, "install nftables to have this checked");
        }
    };
    match earlier_chains(&rules).as_slice() {
        [] => ok(name, "no other program redirects outgoing connections before the agent would"),
        chains => check(
            name,
            CheckOutcome::Warn,
            format!("these see outgoing connections before the agent: {}", chains.join(", ")),
            "exclude what they handle ([interception.exclude]), or have them use a later priority",
        ),
    }
}

/// Chains of others that rewrite local connections at an earlier priority than ours. Pure.
pub(super) fn earlier_chains(rules: &Nftables<'_>) -> Vec<String> {
    let chains = rules.objects.iter().filter_map(|object| match object {
        NfObject::ListObject(NfListObject::Chain(chain)) => Some(chain),
        _ => None,
    });
    let ours = |table: &Cow<'_, str>| table == ruleset::TABLE || table == ruleset::BLOCK_TABLE;
    let earlier = chains.filter(|chain| {
        let rewrites = matches!(chain._type, Some(nftables::types::NfChainType::NAT));
        let outgoing = matches!(chain.hook, Some(NfHook::Output));
        rewrites && outgoing && !ours(&chain.table) && chain.prio.is_some_and(|priority| priority <= OUR_PRIORITY)
    });
    earlier
        .map(|chain| format!("{:?} {} {} ({})", chain.family, chain.table, chain.name, chain.prio.unwrap_or_default()))
        .collect()
}

/// Where the agent's own chain stands: before dstnat (-100), which Docker and firewalld use.
const OUR_PRIORITY: i32 = -150;
