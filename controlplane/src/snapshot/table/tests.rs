//! Tests of `table`, the file beside this folder.

use super::*;

fn resources(of: &[(&str, &str)]) -> Vec<Encoded> {
    let one = |(name, body): &(&str, &str)| Encoded {
        type_url: api::wire::ADDRESS,
        name: (*name).to_owned(),
        body: body.as_bytes().to_vec(),
    };
    of.iter().map(one).collect()
}

fn next(before: &Arc<Table>, of: &[(&str, &str)]) -> Arc<Table> {
    Table::next(before, resources(of), BTreeMap::new())
}

fn names(of: &[Arc<str>]) -> Vec<&str> {
    of.iter().map(|name| &**name).collect()
}

#[test]
fn a_step_names_what_changed_and_what_went() {
    let first = next(&Arc::default(), &[("a", "1"), ("b", "1"), ("c", "1")]);
    let second = next(&first, &[("a", "1"), ("b", "2"), ("d", "1")]);
    let diff = second.since(&first);
    assert_eq!((names(&diff.changed), names(&diff.removed)), (vec!["b", "d"], vec!["c"]));
    let third = next(&second, &[("a", "2")]);
    let diff = third.since(&first);
    assert_eq!((names(&diff.changed), names(&diff.removed)), (vec!["a"], vec!["b", "c"]), "two steps at once");
    assert_eq!(*third.since(&third), Diff::default());
    assert!(Arc::ptr_eq(second.get("a").expect("there"), first.get("a").expect("there")), "what is the same is shared");
}

#[test]
fn equal_content_is_the_same_table() {
    let first = next(&Arc::default(), &[("a", "1")]);
    assert!(first.is(&next(&first, &[("a", "1")])));
    let elsewhere = next(&Arc::default(), &[("a", "1")]);
    assert_eq!(elsewhere.get("a"), first.get("a"), "another replica gives the same version");
    let empty = next(&Arc::default(), &[]);
    assert!(empty.is_empty());
    assert_eq!(first.len(), 1);
}

#[test]
fn a_client_is_sent_what_differs_from_what_it_holds() {
    let table = next(&Arc::default(), &[("a", "1"), ("b", "2"), ("c", "3")]);
    let version = |name: &str| table.get(name).expect("there").version.clone();
    let held = BTreeMap::from([
        ("a".to_owned(), version("a")),
        ("b".to_owned(), "old".to_owned()),
        ("gone".to_owned(), "x".to_owned()),
    ]);
    let diff = table.since_versions(&held);
    assert_eq!((names(&diff.changed), names(&diff.removed)), (vec!["b", "c"], vec!["gone"]));
}
