//! The map against std's, and copies against what is done to their original.
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

proptest! {
    #[test]
    fn it_does_what_a_map_does(steps in proptest::collection::vec((any::<u8>(), proptest::option::of(any::<u8>())), 0..400)) {
        let (mut map, mut plain) = (SharedMap::default(), BTreeMap::new());
        for (key, value) in steps {
            match value {
                Some(value) => {
                    map.insert(key, value);
                    plain.insert(key, value);
                }
                None => prop_assert_eq!(map.remove(&key), plain.remove(&key)),
            }
            prop_assert_eq!(map.len(), plain.len());
        }
        prop_assert_eq!(map.iter().map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>(), plain);
    }
}

#[test]
fn a_copy_does_not_see_later_changes() {
    let mut map = SharedMap::default();
    (0..1000).for_each(|key| map.insert(key, key));
    let copy = map.clone();
    map.insert(1, 0);
    map.remove(&2);
    *map.get_mut(&3).expect("it is there") = 0;
    assert_eq!((map.get(&1), map.get(&2), map.get(&3), map.len()), (Some(&0), None, Some(&0), 999));
    assert!((0..1000).all(|key| copy.get(&key) == Some(&key)) && copy.len() == 1000);
}

#[test]
fn what_differs_is_found_between_copies_and_between_strangers() {
    let unlike = |one: &SharedMap<u32, u32>, other: &SharedMap<u32, u32>| {
        let mut keys: Vec<u32> = one.unlike(other, |a, b| a == b).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    };
    let mut map = SharedMap::default();
    (0..1000).for_each(|key| map.insert(key, key));
    let mut copy = map.clone();
    assert_eq!(unlike(&map, &copy), Vec::<u32>::new());
    copy.insert(1, 0);
    copy.insert(1000, 0);
    copy.remove(&2);
    assert_eq!((unlike(&map, &copy), unlike(&copy, &map)), (vec![1, 2], vec![1, 1000]));
    // Of other origin, and so with the same entries in other maps.
    let mut stranger = SharedMap::default();
    map.iter().for_each(|(key, value)| stranger.insert(*key, *value));
    assert_eq!((unlike(&map, &stranger), unlike(&copy, &stranger)), (vec![], vec![1, 1000]));
}
