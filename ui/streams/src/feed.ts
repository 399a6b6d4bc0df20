import type { Msg, Subscription } from "@nats-io/nats-core";
import { StreamError } from "./error.js";
import { recordOf, type RawStream, type StoredRecord } from "./raw.js";

/** `reset`: what was told before holds no more (the stream was deleted or began anew); what it has now comes from the beginning. */
export type Change<R> = { type: "record"; record: R } | { type: "reset" };

/** Milliseconds of silence after which a feed looks by itself: a connection that came back may have missed the last change. */
const LOOK = 5_000;
const FIRST_DELAY = 50;
const LAST_DELAY = 5_000;
/** Changes that may wait while a page is read or the program is busy; beyond it they are dropped, and read later. */
const WAITING = 1_000;
const BEHIND = 100;
const REMOVED = 410;

/**
 * What a stream has, then what is written to it, each record once and in order: subscribes, reads up to the end, goes on with the changes, and reads
 * again where there is a hole. Ends by `stop()`, by `break` out of its loop, or by an error that doesn't pass by itself.
 */
export class Feed implements AsyncIterable<Change<StoredRecord>> {
  #next: number;
  #identity: string | undefined;
  #changes: Msg[] = [];
  #dropped = false;
  #subscription: Subscription | undefined;
  #wake: (() => void) | undefined;
  #stopped = false;

  constructor(
    readonly stream: RawStream,
    from = 1,
  ) {
    this.#next = from;
  }

  stop(): void {
    this.#stopped = true;
    this.#subscription?.unsubscribe();
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Change<StoredRecord>> {
    let delay = FIRST_DELAY;
    let gap = true;
    try {
      while (!this.#stopped) {
        try {
          if (!this.#subscription || this.#subscription.isClosed()) {
            await this.#subscribe();
            gap = true;
          }
          if (gap || this.#dropped) {
            this.#dropped = false;
            for await (const change of this.#read()) yield change;
            gap = false;
            delay = FIRST_DELAY;
          } else if (this.#changes.length === 0) {
            gap = !(await this.#wait(LOOK));
          } else {
            const taken = this.#take(this.#changes.shift()!);
            if (taken === "gap") gap = true;
            else if (taken) {
              yield taken;
              gap = taken.type === "reset";
            }
          }
        } catch (error) {
          if (this.stream.connection.isClosed() || !passes(error)) throw error;
          await this.#wait(delay);
          delay = Math.min(delay * 2, LAST_DELAY);
          gap = true;
        }
      }
    } finally {
      this.stop();
    }
  }

  async #subscribe(): Promise<void> {
    this.#changes = [];
    this.#subscription = this.stream.connection.subscribe(this.stream.changes, {
      callback: (error, message) => {
        if (error || this.#changes.length >= WAITING) this.#dropped = true;
        else this.#changes.push(message);
        this.#wake?.();
      },
    });
    await this.stream.connection.flush();
  }

  /** Reads to the end, page by page. */
  async *#read(): AsyncGenerator<Change<StoredRecord>> {
    for (;;) {
      let page;
      try {
        page = await this.stream.page({ from: this.#next, latest: this.stream.kind === "kv" });
      } catch (error) {
        const code = error instanceof StreamError ? error.code : "";
        if (code === "not_found") {
          if (this.#identity !== undefined) yield this.#reset();
          return;
        }
        if (code !== "conflict") throw error;
        yield this.#reset();
        continue;
      }
      const other = this.#identity !== undefined && this.#identity !== page.stream;
      if (other || this.#next > page.last + 1) {
        yield this.#reset();
        continue;
      }
      this.#identity = page.stream;
      for (const record of page.records) {
        this.#next = record.sequence + 1;
        yield { type: "record", record };
      }
      this.#next = page.next;
      if (page.next > page.last || this.#stopped) return;
    }
  }

  #reset(): Change<StoredRecord> {
    this.#identity = undefined;
    this.#next = 1;
    return { type: "reset" };
  }

  #take(message: Msg): Change<StoredRecord> | "gap" | undefined {
    const ours = this.#identity !== undefined && message.headers?.get("Atoll-Stream") === this.#identity;
    const number = (name: string) => Number(message.headers?.get(name) || Infinity);
    switch (message.headers?.code) {
      case REMOVED:
        return ours ? this.#reset() : undefined;
      case BEHIND:
        return !ours || number("Nats-Last-Sequence") >= this.#next ? "gap" : undefined;
    }
    const sequence = number("Nats-Sequence");
    if (!ours || sequence > this.#next) return "gap";
    if (sequence < this.#next) return undefined; // it was read already
    this.#next = sequence + 1;
    return { type: "record", record: recordOf(message) };
  }

  /** Until something comes, at most so many milliseconds. Whether something came. */
  #wait(millis: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => end(false), millis);
      const end = (came: boolean) => {
        clearTimeout(timer);
        this.#wake = undefined;
        resolve(came);
      };
      this.#wake = () => end(true);
      if (this.#stopped) end(true);
    });
  }
}

/** Whether an error is one of the way to the service, or one that the service says passes. */
function passes(error: unknown): boolean {
  if (error instanceof StreamError) return error.retry;
  const name = error instanceof Error ? error.name : "";
  return ["TimeoutError", "NoRespondersError", "RequestError", "ConnectionError", "DrainingConnectionError"].includes(name);
}
