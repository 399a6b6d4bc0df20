/**
 * Logs and key-value stores of Atoll over a connection of the published NATS client, in Node and in browsers.
 * What goes over the wire is described in docs/reference/streams.md.
 */
export { StreamError } from "./error.js";
export { Feed, type Change } from "./feed.js";
export { Log, Kv, type Entry } from "./typed.js";
export { RawStream, type Config, type Info, type Page, type ReadOptions, type StoredRecord, type StreamKind, type WriteOptions, type Written } from "./raw.js";
