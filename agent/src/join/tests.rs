//! Tables for what is refused before anything is sent; the calls themselves run in tests/e2e.
use super::*;
use crate::testing::TestControlPlane;
use sha2::{Digest, Sha256};
use std::time::Duration;

#[test]
fn host_names_are_dns_labels() {
    let check = |name: &str, good: bool| assert_eq!(host_name(Some(name)).is_ok(), good, "{name:?}");
    check("web1", true);
    check("a", true);
    check("web-1", true);
    check(&"a".repeat(63), true);
    check(&"a".repeat(64), false);
    check("", false);
    check("-web", false);
    check("web.corp", false);
    check("Web", false);
    check("wéb", false);
    assert!(host_name(None).is_ok() || std::fs::read_to_string("/proc/sys/kernel/hostname").is_err());
}

#[test]
fn the_exit_code_says_whether_to_ask_again() {
    assert_eq!(pin("sha256:00").expect_err("too short").exit_code(), 2);
    assert_eq!(check_group("orders").expect_err("no namespace").exit_code(), 2);
    assert_eq!(JoinError::from(TokenError::Checksum).exit_code(), 2);
    let refused = |code| call_failed(&Status::new(code, "no")).exit_code();
    assert_eq!(refused(Code::Unauthenticated), 4, "spent or expired");
    assert_eq!(refused(Code::ResourceExhausted), 1, "later it may go well");
    assert_eq!(refused(Code::Unavailable), 1, "later it may go well");
}

#[test]
fn every_refusal_says_what_to_do() {
    let check = |code: Code, message: &str, expect: &str| {
        let text = call_failed(&Status::new(code, message)).to_string();
        assert!(text.contains(message) && text.contains(expect), "{text}");
    };
    check(Code::Unauthenticated, "the join token expired at noon", "token create");
    check(Code::PermissionDenied, "the token is for hosts named web-*", "whose groups");
    check(Code::AlreadyExists, "there is a host named web1", "--name");
    check(Code::FailedPrecondition, "the host's clock is 7 min behind", "timedatectl");
    check(Code::Unavailable, "the store does not answer; try again", "try again");
}

#[tokio::test]
async fn joining_a_place_where_nobody_listens_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = Config::defaults();
    config.paths.state_dir = folder.path().join("state");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let token = JoinToken::generate(&[1; 32]).reveal();
    let options = JoinOptions { url: format!("https://{address}"), token, ..JoinOptions::default() };
    let error = join(&config, &options).await.expect_err("nobody is there");
    let text = error.to_string();
    assert!(text.contains(&format!("cannot reach {address}: ")) && text.contains("check the address"), "{text}");
    assert!(StateDir::at(&config.paths.state_dir).identity().expect("readable").is_none());
}

#[tokio::test]
async fn clocks_that_differ_are_told_as_that() {
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let now = SystemTime::now();
    for (begins, expect) in [(now + hours(2), "and it is only"), (now - hours(3), "unless this clock is wrong")] {
        let control_plane = TestControlPlane::start_with_certificate_from(begins).await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::defaults();
        config.paths.state_dir = folder.path().join("state");
        let pin = Sha256::digest(control_plane.ca.root_der()).into();
        let (url, token) = (format!("https://{}", control_plane.address), JoinToken::generate(&pin).reveal());
        let options = JoinOptions { url, token, name: Some("web1".to_owned()), ..JoinOptions::default() };
        let error = join(&config, &options).await.expect_err("it is believed only while it is valid");
        assert!(matches!(error, JoinError::Clock { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(expect) && text.contains("timedatectl set-ntp true"), "{text}");
    }
}
