//! The scripts that say what the engine's seams promise, run on the simulated ones.

#[path = "../../engine/tests/conformance/disk.rs"]
mod disk;

#[path = "../../engine/tests/conformance/net.rs"]
mod net;
#[path = "../../engine/tests/conformance/rpc.rs"]
mod rpc;

use engine::disk::Open;
use engine::types::NodeId;
use madsim::runtime::Runtime;
use sim::disk::{DiskOptions, SimDisk};
use sim::draw::Draws;
use sim::net::{NetConfig, SimNet};

#[tokio::test]
async fn the_simulated_disk_conforms() {
    for options in [DiskOptions::default(), DiskOptions::instant()] {
        disk::suite(SimDisk::new(1, Draws::new(1), None, options).mount()).await;
    }
}

#[tokio::test]
async fn a_full_simulated_disk_conforms() {
    let simulated = SimDisk::new(1, Draws::new(1), None, DiskOptions::default());
    let file = simulated.mount().open("full", Open::Create).await.unwrap();
    simulated.set_capacity(0);
    disk::full(&*file).await;
}

/// Runs `case` on a fresh network.
fn on_sim_net(seed: u64, case: impl AsyncFnOnce(net::World)) {
    let runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
    runtime.block_on(async {
        let hosts = SimNet::new(Draws::new(seed), NetConfig::default());
        let (server, client) = (hosts.boot(NodeId(1)), hosts.boot(NodeId(2)));
        case(net::World { server, client, listen: "n1:0".into() }).await;
    });
}

macro_rules! on_sim_net {
    ($($script:ident :: $case:ident)*) => {$(
        #[test]
        fn $case() {
            (0..5).for_each(|seed| on_sim_net(seed, $script::$case));
        }
    )*};
}

on_sim_net! {
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
