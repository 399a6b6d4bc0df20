import type { NatsConnection } from "@nats-io/nats-core";
import { StreamError } from "./error.js";
import { Feed, type Change } from "./feed.js";
import { RawStream, recordOf, type ReadOptions, type StoredRecord, type WriteOptions, type Written } from "./raw.js";

/** A value with what the stream knows of it. `undefined`: the key was deleted. */
export interface Entry<T> extends Omit<StoredRecord, "data"> {
  value: T | undefined;
}

function entry<T>({ data, ...rest }: StoredRecord): Entry<T> {
  return { ...rest, value: rest.deleted ? undefined : (JSON.parse(new TextDecoder().decode(data)) as T) };
}

async function* entries<T>(feed: Feed): AsyncGenerator<Change<Entry<T>>> {
  for await (const change of feed) {
    yield change.type === "record" ? { type: "record", record: entry<T>(change.record) } : change;
  }
}

/** A log of values that are JSON on the wire. */
export class Log<T> {
  readonly stream: RawStream;

  /** `prefix` is that of the owner, such as `project.<id>`. */
  constructor(connection: NatsConnection, prefix: string, name: string) {
    this.stream = new RawStream(connection, prefix, "log", name);
  }

  append(value: T, options?: WriteOptions): Promise<Written> {
    return this.stream.write("append", JSON.stringify(value), options);
  }

  /** A page of values, and where to read on. */
  async read(options?: ReadOptions): Promise<{ entries: Entry<T>[]; next: number; last: number }> {
    const { records, next, last } = await this.stream.page(options);
    return { entries: records.map((record) => entry<T>(record)), next, last };
  }

  /** All values from a sequence on, and then what is appended, without a gap. Ends when the loop over it is left. */
  follow(from = 1): AsyncGenerator<Change<Entry<T>>> {
    return entries<T>(new Feed(this.stream, from));
  }
}

/** A key-value store of values that are JSON on the wire. */
export class Kv<T> {
  readonly stream: RawStream;

  /** `prefix` is that of the owner, such as `project.<id>`. */
  constructor(connection: NatsConnection, prefix: string, name: string) {
    this.stream = new RawStream(connection, prefix, "kv", name);
  }

  /** The newest value of a key, or that of a revision; `undefined` if there is none. */
  async get(key: string, revision?: number): Promise<Entry<T> | undefined> {
    try {
      return entry<T>(recordOf(await this.stream.call(`get.${key}`, JSON.stringify({ revision }))));
    } catch (error) {
      if (error instanceof StreamError && error.code === "not_found") return undefined;
      throw error;
    }
  }

  put(key: string, value: T, options?: WriteOptions): Promise<Written> {
    return this.stream.write(`put.${key}`, JSON.stringify(value), options);
  }

  delete(key: string, options?: WriteOptions): Promise<Written> {
    return this.stream.write(`delete.${key}`, "", options);
  }

  /** The revisions of a key that are kept, oldest first, at most one page. */
  async history(key: string): Promise<Entry<T>[]> {
    return (await this.stream.page({}, `history.${key}`)).records.map((record) => entry<T>(record));
  }

  /** The keys with a value, in order; `pattern` is as in subjects. */
  async *keys(pattern?: string): AsyncGenerator<{ key: string; revision: number; time: string }> {
    let after: string | undefined;
    do {
      const answer = await this.stream.call("keys", JSON.stringify({ pattern, after }));
      const { keys, next } = answer.json<{ keys: { key: string; revision: number; time: string }[]; next?: string }>();
      yield* keys;
      after = next;
    } while (after !== undefined);
  }

  /** The newest value of every key, and then every change, without a gap. Ends when the loop over it is left. */
  watch(): AsyncGenerator<Change<Entry<T>>> {
    return entries<T>(new Feed(this.stream));
  }
}
