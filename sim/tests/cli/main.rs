//! The harness tried from outside: what it says of wrong scenarios, what becomes of workers that misbehave, what the
//! command line prints and how it exits.

mod command;
mod language;
mod workers;
