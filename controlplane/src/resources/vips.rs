//! Virtual addresses: chosen by the operator or from a pool, in the transaction of the service.
//!
//! A pool address is a number: the same for IPv4 (240.240.0.0/16, as Istio does) and IPv6 (a ULA
//! range of our own). A name keeps its number; a released one is not given to another name for a day,
//! because resolvers and applications remember addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::resource::{Resource, Spec};

use super::{Key, key, path, title};
use crate::store::{StoreError, Write, to_ms};

/// Gives every changed service its addresses; what stands against it.
pub(super) async fn assign(
    write: &mut Write,
    all: &[Arc<Resource>],
    changed: &BTreeSet<Key>,
    now: SystemTime,
) -> Result<Vec<String>, StoreError> {
    let mut mistakes = Vec::new();
    let services = all.iter().filter(|resource| changed.contains(&key(resource)));
    let services: Vec<(&Resource, Wanted)> = services.filter_map(|r| Some((r.as_ref(), wanted(r)?))).collect();
    if services.is_empty() {
        return Ok(mistakes);
    }
    let mut held = Held::load(write).await?;
    for (service, wanted) in &services {
        held.drop_other(write, service, wanted, now).await?;
    }
    // Declared addresses first: the pool goes around them.
    let taken = addresses_in_use(write, all).await?;
    for (service, wanted) in services.iter().filter(|(_, wanted)| !wanted.declared.is_empty()) {
        mistakes.extend(held.declare(write, service, wanted, &taken).await?);
    }
    for (service, wanted) in services.iter().filter(|(_, wanted)| wanted.declared.is_empty()) {
        for hostname in &wanted.hostnames {
            if !held.allocate(write, service, hostname, now).await? {
                mistakes.push(format!("{}: every virtual address is in use; delete services first", title(service)));
            }
        }
    }
    Ok(mistakes)
}

/// Frees every address of a deleted resource.
pub(super) async fn release(write: &mut Write, owner: &str, now: SystemTime) -> Result<(), StoreError> {
    write.execute("DELETE FROM vips WHERE owner = $1 AND number < 0", vec![owner.into()]).await?;
    let values = vec![owner.into(), to_ms(now).into()];
    write.execute("UPDATE vips SET released_ms = $2 WHERE owner = $1 AND released_ms = 0", values).await?;
    Ok(())
}

/// The names of a service and the addresses its operator chose.
struct Wanted {
    hostnames: Vec<String>,
    declared: Vec<IpAddr>,
}

fn wanted(resource: &Resource) -> Option<Wanted> {
    match &resource.spec {
        Spec::Service(service) => {
            Some(Wanted { hostnames: super::check::hostnames(resource), declared: service.cluster_ips.clone() })
        }
        Spec::ServiceEntry(entry) => Some(Wanted { hostnames: entry.hosts.clone(), declared: entry.addresses.clone() }),
        _ => None,
    }
}

/// Where somebody is reached already: by whose resource, and who. No virtual address of another can
/// be there.
async fn addresses_in_use(
    write: &mut Write,
    all: &[Arc<Resource>],
) -> Result<BTreeMap<IpAddr, (String, String)>, StoreError> {
    let mut taken = BTreeMap::new();
    for row in write.fetch("SELECT name, addresses FROM hosts", vec![]).await? {
        let addresses: Vec<IpAddr> = row.json(1)?;
        let host = row.text(0)?;
        taken.extend(addresses.into_iter().map(|address| (address, (String::new(), format!("host {host}")))));
    }
    for resource in all {
        match &resource.spec {
            Spec::WorkloadEntry(entry) => drop(taken.insert(entry.address, (path(resource), title(resource)))),
            Spec::ServiceEntry(entry) => {
                let endpoints = entry.endpoints.iter().map(|endpoint| endpoint.address);
                let who = (path(resource), format!("an endpoint of {}", title(resource)));
                taken.extend(endpoints.map(|address| (address, who.clone())));
            }
            _ => {}
        }
    }
    Ok(taken)
}

/// What the table holds.
struct Held {
    /// Who has an address that is in use.
    owners: BTreeMap<IpAddr, String>,
    /// Namespace and hostname of each number, and since when it is free (0: it is not).
    numbers: BTreeMap<i64, (String, String, i64)>,
}

impl Held {
    async fn load(write: &mut Write) -> Result<Self, StoreError> {
        let (mut owners, mut numbers) = (BTreeMap::new(), BTreeMap::new());
        for row in
            write.fetch("SELECT address, namespace, hostname, owner, number, released_ms FROM vips", vec![]).await?
        {
            let (number, released_ms) = (row.int(4)?, row.int(5)?);
            if let (Ok(address), 0) = (row.text(0)?.parse(), released_ms) {
                owners.insert(address, row.text(3)?);
            }
            if number >= 0 {
                numbers.insert(number, (row.text(1)?, row.text(2)?, released_ms));
            }
        }
        Ok(Self { owners, numbers })
    }

