// Against `atoll dev bus`, which the environment variable ATOLL_BINARY names. `cargo test -p atoll --test streams_typescript` runs it.
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { wsconnect, type NatsConnection } from "@nats-io/nats-core";
import { Feed, Kv, Log, RawStream, StreamError } from "../src/index.js";

const binary = process.env["ATOLL_BINARY"] ?? "atoll";
const dir = mkdtempSync(join(tmpdir(), "atoll-streams-"));
let bus: ChildProcess;
let url: string;

async function start(port = "0"): Promise<void> {
  const args = ["--json", "dev", "bus", "--listen", "127.0.0.1:0", "--websocket", `127.0.0.1:${port}`, "--data-dir", dir];
  bus = spawn(binary, args, { stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface(bus.stdout!)) {
    url = `ws://${JSON.parse(line).websocket}`;
    return;
  }
  throw new Error("the bus doesn't start");
}

async function stop(): Promise<void> {
  const gone = new Promise((resolve) => bus.once("exit", resolve));
  bus.kill("SIGKILL");
  await gone;
}

let connection: NatsConnection;

before(async () => {
  await start();
  connection = await wsconnect({ servers: url, reconnectTimeWait: 50, maxReconnectAttempts: -1 });
});

after(async () => {
  await connection.close();
  await stop();
  rmSync(dir, { recursive: true });
});

async function code(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(() => assert.fail("it succeeded"), (error: unknown) => error);
  assert(error instanceof StreamError, String(error));
  return error.code;
}

test("a log of typed values", async () => {
  const log = new Log<{ n: number }>(connection, "dev", "typed");
  assert.equal(await code(log.stream.info()), "not_found");
  assert.equal((await log.append({ n: 1 }, { expected: 0, headers: [["Kind", "x"]] })).sequence, 1);
  assert.equal(await code(log.append({ n: 2 }, { expected: 0 })), "conflict");
  const first = await log.append({ n: 2 }, { messageId: "m" });
  assert.deepEqual(await log.append({ n: 2 }, { messageId: "m" }), { ...first, duplicate: true });
  const { entries, next, last } = await log.read();
  assert.deepEqual(entries.map(({ value, sequence, headers }) => [value, sequence, headers]), [[{ n: 1 }, 1, [["Kind", "x"]]], [{ n: 2 }, 2, []]]);
  assert.deepEqual([next, last], [3, 2]);
  assert(Math.abs(entries[0]!.time.getTime() - Date.now()) < 60_000);
});

test("a store of typed values", async () => {
  const kv = new Kv<string>(connection, "dev", "typed");
  await kv.put("a.b", "one", { expected: 0 });
  await kv.put("a.b", "two");
  await kv.put("c", "three");
  assert.equal((await kv.get("a.b"))?.value, "two");
  assert.equal((await kv.get("a.b", 1))?.value, "one");
  await kv.delete("a.b");
  assert.equal(await kv.get("a.b"), undefined);
  assert.deepEqual((await kv.history("a.b")).map((entry) => entry.value), ["one", "two", undefined]);
  const keys = [];
  for await (const { key } of kv.keys()) keys.push(key);
  assert.deepEqual(keys, ["c"]);
});

test("bytes stay as they are", async () => {
  const raw = new RawStream(connection, "dev", "log", "bytes");
  await raw.write("append", new Uint8Array([0, 255, 13, 10]));
  assert.deepEqual((await raw.page()).records[0]!.data, new Uint8Array([0, 255, 13, 10]));
  assert.equal((await raw.page({ last: 0, waitMillis: 20 })).records.length, 0);
});

test("a feed has every record once, over holes and a killed bus", { timeout: 120_000 }, async () => {
  const log = new Log<number>(connection, "dev", "feed");
  await log.append(0);
  const seen: number[] = [];
  const followed = (async () => {
    for await (const change of log.follow()) {
      assert(change.type === "record");
      seen.push(change.record.value!);
      if (change.record.value === 60) return;
    }
  })();
  for (let n = 1; n <= 60; n++) {
    if (n === 30) {
      await stop();
      await start(new URL(url).port);
    }
    for (;;) {
      try {
        await log.append(n, { messageId: `n${n}` });
        break;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  }
  await followed;
  assert.deepEqual(seen, Array.from({ length: 61 }, (_, n) => n));
});

test("a store is watched, and its deletion is told", { timeout: 60_000 }, async () => {
  const kv = new Kv<number>(connection, "dev", "watched");
  await kv.put("a", 1);
  const told: unknown[] = [];
  for await (const change of kv.watch()) {
    told.push(change.type === "record" ? [change.record.key, change.record.value] : "reset");
    if (told.length === 1) await kv.put("b", 2);
    if (told.length === 2) await kv.delete("a");
    if (told.length === 3) await kv.stream.delete();
    if (told.length === 4) await kv.put("c", 3);
    if (told.length === 5) break;
  }
  assert.deepEqual(told, [["a", 1], ["b", 2], ["a", undefined], "reset", ["c", 3]]);
});

test("a feed can be stopped while it waits", { timeout: 20_000 }, async () => {
  const feed = new Feed(new RawStream(connection, "dev", "log", "nothing"));
  setTimeout(() => feed.stop(), 50);
  for await (const change of feed) assert.fail(JSON.stringify(change));
});
