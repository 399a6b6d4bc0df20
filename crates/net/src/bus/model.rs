//! Models of the concurrent parts: loom runs each with every order in which its threads may meet (up to a bound of preemptions), and with every value
//! that the memory model lets them read. `cargo test -p atoll-net --features model --lib bus::model`.
//!
//! They drive the parts themselves, and connections as the server has them; only the locks, the atomics and `Notify` are loom's.

mod connections;
mod queues;

/// Every order with so many preemptions; nearly all known faults need two at most (Musuvathi and Qadeer, CHESS, 2007).
const PREEMPTIONS: usize = 3;

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 20_000;
    builder.check(model);
}
