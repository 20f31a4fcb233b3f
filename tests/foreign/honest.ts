// An honest device on ts-mls: examples/ts-mls, which does what it is asked to. Each line of its input is a call,
// `{"call": NAME, "with": …}`, and is answered with a line: `{"answer": …}` or `{"failure": …}`. Arguments: the server's
// address, the user and the device; for a further device of the user, what it shows to be registered.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { Device } from "./device.js";

const [, , server, user, device, shown] = process.argv;
assert(server !== undefined && user !== undefined && device !== undefined, "usage: honest.js SERVER USER DEVICE");
const honest = await Device.register(server, { user, device }, shown);
for await (const line of createInterface({ input: process.stdin })) {
  const { call, with: given } = JSON.parse(line);
  let said: object;
  try {
    const method = honest[call as keyof Device] as (given: unknown) => Promise<unknown>;
    said = { answer: (await method.call(honest, given)) ?? null };
  } catch (error) {
    said = { failure: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  }
  console.log(JSON.stringify(said));
}
