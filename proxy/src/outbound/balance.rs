//! Pure: chooses one of several endpoints. The caller brings the load and the dice.
//!
//! Nearest tier first (`decide.rs`); within it two are drawn at random, weighted by capacity, and the
//! one with fewer open connections for its capacity is taken: almost as even as looking at all of
//! them, and no herd runs to the same one (Mitzenmacher, "The Power of Two Choices", 2001). An endpoint that
//! failed is taken out by the caller before it asks again.

use rand::{Rng, RngExt};

use super::decide::Candidate;

/// The index of the candidate to use next; `None` when there is none left.
pub(crate) fn choose(
    candidates: &[Candidate],
    load: impl Fn(&Candidate) -> usize,
    dice: &mut impl Rng,
) -> Option<usize> {
    let nearest = candidates.iter().map(|candidate| candidate.tier).min()?;
    let tier: Vec<usize> = (0..candidates.len()).filter(|i| candidates[*i].tier == nearest).collect();
    let first = draw(candidates, &tier, dice)?;
    let others: Vec<usize> = tier.into_iter().filter(|i| *i != first).collect();
    let Some(second) = draw(candidates, &others, dice) else { return Some(first) };
    let (a, b) = (&candidates[first], &candidates[second]);
    // a's load per capacity against b's, without dividing.
    let of_first = load(a) as u64 * u64::from(capacity(b));
    let of_second = load(b) as u64 * u64::from(capacity(a));
    Some(if of_second < of_first { second } else { first })
}

/// One of `from`, each as likely as its capacity.
fn draw(candidates: &[Candidate], from: &[usize], dice: &mut impl Rng) -> Option<usize> {
    let total: u64 = from.iter().map(|i| u64::from(capacity(&candidates[*i]))).sum();
    if total == 0 {
        return None;
    }
    let mut drawn = dice.random_range(0..total);
    for i in from {
        let weight = u64::from(capacity(&candidates[*i]));
        if drawn < weight {
            return Some(*i);
        }
        drawn -= weight;
    }
    None
}

/// A capacity of 0 means that nobody said one.
fn capacity(candidate: &Candidate) -> u32 {
    candidate.workload.capacity.max(1)
}

#[cfg(test)]
mod tests;
