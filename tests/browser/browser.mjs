// Real pages in a real browser. Arguments: what to do, and the server's address; for `page` also the port of the page, whose
// origin the server has to allow.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { createServer, request } from "node:http";
import { chromium } from "playwright-core";

const [, , task, server, port] = process.argv;

const programs = ["/usr/bin/chromium", "/usr/bin/google-chrome"];
const executablePath = programs.find((program) => existsSync(program));
assert(executablePath !== undefined, "install Chromium with `sudo apt-get install chromium`");
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"],
});

function listening(handler, at = 0) {
  return new Promise((resolve) => {
    const http = createServer(handler).listen(at, "127.0.0.1", () => resolve(http));
  });
}

/** A web messenger: a page of another origin, which calls the server as any client does. */
async function fromAnotherOrigin() {
  const pages = await listening((_, answer) => answer.setHeader("Content-Type", "text/html").end("<h1>Chat</h1>"), port);
  const page = await browser.newPage();
  await page.goto(`http://localhost:${port}/`);
  const seen = await page.evaluate(async (server) => {
    const call = async (path, body, token) => {
      const headers = { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() };
      if (token !== undefined) headers.Authorization = `Bearer ${token}`;
      const method = body === undefined ? "GET" : "POST";
      const answer = await fetch(server + path, { method, headers, body: JSON.stringify(body) });
      return { status: answer.status, id: answer.headers.get("X-Request-Id"), json: await answer.json() };
    };
    const { json: registered } = await call("/devices", { user: "web", device: "page" });
    const { json: example } = await call("/swagger-ui/example-upload", undefined, registered.token);
    const uploaded = await call("/keypackages/upload", example, registered.token);
    const reserved = await call("/keypackages/reserve", { target_user: "web" }, registered.token);
    const refused = await call("/keypackages/reserve", { target_user: "nobody" }, registered.token);
    return { uploaded, reserved, refused };
  }, server);
  assert.equal(seen.uploaded.json.accepted.length, 2);
  assert.equal(seen.reserved.json.reservations.length, 1);
  assert.equal(seen.refused.json.type, "unknown-user");
  for (const answer of Object.values(seen)) assert.match(answer.id, /^[\w.-]+$/, "the page cannot read X-Request-Id");

  // A page of an origin that the server does not name learns nothing.
  await page.goto(`http://127.0.0.1:${port}/`);
  const other = await page.evaluate((server) => fetch(server + "/healthz").then(() => "read", (error) => error.name), server);
  assert.equal(other, "TypeError");
  pages.close();
}

/** Swagger UI behind a proxy that serves the server under a path. Its examples are executed as they are. */
async function swaggerBehindAPrefix() {
  const proxy = await listening((call, answer) => {
    if (!call.url.startsWith("/keypool/")) return answer.writeHead(404).end();
    const onwards = request(server + call.url.slice("/keypool".length), { method: call.method, headers: call.headers });
    onwards.on("response", (from) => from.pipe(answer.writeHead(from.statusCode, from.headers)));
    call.pipe(onwards);
  });
  const page = await browser.newPage();
  const outside = [];
  page.on("response", (answer) => answer.status() === 404 && outside.push(answer.url()));
  await page.goto(`http://127.0.0.1:${proxy.address().port}/keypool/`);
  await page.getByRole("link", { name: "Try the calls" }).click();

  const execute = async (operation, status) => {
    const block = page.locator(`[id$="-${operation}"]`);
    if (!(await block.getByRole("button", { name: "Execute" }).isVisible())) {
      await block.locator(".opblock-summary-control").click();
    }
    await block.getByRole("button", { name: "Execute" }).click();
    const found = block.locator(".live-responses-table .response-col_status").last();
    await found.waitFor();
    assert.equal((await found.innerText()).trim().slice(0, 3), String(status), `${operation}: ${await block.innerText()}`);
    return block.locator(".live-responses-table .microlight").first().innerText();
  };

  assert.match(await execute("register_device", 201), /keypool_/);
  assert.match(await execute("upload_key_packages", 200), /"rejected": \[\]/);
  assert.match(await execute("get_pool_status", 200), /"fresh": 2/);
  assert.match(await execute("reserve_key_packages", 200), /"reservation_id"/);
  assert.match(await execute("spend_reservation", 200), /"state": "spent"/);
  // Who reloads the page is still signed in.
  await page.reload();
  assert.match(await execute("get_pool_status", 200), /"spent": 1/);
  assert.deepEqual(outside, [], "a link leads out of the prefix");
  if (process.env.PICTURE !== undefined) await page.screenshot({ path: process.env.PICTURE });
  proxy.close();
}

try {
  await { page: fromAnotherOrigin, swagger: swaggerBehindAPrefix }[task]();
} finally {
  await browser.close();
}
