//! The encoder's shape, and that no bytes from outside make the reader panic.

use super::*;

#[test]
fn attributes_are_padded_nested_and_read_back() {
    let mut message = Message::new(7, REQUEST).fixed(&[1, 0, 0, 0]);
    message.string(1, "tombolo");
    message.nest(2, |inner| {
        inner.big_endian(3, 0x106d);
        inner.attribute(4, &[9]);
    });
    let bytes = message.finish(42);
    assert_eq!(bytes.len() % 4, 0);
    let received = messages(&bytes).next().expect("one message");
    assert_eq!((received.kind, received.flags, received.sequence), (7, REQUEST, 42));
    let attributes_read = received.attributes(4);
    assert_eq!(attributes_read.find(1).map(text), Some("tombolo".to_owned()));
    let inner = attributes(attributes_read.find(2).expect("the nest"));
    assert_eq!(inner.find(3).and_then(big_endian_u32), Some(0x106d));
    assert_eq!(inner.find(4), Some(&[9][..]));
}

#[test]
fn cut_and_lying_lengths_end_the_reading() {
    let mut message = Message::new(7, REQUEST).fixed(&[0; 4]);
    message.string(1, "tombolo");
    let bytes = message.finish(1);
    for cut in 0..bytes.len() {
        for received in messages(&bytes[..cut]) {
            received.attributes(4).for_each(drop);
        }
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 3, 0x7f, 0xff] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            messages(&wrong).for_each(|received| received.attributes(4).for_each(drop));
        }
    }
}
