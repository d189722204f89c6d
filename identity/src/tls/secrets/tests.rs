//! Against the traces of RFC 8448 §3, whose suite has SHA-256.
use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hex")
}

#[test]
fn the_keys_are_those_of_rfc_8448() {
    let secret = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
    let key = TrafficSecret::new(&bytes(secret)).expect("of SHA-256").key().expect("long enough");
    assert_eq!(key.algorithm, &AES_128_GCM);
    assert_eq!(*key.key, bytes("9f02283b6c9c07efc26bb9f2ac92e356"));
    assert_eq!(key.iv[..], bytes("cf782b88dd83549aadf1e984"));
}

#[test]
fn a_secret_of_no_suite_of_ours_is_refused() {
    for length in [0, 20, 31, 33, 47, 49, 64] {
        assert!(TrafficSecret::new(&vec![1; length]).is_none(), "{length} bytes");
    }
}

#[test]
fn a_renewed_secret_makes_other_keys_and_shows_none() {
    let mut secret = TrafficSecret::new(&[7; SHA384_BYTES]).expect("of SHA-384");
    let before = secret.key().expect("long enough");
    secret.renew().expect("long enough");
    let after = secret.key().expect("long enough");
    assert_eq!((before.algorithm, before.key.len()), (&AES_256_GCM, 32));
    assert!(before.key != after.key && before.iv != after.iv);
    assert_eq!(format!("{secret:?}"), "TrafficSecret(<set>)");
}
