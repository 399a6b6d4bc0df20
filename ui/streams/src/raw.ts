import { headers as newHeaders, type Msg, type MsgHdrs, type NatsConnection } from "@nats-io/nats-core";
import { StreamError } from "./error.js";
import { unpack } from "./packed.js";

export type StreamKind = "log" | "kv";

/** A record, its data as bytes. Of a kv the sequence is the revision; the key of a log's record is empty. */
export interface StoredRecord {
  sequence: number;
  time: Date;
  key: string;
  deleted: boolean;
  headers: [string, string][];
  data: Uint8Array;
}

export interface Page {
  /** The stream's identity: another one after a deletion or a reset. */
  stream: string;
  first: number;
  last: number;
  /** Read on from here; beyond `last` at the end. */
  next: number;
  records: StoredRecord[];
}

export interface Written {
  stream: string;
  sequence: number;
  duplicate?: boolean;
}

export interface WriteOptions {
  /** Of a log the last sequence of all, of a key the revision; 0: none. */
  expected?: number;
  /** Lets a write be sent again without being written twice. */
  messageId?: string;
  /** Kept with the record. */
  headers?: [string, string][];
}

export interface ReadOptions {
  from?: number;
  last?: number;
  maxCount?: number;
  waitMillis?: number;
  latest?: boolean;
}

export interface Config {
  max_age_seconds?: number;
  max_records?: number;
  max_bytes?: number;
  history?: number;
}

export interface Info {
  stream: string;
  kind: StreamKind;
  name: string;
  created_at: string;
  first_sequence: number;
  last_sequence: number;
  records: number;
  bytes: number;
  keys?: number;
  file_bytes: number;
  config: Config;
}

/** Milliseconds that an answer may take: longer than a disk that has to be waited for. */
const ANSWER = 10_000;
const OWN = ["nats-sequence", "nats-time-stamp", "atoll-stream", "atoll-key", "kv-operation"];

/** One stream as bytes: what the typed ones stand on. */
export class RawStream {
  readonly base: string;

  /** `prefix` is that of the owner, such as `project.<id>`. */
  constructor(
    readonly connection: NatsConnection,
    prefix: string,
    readonly kind: StreamKind,
    name: string,
  ) {
    this.base = `${prefix}.${kind}.${name}`;
  }

  /** Where changes are published. */
  get changes(): string {
    return this.kind === "log" ? `${this.base}.changes` : `${this.base}.changes.>`;
  }

  /** A request; throws `StreamError` for an answer that is an error, and the client's own errors. */
  async call(verb: string, payload: Uint8Array | string = "", headers?: MsgHdrs): Promise<Msg> {
    const answer = await this.connection.request(`${this.base}.${verb}`, payload, { timeout: ANSWER, ...(headers && { headers }) });
    if ((answer.headers?.code ?? 0) >= 400) throw StreamError.read(answer.data);
    return answer;
  }

  /** Writes: `append`, or `put.<key>` or `delete.<key>`. When this resolves it is on disk. */
  async write(verb: string, data: Uint8Array | string, options: WriteOptions = {}): Promise<Written> {
    const headers = newHeaders();
    for (const [name, value] of options.headers ?? []) headers.append(name, value);
    if (options.expected !== undefined) {
      headers.set(this.kind === "log" ? "Nats-Expected-Last-Sequence" : "Nats-Expected-Last-Subject-Sequence", String(options.expected));
    }
    if (options.messageId !== undefined) headers.set("Nats-Msg-Id", options.messageId);
    // the client writes an empty block for headers without a field, which servers don't take
    return (await this.call(verb, data, headers.keys().length > 0 ? headers : undefined)).json<Written>();
  }

  /** A page of records; with `verb` `history.<key>` those of a key. */
  async page(options: ReadOptions = {}, verb = "read"): Promise<Page> {
    const { from, last, maxCount, waitMillis, latest } = options;
    const request = { from, last, max_count: maxCount ?? 10_000, wait_millis: waitMillis, latest, format: "packed" };
    const answer = await this.call(verb, JSON.stringify(request));
    const number = (name: string) => {
      const value = Number(answer.headers?.get(name) || NaN);
      if (!Number.isSafeInteger(value)) throw new StreamError("internal", `A page of ${this.base} comes without ${name}.`);
      return value;
    };
    return {
      stream: answer.headers?.get("Atoll-Stream") ?? "",
      first: number("Atoll-First-Sequence"),
      last: number("Nats-Last-Sequence"),
      next: number("Atoll-Next-Sequence"),
      records: unpack(answer.data),
    };
  }

  async info(): Promise<Info> {
    return (await this.call("info")).json<Info>();
  }

  /** Sets what is kept; makes the stream if it isn't there. */
  async configure(config: Config): Promise<Info> {
    return (await this.call("configure", JSON.stringify(config))).json<Info>();
  }

  /** Deletes the whole stream. */
  async delete(): Promise<void> {
    await this.call("delete");
  }

  /** Lets a stream that was damaged and put aside begin anew. */
  async reset(): Promise<void> {
    await this.call("reset");
  }
}

/** A record that came as a message of its own. */
export function recordOf(message: Msg): StoredRecord {
  const headers: [string, string][] = [];
  for (const name of message.headers?.keys() ?? []) {
    if (!OWN.includes(name.toLowerCase())) for (const value of message.headers!.values(name)) headers.push([name, value]);
  }
  return {
    sequence: Number(message.headers?.get("Nats-Sequence")),
    time: new Date(message.headers?.get("Nats-Time-Stamp") ?? NaN),
    key: message.headers?.get("Atoll-Key") ?? "",
    deleted: message.headers?.get("KV-Operation") === "DEL",
    headers,
    data: message.data,
  };
}
