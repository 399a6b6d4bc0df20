//! What the targets in `fuzz/` drive: whole connections, not the parsers alone. The corpus in `fuzz/seeds` goes through the same functions in
//! an ordinary test. See docs/runbooks/fuzzing.md.
//!
//! Each function takes any bytes, and panics where the bus breaks one of its promises.

mod client;
mod heard;
mod script;
mod websocket;
mod world;

use world::{Road, World};

/// Clients of the bus over a stream of bytes, as [`script`] describes them.
pub fn tcp(data: &[u8]) {
    drive(data, Road::Pipe);
}

/// The same over WebSocket, with the frames as the input wants them.
pub fn websocket(data: &[u8]) {
    drive(data, Road::WebSocket);
}

/// What a server may send to our own client; the parser alone, then a whole client.
pub fn server_ops(data: &[u8]) {
    client::parser(data);
    paused(client::connection(data));
}

/// Header blocks: what is well-formed is read and written again without loss, and nothing else panics.
pub fn headers(data: &[u8]) {
    use super::wire::{check_headers, decode_headers, encode_headers, well_formed};
    let decoded = decode_headers(data);
    if well_formed(data) {
        let fields = data.windows(2).filter(|pair| pair == b"\r\n").count() - 2;
        assert_eq!(decoded.fields.len(), fields, "each line of a well-formed block is a field");
        assert!(check_headers(&decoded).is_ok(), "what may come in may go out: {decoded:?}");
        let encoded = encode_headers(&decoded);
        assert!(encoded.is_empty() || well_formed(&encoded), "{encoded:?}");
        assert_eq!(decode_headers(&encoded), decoded);
    }
}

fn drive(data: &[u8], road: Road) {
    let Some((options, script)) = data.split_first() else { return };
    paused(async move {
        let mut world = World::new(road, options & 1 == 1);
        for act in script::acts(script) {
            world.act(act).await;
        }
        world.end().await;
    });
}

/// Runs in paused time: a wait costs nothing, and what never becomes idle is seen.
fn paused(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime can be made").block_on(future);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every seed of a target, so that the corpus can't rot.
    fn replay(target: &str, run: impl Fn(&[u8])) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display()); // shown if it fails
            run(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{target} has seeds");
    }

    #[test]
    fn the_seeds_of_bus_tcp_pass() {
        replay("bus_tcp", tcp);
    }

    #[test]
    fn the_seeds_of_bus_websocket_pass() {
        replay("bus_websocket", websocket);
    }

    #[test]
    fn the_seeds_of_bus_server_ops_pass() {
        replay("bus_server_ops", server_ops);
    }

    #[test]
    fn the_seeds_of_bus_headers_pass() {
        replay("bus_headers", headers);
    }
}
