//! Tests of `rotation`, the file beside this folder.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

#[test]
fn nothing_held_is_due_at_once() {
    let rotation = Rotation::new(7);
    assert_eq!(rotation.wait(at(0)), Duration::ZERO);
    assert_eq!(rotation.state(at(0)), State::Missing);
}

#[test]
fn renewal_is_due_around_half_life_and_differs_between_seeds() {
    let mut waits = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let mut rotation = Rotation::new(seed);
        rotation.renewed(at(0), at(3600), at(0));
        let wait = rotation.wait(at(0));
        assert!(wait >= HOUR.mul_f64(0.4) && wait <= HOUR.mul_f64(0.6), "seed {seed}: {wait:?}");
        assert_eq!(rotation.wait(at(0)), wait, "the same question has the same answer");
        assert_eq!(rotation.state(at(0)), State::Fresh);
        assert_eq!(rotation.state(at(0) + wait), State::Due);
        waits.insert(wait);
    }
    assert!(waits.len() > 90, "a fleet must not renew in one second");
}

#[test]
fn failures_back_off_and_keep_the_old_certificate() {
    let mut rotation = Rotation::new(1);
    rotation.renewed(at(0), at(3600), at(0));
    let mut last = Duration::ZERO;
    for attempt in 1..=30 {
        rotation.failed(at(2000));
        let wait = rotation.wait(at(2000));
        let plain = FIRST_RETRY * (1 << (attempt - 1u32).min(16));
        assert!(wait >= plain.mul_f64(0.8).min(LONGEST_RETRY.mul_f64(0.8)), "attempt {attempt}: {wait:?}");
        assert!(wait <= plain.mul_f64(1.2).min(LONGEST_RETRY), "attempt {attempt}: {wait:?}");
        assert!(wait >= last.mul_f64(0.9), "attempt {attempt} comes sooner than the one before: {wait:?}");
        assert_eq!(rotation.state(at(2000)), State::Due);
        last = wait;
    }
    assert_eq!(rotation.state(at(3601)), State::Expired);
    rotation.renewed(at(3601), at(7201), at(3601));
    assert_eq!((rotation.failures(), rotation.state(at(3601))), (0, State::Fresh));
}

#[test]
fn a_backdated_short_certificate_does_not_make_a_storm() {
    let mut rotation = Rotation::new(3);
    rotation.renewed(at(0), at(130), at(120));
    assert_eq!(rotation.wait(at(120)), LEAST_REST, "its half life is past, but it rests");
}

#[test]
fn a_wrong_clock_is_told_and_does_not_stall() {
    let mut rotation = Rotation::new(3);
    rotation.renewed(at(0), at(3600), at(10));
    assert_eq!(rotation.state(SystemTime::UNIX_EPOCH), State::NotYetValid);
    assert!(rotation.wait(SystemTime::UNIX_EPOCH) <= HOUR, "set back by decades: still at most its own rest");
    rotation.failed(at(2000));
    assert!(rotation.wait(SystemTime::UNIX_EPOCH) <= FIRST_RETRY.mul_f64(1.2));
    assert_eq!(rotation.wait(at(9000)), Duration::ZERO, "set forward: due");
}
