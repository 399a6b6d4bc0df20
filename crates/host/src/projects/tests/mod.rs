mod adoption;
mod reconciliation;
mod sockets;
mod starts;
mod verbs;
