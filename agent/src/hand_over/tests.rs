//! What two agents say to each other, between two ends of this process.
use std::io::Read;

use super::*;

#[test]
fn descriptors_arrive_under_their_names_and_unknown_ones_are_closed() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let (kept, other) = UnixStream::pair().expect("sockets");
    send(&ours, &[(Kept::Rules, kept.as_fd()), (Kept::Traffic, kept.as_fd()), (Kept::Traffic, kept.as_fd())])
        .expect("sent");
    drop(kept);
    let parked = receive(&theirs).expect("received");
    assert!(parked.rules.is_some() && parked.traffic.len() == 2 && parked.names.is_empty());
    drop(parked);
    let mut end = [0];
    assert_eq!((&other).read(&mut end).expect("an end"), 0, "a copy is left open");
}

#[tokio::test]
async fn words_of_other_versions_are_passed_over() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    std::io::Write::write_all(&mut (&ours), b"\"later\"\n{\"much_later\":[1]}\nrubbish\n").expect("written");
    let mut channel = Channel::new(theirs).expect("a channel");
    let mut other = Channel::new(ours).expect("a channel");
    other.say(&Word::Open(3)).await.expect("said");
    drop(other);
    assert_eq!(channel.hear().await.expect("heard"), Some(Word::Open(3)));
    assert_eq!(channel.hear().await.expect("heard"), None);
}
