//! What makes two processes equal that run the same seed.
//!
//! Three sources of difference are left when time, network, disk and randomness are simulated: hashers whose seeds come
//! from addresses or the system, addresses themselves, and the environment. Hence a worker
//! 1. starts itself anew, once, with fixed addresses and no environment, where the system allows it ([`fix_addresses`]);
//! 2. limits itself ([`limit`]);
//! 3. gives ahash fixed seeds ([`settle`]) before anything has made a map.
//!
//! Of the hashers in the tree: ahash is settled here. foldhash (hashbrown's default) is replaced by the copies in
//! `sim/vendor`. `std`'s is seeded by madsim, from the seed, on the thread of the simulation; it counts the maps
//! made on a thread, so their order may change with the number of maps made before.

use std::fmt;
use std::io;
use std::thread;

/// Set in the process that [`fix_addresses`] starts, so that it does not start another one.
const STARTED_ANEW: &str = "SIM_STARTED_ANEW";

/// The seed of the small simulation in which ahash takes its keys. Any will do.
const KEYS: u64 = 0x5eed_bed0;

/// Whether every process has its memory at the same addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// They are the same in every process.
    Fixed,
    /// The system places memory at random and does not let itself be told otherwise. Runs are equal all the same.
    Random,
}

/// Starts this program anew with the same arguments, fixed addresses and an empty environment, and does not return from
/// the old one. In the new one, or where the system refuses, it returns. To be called first of all in a worker's
/// `main`, while there is one thread.
pub fn fix_addresses() -> Addresses {
    if addresses_are_fixed() {
        return Addresses::Fixed;
    }
    if std::env::var_os(STARTED_ANEW).is_some() || !ask_for_fixed_addresses() {
        return Addresses::Random;
    }
    // Returns only if it failed; then everything is as it was but for the flag, which matters to children only.
    let _ = start_anew();
    Addresses::Random
}

#[cfg(target_os = "linux")]
fn start_anew() -> io::Error {
    use std::os::unix::process::CommandExt;
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear().env(STARTED_ANEW, "1").exec()
}

#[cfg(not(target_os = "linux"))]
fn start_anew() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

#[cfg(target_os = "linux")]
fn personality(persona: libc::c_ulong) -> libc::c_int {
    #[expect(unsafe_code, reason = "a system call without pointers")]
    unsafe {
        libc::personality(persona)
    }
}

/// Asks for the persona, changing nothing.
#[cfg(target_os = "linux")]
const ASK: libc::c_ulong = 0xffff_ffff;

#[cfg(target_os = "linux")]
fn addresses_are_fixed() -> bool {
    let persona = personality(ASK);
    persona >= 0 && persona & libc::ADDR_NO_RANDOMIZE != 0
}

#[cfg(target_os = "linux")]
fn ask_for_fixed_addresses() -> bool {
    let persona = personality(ASK);
    persona >= 0
        && personality((persona | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) >= 0
        // Some sandboxes take the call and do nothing.
        && addresses_are_fixed()
}

#[cfg(not(target_os = "linux"))]
fn addresses_are_fixed() -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn ask_for_fixed_addresses() -> bool {
    false
}

/// What a worker may use at most; no limit where none is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Address space in bytes; what exceeds it fails to allocate, which aborts.
    pub memory: Option<u64>,
    /// Time of the processor in seconds; then the process is killed.
    pub cpu_seconds: Option<u64>,
    /// Stack of the first thread in bytes.
    pub stack: Option<u64>,
}

/// Limits this process, and forbids core files: a worker that dies is an outcome, not an accident.
#[cfg(unix)]
pub fn limit(limits: Limits) -> io::Result<()> {
    set_limit(libc::RLIMIT_CORE, Some(0))?;
    set_limit(libc::RLIMIT_AS, limits.memory)?;
    set_limit(libc::RLIMIT_CPU, limits.cpu_seconds)?;
    set_limit(libc::RLIMIT_STACK, limits.stack)
}

#[cfg(unix)]
fn set_limit(resource: libc::__rlimit_resource_t, most: Option<u64>) -> io::Result<()> {
    let Some(most) = most else { return Ok(()) };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    #[expect(unsafe_code, reason = "the system fills a struct of ours")]
    let asked = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // The hard limit stays: lowering it could not be taken back, raising it is not allowed.
    limit.rlim_cur = most.min(limit.rlim_max);
    #[expect(unsafe_code, reason = "the system reads a struct of ours")]
    let set = unsafe { libc::setrlimit(resource, &raw const limit) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

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
    fn child_with_fixed_addresses() {
        let addresses = fix_addresses();
        settle().unwrap();
        limit(Limits { memory: Some(8 << 30), cpu_seconds: Some(60), stack: Some(8 << 20) }).unwrap();
        let address = &raw const addresses as usize;
        println!("{}\naddress, in order: {addresses:?} {address:x}", order::<ahash::RandomState>());
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

    #[test]
    fn a_process_that_is_started_anew_has_fixed_addresses_where_the_system_allows_it() {
        let first = child("child_with_fixed_addresses", 0);
        for padding in [1, 5000] {
            let other = child("child_with_fixed_addresses", padding);
            if first.contains("Fixed") {
                assert_eq!(other, first, "addresses and all");
            } else {
                assert_eq!(other.lines().next(), first.lines().next());
            }
        }
    }
}
