// What every JavaScript client is tried with, on whichever platform and transport. `client` is the published library.

const SOON = 20_000;

export async function run({ connect, client, options, report }) {
  const { headers, Empty } = client;
  // `timeout`: an attempt that meets the bus while it goes down isn't given up before, and the next one is what counts
  const reconnecting = { reconnectTimeWait: 50, maxReconnectAttempts: -1, ignoreAuthErrorAbort: true, timeout: 3000 };
  const open = () => connect({ ...options, ...reconnecting });
  let nc;

  const checks = {
    async connect() {
      nc = await open();
      await nc.flush();
      equal(nc.info.headers, true);
    },

    async requests() {
      const answer = await nc.request("svc.echo", "hello", { timeout: SOON });
      equal(answer.string(), "hello");
      equal(answer.subject.startsWith(options.inboxPrefix + "."), true);
      // and the other way round: this client answers
      const service = nc.subscribe("t.service", { callback: (_, message) => message.respond(message.data) });
      const asker = await open();
      await nc.flush();
      const all = await Promise.all([..."abc"].map((text) => asker.request("t.service", text, { timeout: SOON })));
      equal(all.map((message) => message.string()).join(""), "abc");
      await asker.close();
      service.unsubscribe();
    },

    async "queue groups"() {
      let [one, other] = [0, 0];
      const subscriptions = [
        nc.subscribe("t.queue", { queue: "q", callback: () => one++ }),
        nc.subscribe("t.*", { queue: "q", callback: () => one++ }),
        nc.subscribe("t.queue", { callback: () => other++ }),
      ];
      for (let n = 0; n < 50; n++) nc.publish("t.queue");
      await nc.flush();
      equal(one, 50);
      equal(other, 50);
      subscriptions.forEach((subscription) => subscription.unsubscribe());
    },

    async headers() {
      const block = headers();
      block.append("Kind", "a");
      block.append("Kind", "b");
      block.set("Text", "grüße");
      const answer = await nc.request("svc.echo", Empty, { headers: block, timeout: SOON });
      equal(answer.headers.values("Kind").join(), "a,b");
      equal(answer.headers.get("Text"), "grüße");
    },

    async "no responders"() {
      const error = await nc.request("t.nobody", Empty, { timeout: SOON }).then(() => undefined, (error) => error);
      equal(error?.isNoResponders?.() ?? error?.name, true);
    },

    async "large payloads"() {
      const most = nc.info.max_payload;
      const payload = new Uint8Array(most).map((_, at) => at * 31);
      const got = next(nc.subscribe("t.large", { max: 1 }));
      nc.publish("t.large", payload);
      const { data } = await got;
      equal(data.length, most);
      equal(data.every((byte, at) => byte === payload[at]), true);
      let refused = false;
      try {
        nc.publish("t.large", new Uint8Array(most + 1));
      } catch {
        refused = true;
      }
      equal(refused, true);
      equal((await nc.request("svc.echo", "still here", { timeout: SOON })).string(), "still here");
    },

    async reconnect() {
      const [plain, queued] = [nc.subscribe("t.again"), nc.subscribe("t.again", { queue: "q" })];
      await nc.flush();
      const back = (async () => {
        for await (const status of nc.status()) if (status.type === "reconnect") return;
      })();
      nc.publish("control.restart");
      await within(back, "reconnect");
      nc.publish("t.again", "after");
      for (const subscription of [plain, queued]) equal((await next(subscription)).string(), "after");
      equal((await nc.request("svc.echo", "new bus", { timeout: SOON })).string(), "new bus");
    },

    async drain() {
      let count = 0;
      nc.subscribe("t.drain", { callback: () => count++ });
      await nc.flush();
      for (let n = 0; n < 1000; n++) nc.publish("t.drain", "x".repeat(100));
      await within(nc.drain(), "drain");
      equal(count, 1000);
      equal(nc.isClosed(), true);
    },
  };

  for (const [name, check] of Object.entries(checks)) {
    try {
      await within(check(), name);
      await report(`ok ${name}`);
    } catch (error) {
      await report(`failed ${name}: ${error?.stack ?? error}`);
      break;
    }
  }
  await nc?.close();
}

function equal(found, expected) {
  if (found !== expected) throw new Error(`found ${found} instead of ${expected}`);
}

async function next(subscription) {
  const { value } = await within(subscription[Symbol.asyncIterator]().next(), "a message");
  return value;
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`not in time: ${what}`)), SOON)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
