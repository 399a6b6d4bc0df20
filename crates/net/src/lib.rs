//! The roads between the parts: the bus (a subject router that speaks the NATS client protocol), byte streams over it, connections of HTTP, TLS, and the clock.

pub mod bus;
pub mod byte_stream;
pub mod clock;
pub mod http;
pub mod remote;
pub mod streams;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
