//! Pure: bytes of a datagram or a TCP message ↔ request and reply.
//!
//! [`super`] and [`super::forward`] call it. What is forwarded travels as the bytes that came, with
//! only the id changed, so that EDNS options and record types unknown to us survive.

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::answer::{Answer, SHORT_TTL_SECONDS};

/// A question that can be answered or forwarded.
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
    header: Header,
    question: Query,
    question_end: usize,
    /// `None` without EDNS, also where what follows the question cannot be read.
    edns: Option<Edns>,
}

/// Bytes that are not a question we take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// What to say, if anything: a reply to a reply would never end.
    pub reply: Option<Vec<u8>>,
}

/// Payload that every UDP client takes (RFC 1035 §4.2.1).
const PLAIN_UDP_BYTES: usize = 512;
/// What we say that we take: above it datagrams are fragmented somewhere (DNS flag day 2020).
const OUR_UDP_BYTES: u16 = 1232;
const HEADER_BYTES: usize = 12;

impl Request {
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| Malformed { reply: None })?;
        if header.message_type == MessageType::Response {
            return Err(Malformed { reply: None });
        }
        if header.op_code != OpCode::Query {
            return Err(Malformed::because(&header, ResponseCode::NotImp));
        }
        let question = Query::read(&mut decoder);
        match question {
            Ok(question) if header.counts.queries == 1 => {
                let question_end = decoder.index();
                let edns = Message::from_vec(bytes).ok().and_then(|message| message.edns);
                Ok(Self { bytes: bytes.to_vec(), header, question, question_end, edns })
            }
            _ => Err(Malformed::because(&header, ResponseCode::FormErr)),
        }
    }

    pub fn id(&self) -> u16 {
        self.header.id
    }

    pub fn question(&self) -> &Query {
        &self.question
    }

    /// The longest reply that this client takes over UDP.
    pub fn udp_limit(&self) -> usize {
        self.edns.as_ref().map_or(PLAIN_UDP_BYTES, |edns| usize::from(edns.max_payload()).max(PLAIN_UDP_BYTES))
    }

    /// The request's bytes under another id.
    pub fn with_id(&self, id: u16) -> Vec<u8> {
        set_id(self.bytes.clone(), id)
    }

    /// Whether `reply` answers this request when it was sent under `id`: a reply, to this question.
    pub fn is_answered_by(&self, reply: &[u8], id: u16) -> bool {
        let Some(header) = reply.first_chunk::<HEADER_BYTES>() else { return false };
        if header[..2] != id.to_be_bytes() || header[2] & 0x80 == 0 {
            return false;
        }
        let asked = &self.bytes[HEADER_BYTES..self.question_end];
        match u16::from_be_bytes([header[4], header[5]]) {
            0 => response_code(reply) != 0, // an error may leave the question out
            1 => reply.get(HEADER_BYTES..self.question_end).is_some_and(|said| is_same_question(asked, said)),
            _ => false,
        }
    }

    /// The reply that tells an [`Answer`]; `None` for [`Answer::Forward`]. `serial` is the SOA's.
    pub fn reply(&self, answer: Answer, serial: u64, limit: usize) -> Option<Vec<u8>> {
        if self.edns.as_ref().is_some_and(|edns| edns.version() > 0) && answer != Answer::Forward {
            return Some(self.failure(ResponseCode::BADVERS));
        }
        let mut message = match answer {
            Answer::Forward => return None,
            Answer::Refused => return Some(self.failure(ResponseCode::Refused)),
            Answer::Records { answers, additionals } => {
                let mut message = self.message(ResponseCode::NoError);
                message.add_answers(answers).add_additionals(additionals);
                message
            }
            Answer::NoData { zone } => self.denial(ResponseCode::NoError, zone, serial),
            Answer::NxDomain { zone } => self.denial(ResponseCode::NXDomain, zone, serial),
        };
        message.metadata.authoritative = true;
        let bytes = encode(&message);
        Some(if bytes.len() > limit { encode(&message.truncate()) } else { bytes })
    }

    /// A reply without records.
    pub fn failure(&self, code: ResponseCode) -> Vec<u8> {
        encode(&self.message(code))
    }

    /// Another resolver's reply as this client takes it: under its id, and cut down to the question
    /// with TC set when it is longer than `limit`.
    pub fn relay(&self, reply: Vec<u8>, limit: usize) -> Vec<u8> {
        let reply = set_id(reply, self.id());
        if reply.len() <= limit || reply.len() < HEADER_BYTES {
            return reply;
        }
        let mut cut = reply[..4].to_vec();
        cut[2] |= TRUNCATED;
        cut.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        cut.extend(&self.bytes[HEADER_BYTES..self.question_end]);
        cut
    }

    fn message(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id(), OpCode::Query);
        message.metadata.recursion_desired = self.header.recursion_desired;
        message.metadata.checking_disabled = self.header.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.question.clone());
        if let Some(asked) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(OUR_UDP_BYTES).set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message
    }

    fn denial(&self, code: ResponseCode, zone: Name, serial: u64) -> Message {
        let mut message = self.message(code);
        message.add_authority(soa(zone, serial));
        message
    }
}

impl Malformed {
    fn because(header: &Header, code: ResponseCode) -> Self {
        let mut message = Message::response(header.id, header.op_code);
        message.metadata.recursion_desired = header.recursion_desired;
        message.metadata.response_code = code;
        Self { reply: Some(encode(&message)) }
    }
}

/// Whether a reply says that it was cut.
pub fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & TRUNCATED != 0)
}

/// A reply's code, without EDNS' upper bits.
pub fn response_code(reply: &[u8]) -> u8 {
    reply.get(3).map_or(0, |flags| flags & 0x0f)
}

const TRUNCATED: u8 = 0x02;

/// Names compare without case, type and class (the last four bytes) exactly. A label's length is
/// below 64, so no length byte is taken for a letter.
fn is_same_question(asked: &[u8], said: &[u8]) -> bool {
    let Some((asked_name, asked_type)) = asked.split_last_chunk::<4>() else { return false };
    let Some((said_name, said_type)) = said.split_last_chunk::<4>() else { return false };
    asked_type == said_type && asked_name.eq_ignore_ascii_case(said_name)
}

fn set_id(mut bytes: Vec<u8>, id: u16) -> Vec<u8> {
    if let Some(first) = bytes.first_chunk_mut::<2>() {
        *first = id.to_be_bytes();
    }
    bytes
}

/// What a resolver needs to keep a "does not exist" for a while (RFC 2308 §3).
fn soa(zone: Name, serial: u64) -> Record {
    let server = zone.prepend_label("ns").unwrap_or_default();
    let contact = zone.prepend_label("hostmaster").unwrap_or_default();
    let serial = u32::try_from(serial & u64::from(u32::MAX)).unwrap_or_default();
    let minimum = SHORT_TTL_SECONDS;
    Record::from_rdata(zone, minimum, RData::SOA(SOA::new(server, contact, serial, 3600, 600, 86400, minimum)))
}

/// What cannot be encoded (a name too long for its prefix) becomes an empty SERVFAIL.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_else(|_| {
        let [high, low] = message.metadata.id.to_be_bytes();
        vec![high, low, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    })
}

#[cfg(test)]
mod tests;
