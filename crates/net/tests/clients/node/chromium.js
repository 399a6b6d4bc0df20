// @nats-io/nats-core over WebSocket in Chromium, headless, on a page served from here.
import { createServer } from "node:http";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { options } from "./options.js";

const bundle = await build({ entryPoints: ["page.js"], bundle: true, format: "iife", platform: "browser", write: false });
const page = `<!doctype html><meta charset="utf-8"><script>${bundle.outputFiles[0].text.replaceAll("</script", "<\\/script")}</script>`;
const server = createServer((_, answer) => answer.setHeader("content-type", "text/html").end(page));
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const profile = await mkdtemp(join(tmpdir(), "atoll-chromium-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.ATOLL_CHROMIUM,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
});
try {
  const tab = await browser.newPage();
  tab.on("pageerror", (error) => console.error(error));
  await tab.exposeFunction("report", (line) => console.log(line));
  await tab.goto(`http://127.0.0.1:${server.address().port}/`);
  await tab.evaluate((options) => window.start(options), options);
} finally {
  await browser.close();
  server.close();
  await rm(profile, { recursive: true, force: true });
}
