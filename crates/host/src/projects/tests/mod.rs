mod adoption;
mod reconciliation;
mod sockets;
mod starts;
mod streams;
mod verbs;
