//! Who may put how much into memory: decided from sizes alone. It is told what memtables hold and which writes come and go,
//! and says who waits, who goes on, who is refused, and which memtables are to be flushed.
//!
//! * What counts against a limit is what memtables hold and what was let in and is not answered yet: of writes that come at
//!   the same time each counts for the next.
//! * A write waits behind the writes of its region that wait, and behind nobody else's: a region at its own limit holds up no
//!   other one. (At the node's limit all wait; that is what the limit is for.)
//! * Whenever something changes *all* who wait are looked at again, in the order in which they came.
//! * Only writes of clients ask. What is committed is applied whatever it takes: a replica that got that as a follower may hold
//!   more than any limit, and then writes wait, or are refused, when it leads.
//! * A write of any size gets in once nothing else is there: it counts as half of a limit at most.
//!
//! Not here: waiting, waking, flushing (`buffer`), and what a region flushes by itself (`flush`: its memtable is full).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::options::Options;

/// Bounds in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Above it the biggest memtables of the node are flushed.
    pub flush: u64,
    /// Above it writes wait: of a region, and of all of the node.
    pub stall: Each,
    /// With those that wait: above it writes are refused at once.
    pub reject: Each,
}

/// The two bounds that a write has to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Each {
    pub region: u64,
    pub node: u64,
}

/// Whose bound it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Region,
    Node,
}

/// A region's replica on the node, for as long as it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u64);

/// A write that was not refused, until it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What is to become of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted(Ticket),
    /// Until [`Pressure::resume`] names it. Its region's limit, or who waits there, keeps it, or the node's limit.
    Stalled(Ticket, Scope),
    Rejected(Full),
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    pub scope: Scope,
    /// What is held and let in.
    pub used: u64,
    /// What waits.
    pub waiting: u64,
    pub limit: u64,
}

/// A memtable that is to be flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub share: Share,
    pub bytes: u64,
    /// Whose writes wait, or who holds too much.
    pub why: Scope,
}

/// See the module.
#[derive(Debug)]
pub struct Pressure {
    limits: Limits,
    shares: BTreeMap<Share, Sizes>,
    /// Of all shares.
    node: Sums,
    writes: BTreeMap<Ticket, Write>,
    /// Those of the writes that wait.
    queue: BTreeSet<Ticket>,
    next_share: u64,
    next_ticket: u64,
}

/// What a replica has.
#[derive(Debug, Default)]
struct Sizes {
    /// Of `sums.held`, what the memtable has that takes the writes.
    mutable: u64,
    sums: Sums,
    /// Writes that wait.
    queued: u64,
    /// A flush of it is under way, or was asked for.
    is_flushing: bool,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// In memtables.
    held: u64,
    /// Of writes that were let in.
    let_in: u64,
    /// Of writes that wait.
    waiting: u64,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    share: Share,
    /// What it counts as.
    bytes: u64,
}

impl Limits {
    /// What the options say.
    pub fn of(options: &Options) -> Limits {
        Limits {
            flush: options.write_buffer_bytes,
            stall: Each { region: options.region_buffer_stall_bytes, node: options.write_buffer_stall_bytes },
            reject: Each { region: options.region_buffer_reject_bytes, node: options.write_buffer_reject_bytes },
        }
    }
}

impl Each {
    fn of(&self, scope: Scope) -> u64 {
        match scope {
            Scope::Region => self.region,
            Scope::Node => self.node,
        }
    }
}

impl Pressure {
    pub fn new(limits: Limits) -> Pressure {
        Pressure {
            limits,
            shares: BTreeMap::new(),
            node: Sums::default(),
            writes: BTreeMap::new(),
            queue: BTreeSet::new(),
            next_share: 1,
            next_ticket: 1,
        }
    }

    /// A replica is opened.
    pub fn open(&mut self) -> Share {
        let share = Share(self.next_share);
        self.next_share += 1;
        self.shares.insert(share, Sizes::default());
        share
    }

    /// A replica is closed: what it holds counts no longer, and what waits for it is over.
    pub fn close(&mut self, share: Share) {
        let writes: Vec<Ticket> =
            self.writes.iter().filter(|(_, write)| write.share == share).map(|(ticket, _)| *ticket).collect();
        writes.into_iter().for_each(|ticket| self.over(ticket));
        if let Some(sizes) = self.shares.remove(&share) {
            self.node.held -= sizes.sums.held;
        }
    }

