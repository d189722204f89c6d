//! Tables for header and answer, and the fuzz corpus replayed.
use super::*;
use proptest::prelude::*;

fn header() -> Header<'static> {
    Header {
        destination: "10.0.0.2:8080".parse().expect("an address"),
        client: "[fd00::1]:40000".parse().expect("an address"),
        service: Some("orders.shop.mesh"),
        trace: Some(TraceParent { trace_id: 7, span_id: 8, flags: 1 }),
        baggage: "k8s.namespace.name=shop",
    }
}

/// What the server makes of the bytes of a whole header.
fn read(bytes: &[u8]) -> Result<Header<'_>, HeaderError> {
    let (start, body) = bytes.split_first_chunk().ok_or(HeaderError::Short { field: "start" })?;
    let length = body_length(*start)?;
    Header::decode(body.get(..length).ok_or(HeaderError::Short { field: "body" })?)
}

#[test]
fn a_header_is_these_bytes() {
    let bytes = header().encode();
    let fixed = [
        &[1, 0, 101][..],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2, 0x1f, 0x90],
        &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x9c, 0x40],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
        &[0, 0, 0, 0, 0, 0, 0, 8],
        &[1],
        &[16],
        b"orders.shop.mesh",
        b"k8s.namespace.name=shop",
    ];
    assert_eq!(bytes, fixed.concat());
}

#[test]
fn what_is_written_is_read() {
    let plain = Header { service: None, trace: None, baggage: "", ..header() };
    for header in [header(), plain] {
        assert_eq!(read(&header.encode()), Ok(header));
    }
}

#[test]
fn text_that_is_too_long_is_left_out() {
    let long = "x".repeat(9_000);
    let bytes = Header { service: Some(&long), baggage: &long, ..header() }.encode();
    assert_eq!(read(&bytes), Ok(Header { service: None, baggage: "", ..header() }));
}

#[test]
fn what_is_not_a_header_is_named() {
    let with = |at: usize, byte: u8| {
        let mut bytes = header().encode();
        bytes[at] = byte;
        bytes
    };
    let check = |bytes: Vec<u8>, expect: &str| {
        let error = read(&bytes).expect_err(expect).to_string();
        assert!(error.contains(expect), "{error:?} says not {expect:?}");
    };
    check(with(0, 2), "version 2 of the flow header is not known here, only 1");
    check(with(0, b'P'), "version 80");
    check(with(1, 0x20), "says that it has 8293 bytes; 62 to 8192 are allowed");
    check(vec![1, 0, 61], "says that it has 61 bytes");
    check(with(64, 200), "ends within its service");
    check(with(65, 0xff), "service of the flow header is not UTF-8");
    check(with(90, 0xff), "baggage of the flow header is not UTF-8");
    let mut no_port = header().encode();
    no_port[19..21].fill(0);
    check(no_port, "has port 0");
}

#[test]
fn answers_are_their_bytes() {
    for byte in 0..=255 {
        let answer = Answer::of(byte);
        assert_eq!(answer.map(Answer::byte), (byte <= 6).then_some(byte));
    }
}

/// What holds for any bytes; tests/fuzz/fuzz_targets/flow.rs looks for bytes for which it does not.
fn check_any(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes) {
        let again = header.encode();
        if bytes.len() <= MAX_BODY_BYTES {
            assert_eq!(read(&again).expect("what was read can be written"), header);
        }
    }
}

#[test]
fn the_fuzz_corpus_holds_no_surprise() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/flow");
    let mut read = 0;
    for file in std::fs::read_dir(folder).expect("the corpus is checked in") {
        let bytes = std::fs::read(file.expect("readable").path()).expect("readable");
        check_any(&bytes);
        read += usize::from(Header::decode(&bytes).is_ok());
        for cut in 0..bytes.len().min(200) {
            check_any(&bytes[..cut]);
        }
    }
    assert!(read >= 4, "only {read} of the inputs are headers");
}

proptest! {
    #[test]
    fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        check_any(&bytes);
    }
}
