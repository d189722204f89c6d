//! What is taken for a question, what for its reply, and how both are cut to size.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use api::snapshot::Change;
use api::{Delta, Port, Service, Snapshot};
use proptest::prelude::*;

use super::super::answer::{Answer, answer};
use super::{Malformed, Request, is_truncated, response_code};

fn question(payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii("Orders.shop.mesh.").expect("a name"), RecordType::A));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_dnssec_ok(true);
        message.set_edns(edns);
    }
    message.to_vec().expect("encodes")
}

fn records(count: u8) -> Answer {
    let name = Name::from_ascii("Orders.shop.mesh.").expect("a name");
    let record = |n| Record::from_rdata(name.clone(), 30, RData::A(A::new(240, 240, 0, n)));
    Answer::Records { answers: (0..count).map(record).collect(), additionals: Vec::new() }
}

fn parse(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a message")
}

#[test]
fn a_reply_echoes_id_question_and_flags() {
    for payload in [None, Some(4096)] {
        let request = Request::read(&question(payload)).expect("a question");
        let reply = parse(&request.reply(records(2), 7, 512).expect("a reply"));
        assert_eq!(reply.metadata.id, 0x1234);
        assert_eq!(reply.queries[0].name.to_ascii(), "Orders.shop.mesh.", "case is kept");
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available && reply.metadata.recursion_desired);
        assert_eq!(reply.answers.len(), 2);
        assert_eq!(reply.edns.is_some(), payload.is_some());
        assert!(reply.edns.is_none_or(|edns| edns.flags().dnssec_ok));
    }
}

