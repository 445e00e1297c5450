//! The `sim` binary: the command line, and the workers that it starts from itself.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == sim::worker::ARGUMENT) && arguments.next().is_none() {
        return sim::worker::main();
    }
    sim::cli::main()
}
