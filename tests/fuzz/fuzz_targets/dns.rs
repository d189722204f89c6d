//! DNS messages: whatever a process asks and whatever a resolver says, what we say can be read, fits,
//! and answers what was asked.
#![no_main]

use api::snapshot::Change;
use api::{Delta, Port, Service, Snapshot};
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use proxy::dns::answer::answer;
use proxy::dns::message::Request;

fuzz_target!(|bytes: &[u8]| {
    let request = match Request::read(bytes) {
        Ok(request) => request,
        Err(malformed) => {
            if let Some(reply) = malformed.reply {
                assert_eq!(reply[..2], bytes[..2]);
                assert!(reply.len() == 12 && reply[2] & 0x80 != 0);
            }
            return;
        }
    };
    let decided = answer(&snapshot(), request.question(), Some("shop"));
    if let Some(reply) = request.reply(decided, 7, request.udp_limit()) {
        assert!(reply.len() <= request.udp_limit());
        assert!(request.is_answered_by(&reply, request.id()));
        Message::from_vec(&reply).expect("what we say can be read");
    }
    assert!(!request.is_answered_by(bytes, request.id()), "a question is no reply");
    assert!(request.relay(bytes.to_vec(), request.udp_limit()).len() <= request.udp_limit().max(512));
});

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
