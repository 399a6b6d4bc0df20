// @nats-io/nats-core over WebSocket in Node. Node before 22 has no WebSocket of its own.
import * as client from "@nats-io/nats-core";
import WebSocket from "ws";
import { run } from "./checks.js";
import { options } from "./options.js";

globalThis.WebSocket = WebSocket;
await run({ connect: client.wsconnect, client, options, report: console.log });
