//! Byte streams over the bus, with a window so that a slow reader neither loses bytes nor makes the sender grow.
