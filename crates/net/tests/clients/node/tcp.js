// @nats-io/transport-node over TCP.
import * as client from "@nats-io/transport-node";
import { run } from "./checks.js";
import { options } from "./options.js";

await run({ connect: client.connect, client, options, report: console.log });
