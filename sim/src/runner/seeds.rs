//! Which seeds of which scenarios: `--seeds N | a..b | git`, `--shard k/n`. Pure, but for the source of fresh seeds.

use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Seeds are below this, exact in JSON.
pub const END: u64 = 1 << 53;

/// Fresh seeds beside the pinned ones when the user asks for none.
pub const A_FEW: u64 = 2;

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// So many fresh ones.
    Fresh(u64),
    /// From the first to the second, both.
    Range(u64, u64),
    /// One, from the commit.
    Git,
}

/// One of several parts of a sweep, on as many machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub part: u64,
    /// Of how many.
    pub of: u64,
}

/// The seeds of one scenario, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seeds {
    /// These.
    List(Vec<u64>),
    /// All of a range, however long.
    Range(RangeInclusive<u64>),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        let expected =
            || format!("expected a number of seeds, \"a..b\" (both below 2^53) or \"git\", found \"{text}\"");
        if text == "git" {
            return Ok(Wanted::Git);
        }
        let seed = |text: &str| text.parse::<u64>().ok().filter(|seed| *seed < END).ok_or_else(expected);
        match text.split_once("..") {
            Some((from, to)) => {
                let (from, to) = (seed(from)?, seed(to.strip_prefix('=').unwrap_or(to))?);
                if from > to {
                    return Err(format!("expected a..b with a up to b, found \"{text}\""));
                }
                Ok(Wanted::Range(from, to))
            }
            None => match seed(text)? {
                0 => Err("expected at least one seed".to_string()),
                count => Ok(Wanted::Fresh(count)),
            },
        }
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let parts = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((part, of)) if (1..=of).contains(&part) => Ok(Shard { part, of }),
            _ => Err(format!("expected a part of a sweep like \"1/4\", found \"{text}\"")),
        }
    }
}

