//! The snapshot file against every kind of damage.
use super::*;
use crate::discovery::Holdings;
use api::snapshot::Change;
use api::wire;

fn resource() -> NamedResource {
    let host = api::HostConfig { host: "web1".into(), workloads: vec![], lease: std::time::Duration::from_secs(30) };
    let encoded = wire::encode(&Change::Host(host)).expect("not a removal");
    NamedResource { type_url: encoded.type_url.into(), name: encoded.name, version: "v1".into(), body: encoded.body }
}

#[test]
fn what_is_written_is_read() {
    let bytes = encode(7, [resource()]);
    let whole = SnapshotFile { revision: 7, resources: vec![resource()] };
    assert_eq!(SnapshotFile::decode(&bytes[HEAD_BYTES..]), Ok(whole));
    let (holdings, refused) = Holdings::from_file(decode(bytes).expect("just written"));
    assert_eq!(refused, []);
    let snapshot = holdings.snapshot();
    assert_eq!((snapshot.revision(), snapshot.host().map(|host| host.host.as_str())), (7, Some("web1")));
}

#[test]
fn every_damage_is_told() {
    let good = encode(7, [resource()]);
    let check = |change: &dyn Fn(&mut Vec<u8>), expect: SnapshotFileError| {
        let mut bytes = good.clone();
        change(&mut bytes);
        assert_eq!(decode(bytes), Err(expect));
    };
    let length = good.len() as u64;
    check(&|bytes| bytes.clear(), SnapshotFileError::Magic);
    check(&|bytes| bytes[0] ^= 1, SnapshotFileError::Magic);
    check(&|bytes| bytes[11] = 9, SnapshotFileError::Version { found: 9 });
    check(&|bytes| bytes.truncate(30), SnapshotFileError::Length { found: 30, expected: 52 });
    check(&|bytes| bytes.push(0), SnapshotFileError::Length { found: length + 1, expected: length });
    check(&|bytes| bytes.truncate(good.len() - 1), SnapshotFileError::Length { found: length - 1, expected: length });
    check(&|bytes| bytes[12] = 0xff, SnapshotFileError::Length { found: length, expected: length | 0xff << 56 });
    check(&|bytes| bytes[60] ^= 0x10, SnapshotFileError::Checksum);
    check(&|bytes| bytes[30] ^= 0x10, SnapshotFileError::Checksum);
    for cut in 0..good.len() {
        assert!(decode(good[..cut].to_vec()).is_err(), "cut at {cut}");
    }
}

#[test]
fn an_object_of_another_version_is_left_out_and_named() {
    let bytes = encode(7, [NamedResource { body: vec![0xff; 3], ..resource() }]);
    let (holdings, refused) = Holdings::from_file(decode(bytes).expect("the frame is good"));
    assert!(holdings.snapshot().host().is_none());
    assert_eq!(refused.len(), 1);
}

/// The fuzz target's corpus, without the fuzzer.
#[test]
fn the_fuzz_corpus_does_not_panic() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/snapshot_file");
    let mut replayed = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is in the tree") {
        let bytes = std::fs::read(entry.expect("readable").path()).expect("readable");
        if let Ok(content) = decode(bytes) {
            let _ = Holdings::from_file(content);
        }
        replayed += 1;
    }
    assert!(replayed > 0, "the corpus is empty");
}
