//! The choice as a table, with dice that are the same every time.
use super::*;
use crate::outbound::decide::{Distance, Path, Tier};
use crate::testing::workload;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::Arc;

fn candidate(name: &str, capacity: u32, unhealthy: bool, distance: Distance) -> Candidate {
    let mut workload = workload(name, "shop", "orders", &["10.0.0.1"]);
    workload.capacity = capacity;
    Candidate {
        workload: Arc::new(workload),
        target: ([10, 0, 0, 1], 80).into(),
        path: Path::Plain,
        tier: Tier { unhealthy, distance },
    }
}

/// How often each candidate is chosen in a thousand draws.
fn shares(candidates: &[Candidate], load: impl Fn(&Candidate) -> usize) -> BTreeMap<String, usize> {
    let mut dice = StdRng::seed_from_u64(7);
    let mut shares = BTreeMap::new();
    for _ in 0..1000 {
        let chosen = choose(candidates, &load, &mut dice).expect("there are candidates");
        *shares.entry(candidates[chosen].workload.name.clone()).or_default() += 1;
    }
    shares
}

#[test]
fn only_the_nearest_healthy_tier_is_used() {
    let candidates = [
        candidate("near-but-ill", 1, true, Distance::SameSubzone),
        candidate("near", 1, false, Distance::SameZone),
        candidate("far", 1, false, Distance::Elsewhere),
    ];
    assert_eq!(shares(&candidates, |_| 0).into_keys().collect::<Vec<_>>(), ["near"]);
    assert_eq!(shares(&candidates[..1], |_| 0).into_keys().collect::<Vec<_>>(), ["near-but-ill"]);
    assert_eq!(choose(&[], |_| 0, &mut StdRng::seed_from_u64(1)), None);
}

#[test]
fn even_load_is_spread_by_capacity() {
    let candidates = [("a", 1), ("b", 1), ("c", 2)].map(|(n, c)| candidate(n, c, false, Distance::Elsewhere));
    let shares = shares(&candidates, |_| 0);
    assert!((400..600).contains(&shares["c"]), "{shares:?}");
    assert!((180..320).contains(&shares["a"]) && (180..320).contains(&shares["b"]), "{shares:?}");
}

#[test]
fn the_less_loaded_of_two_is_taken() {
    let candidates = ["busy", "free"].map(|name| candidate(name, 1, false, Distance::Elsewhere));
    let busy = |candidate: &Candidate| if candidate.workload.name == "busy" { 5 } else { 4 };
    assert_eq!(shares(&candidates, busy).into_keys().collect::<Vec<_>>(), ["free"]);
    let candidates =
        [candidate("big", 10, false, Distance::Elsewhere), candidate("small", 1, false, Distance::Elsewhere)];
    let load = |candidate: &Candidate| if candidate.workload.name == "big" { 15 } else { 2 };
    assert_eq!(shares(&candidates, load).into_keys().collect::<Vec<_>>(), ["big"], "15 of 10 is less than 2 of 1");
}

#[test]
fn no_capacity_counts_as_one() {
    let candidates = ["a", "b"].map(|name| candidate(name, 0, false, Distance::Elsewhere));
    assert_eq!(shares(&candidates, |_| 0).len(), 2);
}
