//! What the seams promise, as one script per seam, run on the operating system's. The harness runs the same scripts on its
//! own implementations: what it simulates must behave as what it stands for.
//!
//! The operating system's files need its threads, which the simulation does not have: built for it, this is compiled and
//! not run. (What is not about the operating system runs in both builds: that modules keep to their directions.)
#![cfg_attr(madsim, allow(dead_code, reason = "compiled, not run"))]

mod directions;
mod disk;
mod net;
mod rpc;
#[cfg(not(madsim))]
mod smoke;

use std::sync::Arc;

use engine::disk::{Disk, Open, OsDisk};
use engine::net::OsNet;

#[cfg_attr(not(madsim), tokio::test)]
async fn the_disk_of_the_operating_system_conforms() {
    let folder = tempfile::tempdir().unwrap();
    disk::suite(Arc::new(OsDisk::new(folder.path()))).await;
}

#[cfg(target_os = "linux")]
#[cfg_attr(not(madsim), tokio::test)]
async fn a_full_disk_of_the_operating_system_conforms() {
    disk::full(&*OsDisk::new("/dev").open("full", Open::Write).await.unwrap()).await;
}

fn os_net() -> net::World {
    net::World { server: Arc::new(OsNet), client: Arc::new(OsNet), listen: "127.0.0.1:0".into() }
}

macro_rules! on_os_net {
    ($($script:ident :: $case:ident)*) => {$(
        #[tokio::test]
        #[cfg_attr(madsim, ignore = "is about the operating system's network: runs in the real build")]
        async fn $case() {
            $script::$case(os_net()).await;
        }
    )*};
}

on_os_net! {
    net::bytes_arrive_once_and_in_order
    net::a_direction_can_end_before_the_other
    net::what_was_written_before_closing_arrives
    net::the_peer_of_a_dropped_stream_notices
    net::unread_bytes_do_not_hide_the_end
    net::nobody_listens
    net::an_address_is_taken_once
    net::a_writer_waits_for_its_reader
    net::both_directions_at_once
    net::many_connections_at_once
    rpc::answers_find_their_calls
    rpc::errors_travel
    rpc::large_messages_pass_and_too_large_ones_are_refused
    rpc::what_nobody_listens_for_was_not_sent
    rpc::a_late_answer_is_unknown_and_disturbs_nobody
    rpc::a_server_that_stops_leaves_unknown_and_can_come_back
    rpc::strangers_are_shown_the_door
    rpc::a_stranger_that_answers_is_not_believed
    rpc::an_answer_to_something_else_is_not_believed
}
