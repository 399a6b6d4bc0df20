// What runs in the browser; `chromium.js` bundles it and hands it its options.
import * as client from "@nats-io/nats-core";
import { run } from "./checks.js";

window.start = (options) => run({ connect: client.wsconnect, client, options, report: window.report });