impl Seeds {
    /// How many.
    pub fn len(&self) -> u64 {
        match self {
            Seeds::List(list) => list.len() as u64,
            Seeds::Range(range) => range.end() - range.start() + 1,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The n-th, from 0.
    pub fn get(&self, at: u64) -> Option<u64> {
        match self {
            Seeds::List(list) => list.get(usize::try_from(at).ok()?).copied(),
            Seeds::Range(range) => range.start().checked_add(at).filter(|seed| seed <= range.end()),
        }
    }

    /// Pinned seeds and a range, sorted, each once.
    pub fn with_pinned(pinned: &[u64], fresh: RangeInclusive<u64>) -> Seeds {
        let mut all: Vec<u64> = pinned.iter().copied().chain(fresh).collect();
        all.sort_unstable();
        all.dedup();
        Seeds::List(all)
    }
}

/// The seed of a commit: its first 13 hex digits, which are 52 bits.
pub fn of_commit(commit: &str) -> Result<u64, String> {
    let digits = commit.get(..13).ok_or_else(|| format!("expected a commit hash, found \"{commit}\""))?;
    u64::from_str_radix(digits, 16).map_err(|_| format!("expected a commit hash, found \"{commit}\""))
}

/// A range of `count` seeds that nobody chose. Short numbers: people copy them.
pub fn fresh(count: u64) -> RangeInclusive<u64> {
    // The standard library's hasher is seeded by the operating system.
    let random = std::hash::RandomState::new().build_hasher().finish();
    let start = random % 1_000_000_000;
    start..=(start + count.max(1) - 1).min(END - 1)
}

/// The cases of a sweep, as (scenario, seed), lazily: a range may be long. A case's place in the list sorted by scenario
/// and seed decides its shard. With `by_seed` all scenarios take turns, for sweeps that end by time.
pub fn cases(
    seeds: &[Seeds],
    shard: Option<Shard>,
    by_seed: bool,
) -> impl Iterator<Item = (usize, u64)> + Send + use<> {
    let seeds = seeds.to_vec();
    let mut starts = Vec::new();
    let mut total = 0u64;
    for of_one in &seeds {
        starts.push(total);
        total += of_one.len();
    }
    let longest = seeds.iter().map(Seeds::len).max().unwrap_or(0);
    let count = seeds.len() as u64;
    let outer = if by_seed { longest } else { count };
    let mine = move |place: u64| shard.is_none_or(|shard| place % shard.of == shard.part - 1);
    let lengths: Vec<u64> = seeds.iter().map(Seeds::len).collect();
    let places = (0..outer).flat_map(move |outer| {
        let inner = if by_seed { count } else { lengths.get(outer as usize).copied().unwrap_or(0) };
        (0..inner).map(move |inner| if by_seed { (inner as usize, outer) } else { (outer as usize, inner) })
    });
    places.filter_map(move |(scenario, at)| {
        let seed = seeds.get(scenario)?.get(at)?;
        mine(starts[scenario] + at).then_some((scenario, seed))
    })
}

/// How many cases that are.
pub fn count(seeds: &[Seeds], shard: Option<Shard>) -> u64 {
    let total: u64 = seeds.iter().map(Seeds::len).sum();
    match shard {
        None => total,
        Some(shard) => (total + shard.of - shard.part) / shard.of,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        assert_eq!("20".parse(), Ok(Wanted::Fresh(20)));
        assert_eq!("3..9".parse(), Ok(Wanted::Range(3, 9)));
        assert_eq!("git".parse(), Ok(Wanted::Git));
        let last = format!("0..{}", END - 1);
        assert_eq!(last.parse(), Ok(Wanted::Range(0, END - 1)));
        for text in ["", "0", "-1", "9..3", "a..b", "3..", "..3", "9007199254740992..9007199254740993", "head"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
        assert_eq!("2/4".parse(), Ok(Shard { part: 2, of: 4 }));
        for text in ["0/4", "5/4", "1", "1/0", "a/b", "1/"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_commit_has_one_seed_below_the_end() {
        assert_eq!(of_commit("ffffffffffffffffffff"), Ok(END / 2 - 1));
        assert_eq!(of_commit("0000000000001234"), Ok(1));
        assert!(of_commit("abc").is_err() && of_commit("nothexnothexnothex").is_err());
    }

    #[test]
    fn fresh_seeds_are_as_many_as_asked_for_and_not_always_the_same() {
        let range = fresh(1000);
        assert_eq!(range.end() - range.start() + 1, 1000);
        assert!((0..10).any(|_| fresh(1) != fresh(1)));
    }

    #[test]
    fn shards_are_disjoint_and_complete_in_either_order() {
        let seeds = [
            Seeds::with_pinned(&[8123, 1], 7..=8),
            Seeds::List(vec![]),
            Seeds::Range(5..=11),
            Seeds::with_pinned(&[3, 3], 3..=3),
        ];
        let mut all: Vec<_> = cases(&seeds, None, false).collect();
        assert_eq!(all.len() as u64, count(&seeds, None));
        assert_eq!(all[..5], [(0, 1), (0, 7), (0, 8), (0, 8123), (2, 5)]);
        let turns: Vec<_> = cases(&seeds, None, true).collect();
        assert_eq!(turns[..4], [(0, 1), (2, 5), (3, 3), (0, 7)]);
        for by_seed in [false, true] {
            let mut parts = Vec::new();
            for part in 1..=5 {
                let shard = Some(Shard { part, of: 5 });
                let cases: Vec<_> = cases(&seeds, shard, by_seed).collect();
                assert_eq!(cases.len() as u64, count(&seeds, shard));
                parts.extend(cases);
            }
            parts.sort_unstable();
            all.sort_unstable();
            assert_eq!(parts, all);
        }
        assert_eq!(cases(&seeds, Some(Shard { part: 2, of: 5 }), false).collect::<Vec<_>>(), [(0, 7), (2, 7), (3, 3)]);
    }

    #[test]
    fn the_longest_range_needs_no_memory() {
        let seeds = [Seeds::Range(0..=END - 1), Seeds::Range(0..=END - 1)];
        assert_eq!(cases(&seeds, None, true).take(3).collect::<Vec<_>>(), [(0, 0), (1, 0), (0, 1)]);
        assert_eq!(count(&seeds, Some(Shard { part: 1, of: 2 })), END);
    }
}
