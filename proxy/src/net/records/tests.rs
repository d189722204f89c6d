//! Records without a socket: what is sealed opens again, and nothing else does.
use super::*;
use identity::tls::TrafficSecret;

fn pair() -> (Sealer, Opener) {
    let key = TrafficSecret::new(&[7; 48]).and_then(|secret| secret.key().ok()).expect("long enough");
    (Sealer::new(0, &key).expect("fits"), Opener::new(0, &key).expect("fits"))
}

fn record(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; HEAD_BYTES + plaintext.len() + TAIL_BYTES];
    slot[HEAD_BYTES..HEAD_BYTES + plaintext.len()].copy_from_slice(plaintext);
    sealer.seal(Content::Data, &mut slot).expect("it fits");
    slot
}

#[test]
fn records_open_in_their_order_only() {
    let (mut sealer, mut opener) = pair();
    let (mut first, mut second) = (record(&mut sealer, b"first"), record(&mut sealer, b"second"));
    let (content, place) = opener.open(&mut first).expect("in order");
    assert_eq!((content, &first[place]), (Content::Data, &b"first"[..]));
    let mut again = record(&mut pair().0, b"first");
    assert_eq!(opener.open(&mut again), Err(RecordError::Forged), "a record that came before");
    // The failed one has used up a number: a peer gets no second try.
    assert_eq!(opener.open(&mut second), Err(RecordError::Forged));
}

#[test]
fn every_changed_bit_is_seen() {
    for at in 0..HEAD_BYTES + 4 + TAIL_BYTES {
        let (mut sealer, mut opener) = pair();
        let mut changed = record(&mut sealer, b"four");
        changed[at] ^= 1;
        assert_eq!(opener.open(&mut changed), Err(RecordError::Forged), "byte {at}");
    }
}

#[test]
fn padding_is_taken_off_and_a_record_of_padding_is_refused() {
    let (mut sealer, mut opener) = pair();
    // The content type of `seal` is part of a longer plaintext here.
    let mut padded = record(&mut sealer, b"data");
    assert_eq!(opener.open(&mut padded).expect("whole").1.len(), 4);
    let mut slot = vec![0; HEAD_BYTES + 3 + TAIL_BYTES];
    sealer.seal(Content::Data, &mut slot).expect("it fits");
    assert_eq!(opener.open(&mut slot).expect("zeroes are data before a type").1.len(), 3);
}

#[test]
fn lengths_are_those_of_rfc_8446() {
    for (bytes, expected) in [
        (&[][..], Ok(None)),
        (&[23, 3, 3, 0], Ok(None)),
        (&[23, 3, 3, 0, 17], Ok(Some(22))),
        (&[23, 3, 3, 0x41, 0], Ok(Some(16_645))),
        (&[23, 3, 3, 0x41, 1], Err(RecordError::Length { bytes: 16_641 })),
        (&[23, 3, 3, 0, 16], Err(RecordError::Length { bytes: 16 })),
        (&[22, 3, 3, 0, 17], Err(RecordError::Unexpected { kind: 22 })),
    ] {
        assert_eq!(length(bytes), expected, "{bytes:?}");
    }
}

#[test]
fn a_key_wears_out() {
    let (mut sealer, _) = pair();
    assert!(!sealer.worn());
    sealer.0.sequence = MAX_RECORDS;
    assert!(sealer.worn());
}