    /// Frees what the service had and does not want any more.
    async fn drop_other(
        &mut self,
        write: &mut Write,
        service: &Resource,
        wanted: &Wanted,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let owner = path(service);
        write.execute("DELETE FROM vips WHERE owner = $1 AND number < 0", vec![(&owner).into()]).await?;
        let rows = write
            .fetch("SELECT address, hostname FROM vips WHERE owner = $1 AND released_ms = 0", vec![(&owner).into()]);
        for row in rows.await? {
            let hostname = row.text(1)?;
            if wanted.declared.is_empty() && wanted.hostnames.contains(&hostname) {
                continue;
            }
            let values = vec![(&owner).into(), (&hostname).into(), to_ms(now).into()];
            let sql = "UPDATE vips SET released_ms = $3 WHERE owner = $1 AND hostname = $2 AND released_ms = 0";
            write.execute(sql, values).await?;
        }
        *self = Self::load(write).await?;
        Ok(())
    }

    /// Takes the addresses that the operator chose; what stands against it.
    async fn declare(
        &mut self,
        write: &mut Write,
        service: &Resource,
        wanted: &Wanted,
        taken: &BTreeMap<IpAddr, (String, String)>,
    ) -> Result<Vec<String>, StoreError> {
        let mut mistakes = Vec::new();
        let own = path(service);
        let reached_at = |address| taken.get(address).filter(|(owner, _)| *owner != own).map(|(_, who)| who.clone());
        for address in &wanted.declared {
            let holder = self.owners.get(address).map(|owner| readable(owner)).or_else(|| reached_at(address));
            if let Some(holder) = holder {
                mistakes.push(format!("{}: the address {address} belongs to {holder}; choose another", title(service)));
                continue;
            }
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                mistakes.push(format!("{}: {address} cannot be a service's address", title(service)));
                continue;
            }
            for hostname in &wanted.hostnames {
                insert(write, *address, service, hostname, -1).await?;
            }
            self.owners.insert(*address, path(service));
        }
        Ok(mistakes)
    }

    /// False when the pool is empty.
    async fn allocate(
        &mut self,
        write: &mut Write,
        service: &Resource,
        hostname: &str,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        let namespace = service.namespace();
        let own = self.numbers.iter().find(|(_, (ns, name, _))| ns == namespace && name == hostname);
        let own = own.map(|(number, (_, _, released_ms))| (*number, *released_ms));
        if let Some((_, 0)) = own {
            return Ok(true);
        }
        let Some(number) = own.map(|(number, _)| number).filter(|n| self.unclaimed(*n)).or_else(|| self.free(now))
        else {
            return Ok(false);
        };
        write.execute("DELETE FROM vips WHERE number = $1", vec![number.into()]).await?;
        for address in addresses(number) {
            insert(write, address, service, hostname, number).await?;
            self.owners.insert(address, path(service));
        }
        self.numbers.insert(number, (namespace.to_owned(), hostname.to_owned(), 0));
        Ok(true)
    }

    /// The least number nobody has had for a day, else the one that has been free the longest.
    fn free(&self, now: SystemTime) -> Option<i64> {
        let long_ago = to_ms(now - REST);
        let rested = |number: &i64| {
            self.numbers.get(number).is_none_or(|(_, _, released)| *released != 0 && *released < long_ago)
        };
        let longest = || {
            let free =
                self.numbers.iter().filter(|(number, (_, _, released))| *released != 0 && self.unclaimed(**number));
            free.min_by_key(|(_, (_, _, released))| *released).map(|(number, _)| *number)
        };
        (1..=LAST_NUMBER).find(|number| rested(number) && self.unclaimed(*number)).or_else(longest)
    }

    fn unclaimed(&self, number: i64) -> bool {
        addresses(number).iter().all(|address| !self.owners.contains_key(address))
    }
}

async fn insert(
    write: &mut Write,
    address: IpAddr,
    service: &Resource,
    hostname: &str,
    number: i64,
) -> Result<(), StoreError> {
    let values = vec![
        address.to_string().into(),
        service.namespace().into(),
        hostname.into(),
        path(service).into(),
        number.into(),
    ];
    let sql =
        "INSERT INTO vips (address, namespace, hostname, owner, number, released_ms) VALUES ($1, $2, $3, $4, $5, 0)";
    write.execute(sql, values).await.map(|_| ())
}

/// `service/shop/orders` as people write it.
fn readable(owner: &str) -> String {
    let (kind, name) = owner.split_once('/').unwrap_or(("", owner));
    let kind = api::resource::kind(kind).map_or(kind, |info| info.kind);
    format!("{kind} {name}")
}

fn addresses(number: i64) -> [IpAddr; 2] {
    let low = u16::try_from(number).unwrap_or_default();
    let [high, least] = low.to_be_bytes();
    [Ipv4Addr::new(240, 240, high, least).into(), Ipv6Addr::new(0xfd74, 0x6d62, 0x6f6c, 0, 0, 0, 0, low).into()]
}

/// 240.240.0.0 and 240.240.255.255 stay out: some stacks take the ends of a network for broadcasts.
const LAST_NUMBER: i64 = 0xfffe;
/// How long a released address is not given to another name.
const REST: Duration = Duration::from_secs(24 * 3600);
