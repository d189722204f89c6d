//! Mount lines, unit names and selections; the host's own tree.

use super::*;

#[test]
fn the_v2_mount_is_found_on_unified_and_hybrid_hosts() {
    let check = |line: &str, expect: Option<&str>| assert_eq!(cgroup2_mount(line), expect.map(PathBuf::from), "{line}");
    check("32 23 0:29 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate", Some("/sys/fs/cgroup"));
    check("41 31 0:38 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw", Some("/sys/fs/cgroup/unified"));
    check("33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None);
    check("33 31 0:30 / /srv/my\\040groups rw - cgroup2 none rw", Some("/srv/my groups"));
    check("garbage", None);
}

#[test]
fn a_unit_is_the_innermost_one_of_the_path() {
    let check = |path: &str, expect: Option<&str>| assert_eq!(unit(path), expect, "{path}");
    check("system.slice/orders.service", Some("orders.service"));
    check("system.slice/orders.service/worker", Some("orders.service"));
    check("user.slice/user-1000.slice/user@1000.service/app.slice/web.service", Some("web.service"));
    check("user.slice/user-1000.slice/session-3.scope", Some("session-3.scope"));
    check("kubepods/besteffort", None);
}

#[test]
fn units_and_paths_select_their_cgroups() {
    let tree = CgroupTree::of(&[(7, "system.slice/a.service"), (8, "system.slice/a.service/x"), (9, "batch")]);
    let set = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    assert_eq!(
        tree.select(&set(&["a.service"]), &set(&["batch"])),
        BTreeMap::from([("system.slice/a.service".to_owned(), 7), ("batch".to_owned(), 9),])
    );
}

#[test]
fn the_hosts_own_tree_can_be_read_or_says_why_not() {
    match CgroupTree::load() {
        Ok(tree) => assert!(tree.paths.values().all(|path| !path.starts_with('/'))),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