#[test]
fn denials_carry_the_zone_and_its_serial() {
    let request = Request::read(&question(None)).expect("a question");
    let zone = Name::from_ascii("mesh.").expect("a name");
    for (answer, code) in [
        (Answer::NoData { zone: zone.clone() }, ResponseCode::NoError),
        (Answer::NxDomain { zone: zone.clone() }, ResponseCode::NXDomain),
    ] {
        let reply = parse(&request.reply(answer, 0x1_0000_0007, 512).expect("a reply"));
        assert_eq!(reply.metadata.response_code, code);
        let RData::SOA(soa) = &reply.authorities[0].data else { panic!("{reply:?}") };
        assert_eq!((reply.authorities[0].name.clone(), soa.serial, soa.minimum), (zone.clone(), 7, 5));
    }
    assert_eq!(request.reply(Answer::Forward, 0, 512), None);
    let refused = parse(&request.reply(Answer::Refused, 0, 512).expect("a reply"));
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn replies_fit_what_the_client_takes() {
    let check = |payload, expect| {
        let request = Request::read(&question(payload)).expect("a question");
        assert_eq!(request.udp_limit(), expect);
        let reply = request.reply(records(100), 1, request.udp_limit()).expect("a reply");
        assert!(reply.len() <= expect, "{} > {expect}", reply.len());
        assert_eq!(parse(&reply).metadata.truncation, expect < 1600, "{payload:?}");
        let upstream = parse(&request.reply(records(100), 1, 65535).expect("a reply")).to_vec().expect("encodes");
        let relayed = request.relay(upstream, expect);
        assert!(relayed.len() <= expect);
        assert_eq!(is_truncated(&relayed), expect < 1600);
        assert_eq!(parse(&relayed).queries.len(), 1);
    };
    check(None, 512);
    check(Some(0), 512);
    check(Some(1232), 1232);
    check(Some(4096), 4096);
}

#[test]
fn what_is_no_question_is_said_so_or_ignored() {
    let good = question(Some(4096));
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let code = |bytes: &[u8]| match Request::read(bytes) {
        Ok(_) => "taken".to_owned(),
        Err(Malformed { reply: None }) => "ignored".to_owned(),
        Err(Malformed { reply: Some(reply) }) => {
            assert_eq!(reply[..2], bytes[..2], "the id is said back");
            format!("code {}", response_code(&reply))
        }
    };
    let table: [(&str, Vec<u8>, &str); 11] = [
        ("as it should be", good.clone(), "taken"),
        ("nothing", Vec::new(), "ignored"),
        ("half a header", good[..11].to_vec(), "ignored"),
        ("a header alone", good[..12].to_vec(), "code 1"),
        ("half a name", good[..20].to_vec(), "code 1"),
        ("a reply", changed(2, 0x81), "ignored"),
        ("an update", changed(2, 0x28), "code 4"),
        ("no question", changed(5, 0), "code 1"),
        ("two questions", changed(5, 2), "code 1"),
        ("a name that points at itself", [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(), "code 1"),
        ("a record missing", good[..good.len() - 4].to_vec(), "taken"),
    ];
    for (what, bytes, expect) in table {
        assert_eq!(code(&bytes), expect, "{what}");
    }
    let newer = {
        let mut message = parse(&good);
        message.edns.as_mut().expect("EDNS").set_version(1);
        Request::read(&message.to_vec().expect("encodes")).expect("a question")
    };
    let reply = parse(&newer.reply(records(1), 1, 512).expect("a reply"));
    assert_eq!(u16::from(reply.metadata.response_code), 16, "BADVERS");
}

#[test]
fn only_the_reply_to_the_question_is_taken() {
    let request = Request::read(&question(None)).expect("a question");
    let id = 0xbeef;
    let mut good = request.with_id(id);
    good[2] |= 0x80;
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let end = good.len();
    let table: [(&str, Vec<u8>, bool); 10] = [
        ("the reply", good.clone(), true),
        ("another case", changed(13, b'o'), true),
        ("another id", changed(0, 0), false),
        ("a question", changed(2, 0), false),
        ("another name", changed(14, b'x'), false),
        ("another type", changed(end - 3, 28), false),
        ("another class", changed(end - 1, 3), false),
        ("cut off", good[..end - 1].to_vec(), false),
        ("no question and no error", changed(5, 0), false),
        ("no question and an error", [&changed(5, 0)[..3], &[1], &changed(5, 0)[4..]].concat(), true),
    ];
    for (what, bytes, expect) in table {
        assert_eq!(request.is_answered_by(&bytes, id), expect, "{what}");
    }
}

fn snapshot() -> Snapshot {
    let port = Port { service_port: 80, target_port: 80, app_protocol: api::service::AppProtocol::Http11 };
    let service = |hostname: &str| Service {
        name: "orders".to_owned(),
        namespace: "shop".to_owned(),
        hostname: hostname.to_owned(),
        vips: vec!["240.240.0.5".parse().expect("an address"), "fd74:6d62:6f6c::5".parse().expect("an address")],
        ports: vec![port],
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
    };
    let changes = ["orders.shop.mesh", "*.files.example"].map(|host| Change::Service(service(host)));
    Snapshot::default().apply(Delta { revision: 1, changes: changes.into() })
}

/// What holds for any bytes; tests/fuzz/fuzz_targets/dns.rs looks for bytes for which it does not.
fn check(bytes: &[u8]) {
    let request = match Request::read(bytes) {
        Ok(request) => request,
        Err(malformed) => {
            let is_error = |reply: Vec<u8>| reply[..2] == bytes[..2] && reply.len() == 12 && reply[2] & 0x80 != 0;
            return assert!(malformed.reply.is_none_or(is_error), "{bytes:?}");
        }
    };
    let decided = answer(&snapshot(), request.question(), Some("shop"));
    if let Some(reply) = request.reply(decided, 7, request.udp_limit()) {
        assert!(reply.len() <= request.udp_limit(), "{bytes:?}");
        assert!(request.is_answered_by(&reply, request.id()), "{bytes:?} {reply:?}");
        parse(&reply);
    }
    assert!(!request.is_answered_by(bytes, request.id()), "a question is no reply: {bytes:?}");
    assert!(request.relay(bytes.to_vec(), request.udp_limit()).len() <= request.udp_limit(), "{bytes:?}");
}

#[test]
fn the_fuzz_corpus_holds_no_surprise() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/dns");
    let inputs = std::fs::read_dir(folder).expect("the corpus is checked in");
    let inputs: Vec<_> = inputs.map(|file| std::fs::read(file.expect("readable").path()).expect("readable")).collect();
    assert!(inputs.len() >= 30, "{}", inputs.len());
    inputs.iter().for_each(|bytes| check(bytes));
}

proptest! {
    #[test]
    fn no_bytes_break_the_server(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        check(&bytes);
    }

    #[test]
    fn no_change_of_a_question_breaks_the_server(
        changes in proptest::collection::vec((0_usize..60, any::<u8>()), 0..6),
        length in 0_usize..60,
    ) {
        let mut bytes = question(Some(1232));
        for (at, to) in changes {
            let at = at % bytes.len();
            bytes[at] = to;
        }
        check(&bytes);
        bytes.truncate(length);
        check(&bytes);
    }
}
