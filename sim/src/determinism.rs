//! What makes two processes equal that run the same seed.
//!
//! When time, network, disk and randomness are simulated, hashers are left whose seeds come from addresses or from the
//! system. Of those in the tree
//! - ahash is given fixed seeds here ([`settle`]), before anything has made a map;
//! - foldhash (hashbrown's default) is replaced by the copies in `sim/vendor`;
//! - `std`'s is seeded by madsim, from the seed, on the thread of the simulation; it counts the maps made on a thread, so
//!   their order may change with the number of maps made before.
//!
//! Not here: the limits of a worker (`worker`), its environment, directory and addresses (`runner::process`).

use std::fmt;
use std::thread;

/// The seed of the small simulation in which ahash takes its keys. Any will do.
const KEYS: u64 = 0x5eed_bed0;

/// Something made a map before [`settle`]: its order, and all after it, differ from process to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled;

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hash map was made before the worker had settled its hashers, or it settled them twice")
    }
}

impl std::error::Error for Unsettled {}

/// Gives ahash fixed seeds. To be called once, before anything makes a map, outside of a simulation.
pub fn settle() -> Result<(), Unsettled> {
    ahash::random_state::set_random_source(Same).map_err(|_| Unsettled)?;
    // ahash has a second source: keys that it takes from the system when the first map is made. In a simulation madsim
    // answers in the system's place, from the seed; so let it take them in one that is always the same, and on a
    // thread of its own, since madsim seeds the thread's `std` hashers too.
    thread::spawn(|| {
        let simulation = madsim::runtime::Runtime::with_seed_and_config(KEYS, madsim::Config::default());
        simulation.block_on(async { ahash::RandomState::new() });
    })
    .join()
    .map_err(|_| Unsettled)
}

/// Every map has the same seed: its order depends on what was put into it, not on the maps made before.
struct Same;

impl ahash::random_state::RandomSource for Same {
    fn gen_hasher_seed(&self) -> usize {
        1
    }
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "children answer on it")]
mod tests {
    use std::collections::HashMap;
    use std::hash::BuildHasher;
    use std::process::Command;

    use super::*;

    /// What a child process prints that runs the test `name`, which is ignored otherwise. It has whatever addresses the
    /// system gives it, and an environment of `padding` bytes, which moves its stack.
    fn child(name: &str, padding: usize) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", &format!("determinism::tests::{name}")])
            .env_clear()
            .env("PADDING", "x".repeat(padding))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("order")).collect();
        assert!(!lines.is_empty(), "{text}");
        lines.join("\n")
    }

    fn order<S: BuildHasher + Default>() -> String {
        // Maps made before must not matter.
        let mut map: HashMap<String, u32, S> = HashMap::default();
        map.extend((0..100).map(|key| (format!("key {key}"), key)));
        let values: Vec<u32> = map.into_values().collect();
        format!("order {values:?}")
    }

    /// Runs `work` in a simulation on a fresh thread, as a worker does.
    fn simulated(work: fn() -> String) -> String {
        thread::spawn(move || {
            madsim::runtime::Runtime::with_seed_and_config(7, madsim::Config::default()).block_on(async { work() })
        })
        .join()
        .unwrap()
    }

    #[test]
    #[ignore = "run by others as a child process"]
    fn child_with_maps() {
        settle().unwrap();
        let first = order::<ahash::RandomState>();
        assert_eq!(order::<ahash::RandomState>(), first, "every map has the same seed");
        println!("{first}\nstd's {}", simulated(order::<std::hash::RandomState>));
        assert_eq!(settle(), Err(Unsettled));
    }

    #[test]
    #[ignore = "run by others as a child process"]
    fn child_with_foldhash() {
        let (one, two) = (order::<foldhash_0_1::fast::RandomState>, order::<foldhash_0_2::fast::RandomState>);
        assert_eq!((one(), two()), (one(), two()), "every map has the same seed");
        println!("{}\n{}", one(), two());
        let (one, two) = (order::<foldhash_0_1::quality::RandomState>, order::<foldhash_0_2::quality::RandomState>);
        println!("{}\n{}", one(), two());
    }

    #[test]
    fn maps_have_the_same_order_in_every_process() {
        let first = child("child_with_maps", 0);
        for padding in [1, 100, 5000, 9999] {
            assert_eq!(child("child_with_maps", padding), first);
        }
    }

    #[test]
    fn maps_of_hashbrown_have_the_same_order_in_every_process() {
        let first = child("child_with_foldhash", 0);
        for padding in [1, 100, 5000, 9999] {
            assert_eq!(child("child_with_foldhash", padding), first);
        }
    }
}