    /// The replica's memtables hold so much now: the one that takes the writes, and those that a flush is writing or is to.
    pub fn holds(&mut self, share: Share, mutable: u64, frozen: u64) {
        if let Some(sizes) = self.shares.get_mut(&share) {
            self.node.held = self.node.held - sizes.sums.held + mutable + frozen;
            sizes.sums.held = mutable + frozen;
            sizes.mutable = mutable;
        }
    }

    /// A flush of the replica begins, or is over, whatever came of it.
    pub fn flushing(&mut self, share: Share, is_flushing: bool) {
        if let Some(sizes) = self.shares.get_mut(&share) {
            sizes.is_flushing = is_flushing;
        }
    }

    /// A write of `bytes` comes. None: the replica is closed.
    pub fn write(&mut self, share: Share, bytes: u64) -> Option<Verdict> {
        let bytes = bytes.min(self.limits.stall.region / 2).min(self.limits.stall.node / 2);
        let sizes = self.shares.get(&share)?;
        for (scope, sums) in [(Scope::Region, sizes.sums), (Scope::Node, self.node)] {
            let (used, limit) = (sums.held + sums.let_in, self.limits.reject.of(scope));
            if used + sums.waiting > 0 && used + sums.waiting + bytes > limit {
                return Some(Verdict::Rejected(Full { scope, used, waiting: sums.waiting, limit }));
            }
        }
        let write = Write { share, bytes };
        let blocked = self.blocked(write).or((sizes.queued > 0).then_some(Scope::Region));
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.writes.insert(ticket, write);
        let sizes = self.shares.get_mut(&share)?;
        let Some(scope) = blocked else {
            sizes.sums.let_in += bytes;
            self.node.let_in += bytes;
            return Some(Verdict::Admitted(ticket));
        };
        self.queue.insert(ticket);
        sizes.queued += 1;
        sizes.sums.waiting += bytes;
        self.node.waiting += bytes;
        Some(Verdict::Stalled(ticket, scope))
    }

    /// The write is over, whatever came of it: applied, failed, or given up while it waited.
    pub fn over(&mut self, ticket: Ticket) {
        let Some(Write { share, bytes }) = self.writes.remove(&ticket) else { return };
        if self.queue.contains(&ticket) {
            self.let_in(ticket, share, bytes);
        }
        self.node.let_in -= bytes;
        if let Some(sizes) = self.shares.get_mut(&share) {
            sizes.sums.let_in -= bytes;
        }
    }

    /// Whether the write waits.
    pub fn is_waiting(&self, ticket: Ticket) -> bool {
        self.queue.contains(&ticket)
    }

    /// Those that need not wait any longer.
    pub fn resume(&mut self) -> Vec<Ticket> {
        let mut resumed = Vec::new();
        let mut behind = BTreeSet::new();
        for ticket in self.queue.clone() {
            let write = self.writes[&ticket];
            if behind.contains(&write.share) {
                continue;
            }
            if self.blocked(write).is_some() {
                behind.insert(write.share);
                continue;
            }
            self.let_in(ticket, write.share, write.bytes);
            resumed.push(ticket);
        }
        resumed
    }

    /// The memtables that are to be flushed and are not.
    pub fn due(&mut self) -> Vec<Due> {
        let mut due = BTreeMap::new();
        let mut node_waits = false;
        for ticket in &self.queue {
            let write = self.writes[ticket];
            match self.blocked(write) {
                Some(Scope::Region) => drop(due.insert(write.share, Scope::Region)),
                Some(Scope::Node) => node_waits = true,
                None => {}
            }
        }
        if node_waits || self.node.held > self.limits.flush {
            let mut biggest: Vec<(Share, u64)> =
                self.shares.iter().map(|(share, sizes)| (*share, sizes.mutable)).collect();
            // Of equals the one that was opened first.
            biggest.sort_by_key(|(share, bytes)| (Reverse(*bytes), *share));
            // What is frozen is on its way already.
            let mut stays: u64 = biggest.iter().map(|(_, bytes)| bytes).sum();
            for (share, bytes) in biggest {
                if stays <= self.limits.flush / 2 {
                    break;
                }
                stays -= bytes;
                due.entry(share).or_insert(Scope::Node);
            }
        }
        let mut asked = Vec::new();
        for (share, why) in due {
            let sizes = self.shares.get_mut(&share).expect("only what is open waits");
            if !sizes.is_flushing && sizes.sums.held > 0 {
                sizes.is_flushing = true;
                asked.push(Due { share, bytes: sizes.sums.held, why });
            }
        }
        asked
    }

