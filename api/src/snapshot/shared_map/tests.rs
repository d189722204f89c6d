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
