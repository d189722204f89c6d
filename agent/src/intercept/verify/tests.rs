//! What one listing of a set says, and what several say together.

use std::collections::BTreeSet;

use super::{LOOKS, compare};
use crate::netlink::nftables::RawElement;

fn elements(keys: std::ops::Range<u8>) -> BTreeSet<RawElement> {
    keys.map(|key| RawElement { key: vec![key], range_end: false }).collect()
}

fn compared(wanted: BTreeSet<RawElement>, listings: &[BTreeSet<RawElement>]) -> ((usize, usize), usize) {
    let mut looks = 0;
    let found = compare(&wanted, || {
        looks += 1;
        Ok(listings[(looks - 1).min(listings.len() - 1)].clone())
    });
    (found.expect("no listing fails"), looks)
}

#[test]
fn a_set_that_is_as_wanted_is_listed_once() {
    assert_eq!(compared(elements(0..9), &[elements(0..9)]), ((0, 0), 1));
}

#[test]
fn elements_that_some_listing_has_are_not_missing() {
    assert_eq!(compared(elements(0..9), &[elements(0..5), elements(3..9)]), ((0, 0), 2));
}

#[test]
fn what_every_listing_lacks_or_has_is_a_difference() {
    assert_eq!(compared(elements(0..9), &[elements(0..7), elements(2..8), elements(0..8)]), ((1, 0), LOOKS));
    assert_eq!(compared(elements(0..9), &[elements(0..12), elements(1..11)]), ((0, 2), LOOKS));
    assert_eq!(compared(elements(0..9), &[elements(0..12), elements(0..9)]), ((0, 0), 2));
}
