//! The state folder on a real file system: modes, whole writes, damage, a full disk.
use super::*;

fn identity() -> HostIdentity {
    HostIdentity {
        host: "web1".into(),
        trust_domain: "corp.example".parse().expect("valid"),
        control_plane: "https://cp:15012".into(),
        join_sequence: 3,
        groups: vec!["shop/web".into()],
        advertise: vec![],
        joined_at: String::new(),
        machine: None,
    }
}

fn spiffe(account: &str) -> SpiffeId {
    SpiffeId::workload(&"corp.example".parse().expect("valid"), "shop", account).expect("valid")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it was written").permissions().mode() & 0o777
}

#[test]
fn what_is_kept_comes_back_and_only_its_owner_may_read_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("state");
    fs::create_dir(&root).expect("a fresh folder");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("ours");
    let state = StateDir::open(&root).expect("it can be made");
    assert_eq!(mode(&root), 0o700);

    assert_eq!(state.identity().expect("readable"), None);
    state.set_identity(&identity()).expect("writable");
    assert_eq!(state.identity().expect("readable"), Some(identity()));
    state.set_host_key("KEY").expect("writable");
    assert_eq!(mode(&root.join("host.key")), 0o600);

    let chain = format!("{CERTIFICATE}\nabc\n-----END CERTIFICATE-----\n");
    state.set_workload_svid(&spiffe("web"), "PRIVATE\n", &chain).expect("writable");
    state.set_workload_svid(&spiffe("orders"), "PRIVATE\n", &chain).expect("writable");
    assert_eq!(mode(&root.join("workloads")), 0o700);
    let stored = state.workload_svid(&spiffe("web")).expect("readable").expect("just written");
    assert_eq!((stored.key_pem.as_str(), stored.chain_pem.as_str()), ("PRIVATE\n", chain.as_str()));

    state.keep_workload_svids(&[spiffe("orders")]).expect("writable");
    assert!(state.workload_svid(&spiffe("web")).expect("readable").is_none());
    assert!(state.workload_svid(&spiffe("orders")).expect("readable").is_some());

    state.forget().expect("writable");
    assert_eq!(state.identity().expect("readable"), None);
    assert_eq!(fs::read_dir(&root).expect("it stays").count(), 0);
    state.purge().expect("writable");
    assert!(!root.exists());
    state.purge().expect("purging twice is fine");
}

#[test]
fn a_damaged_identity_says_which_file_and_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = StateDir::open(folder.path()).expect("it can be made");
    fs::write(folder.path().join("identity.json"), "{\"host\": 7").expect("ours");
    let text = state.identity().expect_err("damaged").to_string();
    assert!(text.contains("identity.json is damaged") && text.contains("join again"), "{text}");
}

#[test]
fn the_state_of_another_machine_is_refused_until_it_is_adopted_or_forgotten() {
    if machine::binding().is_none() {
        println!("skipped: this machine has no lasting /etc/machine-id");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = StateDir::open(folder.path()).expect("it can be made");
    assert_eq!(state.adopt().expect("readable"), None, "there is nothing to adopt");
    let copied = HostIdentity { machine: Some("0".repeat(32)), joined_at: "2026-01-01T00:00:00Z".into(), ..identity() };
    state.set_identity(&copied).expect("writable");
    let text = state.identity().expect_err("copied").to_string();
    for said in ["another machine (host web1, joined 2026", "`tombolo leave --purge`", "`tombolo agent --adopt`"] {
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(state.adopt().expect("writable").as_deref(), Some("web1"));
    let adopted = state.identity().expect("it is this machine's").expect("it is there");
    assert_eq!(adopted, HostIdentity { machine: machine::binding(), ..copied.clone() });

    state.set_identity(&copied).expect("writable");
    state.forget().expect("writable");
    assert_eq!(state.identity().expect("readable"), None);
}

#[test]
fn a_second_agent_does_not_get_the_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = StateDir::open(folder.path()).expect("it can be made");
    let lock = state.lock().expect("nobody else");
    assert!(matches!(state.lock(), Err(StateError::Busy { .. })));
    drop(lock);
    state.lock().expect("free again");
}

#[test]
fn a_full_disk_names_file_and_need_and_leaves_the_old_content() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let small = Mounted::tmpfs(folder.path(), "64k");
    let state = StateDir::open(folder.path()).expect("it can be made");
    state.set_snapshot_bytes(b"old").expect("it fits");
    let error = state.set_snapshot_bytes(&vec![7; 1 << 20]).expect_err("it does not fit");
    assert!(matches!(error, StateError::Full { need_bytes: 1_048_576, .. }), "{error:?}");
    assert!(error.to_string().contains("snapshot: 1048576 bytes are needed"), "{error}");
    assert_eq!(state.snapshot_bytes().expect("readable").as_deref(), Some(b"old".as_slice()));
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1, "no half file is left");
    drop(small);
}

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, size: &str) -> Self {
        let options = format!("size={size}");
        let status =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        assert!(status.expect("mount is installed").success());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}
