//! How long applying takes. The limits are generous; the numbers are printed.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use agent::intercept::{Applied, Destination, Interception, Wanted, ruleset};

use crate::lab::{Lab, mesh};

#[test]
fn applying_is_fast_for_large_meshes() {
    let Some(lab) = Lab::new() else { return };
    for count in [10, 1_000, 10_000, 100_000] {
        lab.a.wait_for_no_table();
        lab.a.within(|| {
            let wanted = Wanted { endpoints: endpoints(count), ..mesh() };
            let rules = ruleset::build(&wanted);
            let mut interception = Interception::open(None).expect("nf_tables is there");
            let whole = timed(|| {
                interception.apply(&rules).expect("the rules are taken");
            });
            let replaced = timed(|| interception.repair().expect("the rules are taken"));
            let (added, gone) =
                ("192.0.2.1:80".parse().expect("an endpoint"), *wanted.endpoints.first().expect("some"));
            let element = timed(|| {
                let changes = ([Destination::Workload(added)], [Destination::Workload(gone)]);
                assert_eq!(
                    interception.change(&changes.0, &changes.1).expect("the kernel takes it"),
                    Applied::Elements(2)
                );
            });
            let mut one_more = wanted.clone();
            one_more.endpoints.insert(added);
            one_more.endpoints.remove(&gone);
            let one_more = ruleset::build(&one_more);
            let unchanged = timed(|| {
                assert_eq!(interception.apply(&one_more).expect("the rules are taken"), Applied::Unchanged);
            });
            let verified =
                timed(|| assert_eq!(interception.verify().expect("the kernel answers"), Vec::<String>::new()));
            println!(
                "{count} endpoints: first {whole:?}, replace {replaced:?}, one changed {element:?}, \
                 unchanged {unchanged:?}, verify {verified:?}"
            );
            assert!(whole < Duration::from_secs(5));
        });
    }
}

fn endpoints(count: u32) -> std::collections::BTreeSet<SocketAddr> {
    (0..count).map(|n| SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + n / 4).into(), 8000 + (n % 4) as u16)).collect()
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}
