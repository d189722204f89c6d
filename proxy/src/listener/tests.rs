//! Which addresses may be missing.
use super::*;

fn bind(addresses: &[&str]) -> Result<usize, BindError> {
    let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    Listener::bind_all(&addresses, "a test", Listening::Plain, &SocketConfig::default(), &mut vec![])
        .map(|bound| bound.len())
}

#[tokio::test]
async fn an_address_that_is_not_this_hosts_is_a_mistake() {
    assert_eq!(bind(&["127.0.0.1:0", "127.0.0.2:0"]).expect("loopback has free ports"), 2);
    let error = bind(&["127.0.0.1:0", "192.0.2.1:0"]).expect_err("nobody has it");
    assert_eq!(error.to_string(), "cannot listen on 192.0.2.1:0 for a test");
    assert!(bind(&["127.0.0.1:0", "[2001:db8::1]:0"]).is_err());
}

#[test]
fn a_host_without_ipv6_is_not() {
    let lacks = |address: &str, error: i32| {
        let address = address.parse().expect("an address");
        lacks_family(&BindError { address, purpose: "a test", source: io::Error::from_raw_os_error(error) })
    };
    assert!(lacks("[::]:15008", libc::EAFNOSUPPORT) && lacks("[::1]:15001", libc::EADDRNOTAVAIL));
    assert!(!lacks("0.0.0.0:15008", libc::EADDRNOTAVAIL) && !lacks("[::]:15008", libc::EADDRINUSE));
}