    /// What keeps a write from being let in, if anything does.
    fn blocked(&self, write: Write) -> Option<Scope> {
        let sums = [(Scope::Region, self.shares.get(&write.share)?.sums), (Scope::Node, self.node)];
        let is_full = |(scope, sums): &(Scope, Sums)| {
            let used = sums.held + sums.let_in;
            used > 0 && used + write.bytes > self.limits.stall.of(*scope)
        };
        sums.into_iter().find(is_full).map(|(scope, _)| scope)
    }

    fn let_in(&mut self, ticket: Ticket, share: Share, bytes: u64) {
        self.queue.remove(&ticket);
        let sizes = self.shares.get_mut(&share).expect("only what is open waits");
        sizes.queued -= 1;
        for sums in [&mut sizes.sums, &mut self.node] {
            sums.waiting -= bytes;
            sums.let_in += bytes;
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Region => "region",
            Scope::Node => "node",
        })
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Full { scope, used, waiting, limit } = self;
        write!(
            f,
            "the write buffer of the {scope} is full: {used} bytes are in memory, writes of {waiting} bytes wait, "
        )?;
        write!(f, "and it refuses above {limit}")
    }
}

#[cfg(test)]
mod tests {
    //! Golden scripts: `testscripts/pressure/*`. After each command: who goes on, and what is to be flushed.
    //!
    //! - `limits flush=N region_stall=N region_reject=N stall=N reject=N`
    //! - `open`, `close SHARE`
    //! - `holds SHARE MUTABLE [frozen=N]`: what its memtables hold
    //! - `flush SHARE`, `flushed SHARE`: a flush begins and is over
    //! - `write SHARE BYTES`, `over TICKET`

    use std::error::Error as StdError;

    use goldenscript::{ArgumentConsumer, Context};

    use super::*;

    #[test]
    fn scripts() {
        crate::testscripts::run_all::<Script>("pressure");
    }

    fn number(args: &mut ArgumentConsumer<'_>) -> Result<u64, Box<dyn StdError>> {
        Ok(args.next_pos().ok_or("a number?")?.parse()?)
    }

    #[derive(Default)]
    struct Script(Option<Pressure>);

    impl goldenscript::Runner for Script {
        type Command = goldenscript::Command;

        fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Result<String, Box<dyn StdError>> {
            let mut args = command.consume_args();
            if command.name == "limits" {
                let mut limit = |name: &'static str| -> Result<u64, Box<dyn StdError>> {
                    Ok(args.take_key(name).ok_or(name)?.parse()?)
                };
                let limits = Limits {
                    flush: limit("flush")?,
                    stall: Each { region: limit("region_stall")?, node: limit("stall")? },
                    reject: Each { region: limit("region_reject")?, node: limit("reject")? },
                };
                self.0 = Some(Pressure::new(limits));
                args.reject_next()?;
                return Ok(String::new());
            }
            let pressure = self.0.as_mut().ok_or("no limits")?;
            let mut said = match command.name.as_str() {
                "open" => format!("share {}\n", pressure.open().0),
                "close" => {
                    pressure.close(Share(number(&mut args)?));
                    String::new()
                }
                "holds" => {
                    let (share, mutable) = (Share(number(&mut args)?), number(&mut args)?);
                    pressure.holds(share, mutable, args.take_key("frozen").map_or(Ok(0), str::parse)?);
                    String::new()
                }
                "write" => match pressure.write(Share(number(&mut args)?), number(&mut args)?) {
                    None => "closed\n".into(),
                    Some(Verdict::Admitted(ticket)) => format!("{} goes on\n", ticket.0),
                    Some(Verdict::Stalled(ticket, scope)) => format!("{} waits: {scope}\n", ticket.0),
                    Some(Verdict::Rejected(full)) => format!("refused: {full}\n"),
                },
                "flush" | "flushed" => {
                    pressure.flushing(Share(number(&mut args)?), command.name == "flush");
                    String::new()
                }
                "over" => {
                    pressure.over(Ticket(number(&mut args)?));
                    String::new()
                }
                name => return Err(format!("unknown command {name}").into()),
            };
            args.reject_next()?;
            for ticket in pressure.resume() {
                said += &format!("{} goes on\n", ticket.0);
            }
            for due in pressure.due() {
                said += &format!("flush share {}: {} bytes, {}\n", due.share.0, due.bytes, due.why);
            }
            Ok(said)
        }
    }
}
