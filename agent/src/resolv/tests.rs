//! What resolv.conf means, and that its changes are noticed however it is written.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tokio::time::timeout;

use super::{Follower, ResolvFiles, Sources, parse};

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn nameserver_lines_are_read_as_libc_reads_them() {
    let interface = |name: &str| (name == "eth0").then_some(3);
    let check = |text: &str, expect: &[&str]| assert_eq!(parse(text, interface), addresses(expect), "{text:?}");
    check("", &[]);
    check("nameserver 10.0.0.2\n", &["10.0.0.2:53"]);
    check("# c\n; c\nsearch x\nnameserver\t10.0.0.2  # why\noptions rotate", &["10.0.0.2:53"]);
    check("nameserver 10.0.0.2\nnameserver fd00::1\r\nnameserver 10.0.0.2", &["10.0.0.2:53", "[fd00::1]:53"]);
    check("nameserver fe80::1%eth0\nnameserver fe80::2%7", &["[fe80::1%3]:53", "[fe80::2%7]:53"]);
    check("nameserver fe80::1%nope\nnameserver dns.example\nnameserver\nNAMESERVER 10.0.0.1", &[]);
    check("#nameserver 10.0.0.2\nnameservers 10.0.0.3\n\0\u{fffd}nameserver", &[]);
}

struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn files(&self) -> ResolvFiles {
        ResolvFiles { conf: self.folder.path().join("resolv.conf"), uplinks: self.folder.path().join("run/uplinks") }
    }

    fn follow(&self, fixed: &[&str], own: &[&str]) -> Follower {
        Follower::spawn(Sources { files: self.files(), fixed: addresses(fixed), own: addresses(own) })
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("written");
    }
}

async fn upstreams_become(follower: &Follower, expect: &[&str]) {
    let (expect, mut upstreams) = (addresses(expect), follower.upstreams());
    let waited = timeout(Duration::from_secs(20), upstreams.wait_for(|now| *now == expect)).await;
    assert!(waited.is_ok(), "{:?} is not {expect:?}", follower.upstreams().borrow());
}

#[tokio::test]
async fn every_way_to_write_the_file_is_noticed() {
    let host = Host::new();
    host.write("resolv.conf", "nameserver 10.0.0.1\n");
    let follower = host.follow(&[], &[]);
    upstreams_become(&follower, &["10.0.0.1:53"]).await;

    host.write("resolv.conf", "nameserver 10.0.0.2\n");
    upstreams_become(&follower, &["10.0.0.2:53"]).await;

    host.write("fresh", "nameserver 10.0.0.3\n");
    fs::rename(host.folder.path().join("fresh"), host.files().conf).expect("renamed");
    upstreams_become(&follower, &["10.0.0.3:53"]).await;

    fs::create_dir(host.folder.path().join("other")).expect("a folder");
    host.write("other/real", "nameserver 10.0.0.4\n");
    fs::remove_file(host.files().conf).expect("removed");
    symlink("other/real", host.files().conf).expect("linked");
    upstreams_become(&follower, &["10.0.0.4:53"]).await;
    host.write("other/real", "nameserver 10.0.0.5\n");
    upstreams_become(&follower, &["10.0.0.5:53"]).await;

    fs::remove_file(host.files().conf).expect("removed");
    upstreams_become(&follower, &["127.0.0.1:53"]).await;
}

#[tokio::test]
async fn behind_systemd_resolved_its_uplinks_are_asked() {
    let host = Host::new();
    host.write("resolv.conf", "nameserver 127.0.0.53\noptions edns0\n");
    let follower = host.follow(&[], &[]);
    assert!(follower.resolvers().borrow().is_resolved_stub());
    upstreams_become(&follower, &[]).await;
    fs::create_dir(host.folder.path().join("run")).expect("a folder");
    host.write("run/uplinks", "nameserver 10.0.0.1\n# nameserver 127.0.0.1\n");
    upstreams_become(&follower, &["10.0.0.1:53"]).await;
}

#[tokio::test]
async fn neither_ourselves_nor_the_stub_are_asked() {
    let host = Host::new();
    host.write("resolv.conf", "nameserver 127.0.0.1\nnameserver 127.0.0.53\nnameserver 10.0.0.1\n");
    upstreams_become(&host.follow(&[], &["127.0.0.1:53"]), &["10.0.0.1:53"]).await;
    upstreams_become(&host.follow(&["10.9.9.9:5353"], &[]), &["10.9.9.9:5353"]).await;
}
