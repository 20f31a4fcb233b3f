// A client typed by the OpenAPI document does what a messenger does: register, upload, reserve, spend, look.
// Arguments: the server's address. Environment: KEYPACKAGES, base64 of KeyPackages of dave/phone, one a line.

import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const server = process.argv[2];
const packages = (process.env.KEYPACKAGES ?? "").split(/\s+/).filter((text) => text !== "");
assert(server !== undefined && packages.length > 2, "usage: KEYPACKAGES=… smoke.js SERVER");
const group_id = "ZnJpZW5kcw==";

/** A client that acts as a new device. */
async function registered(user: string, device: string) {
  const anyone = createClient<paths>({ baseUrl: server });
  const { data, error } = await anyone.POST("/devices", { body: { user, device } });
  assert(data !== undefined, JSON.stringify(error));
  assert.deepEqual([data.user, data.device], [user, device]);
  return createClient<paths>({ baseUrl: server, headers: { Authorization: `Bearer ${data.token}` } });
}

const carol = await registered("carol", "laptop");
const dave = await registered("dave", "phone");

const uploaded = await dave.POST("/keypackages/upload", { body: { keypackages: [...packages, "AAAA"] } });
assert.equal(uploaded.data?.accepted.length, packages.length);
const reasons: components["schemas"]["RejectionReason"][] = uploaded.data.rejected.map(({ reason }) => reason);
assert.deepEqual(reasons, ["malformed"]);

const held = await carol.POST("/keypackages/reserve", { body: { target_user: "dave", group_id } });
const reservation = held.data?.reservations[0];
assert(reservation !== undefined && packages.includes(reservation.keypackage));
assert.deepEqual(held.data?.missing, []);

const { reservation_id } = reservation;
const spent = await carol.POST("/keypackages/spend", { body: { reservation_id, group_id } });
assert.equal(spent.data?.state, "spent");
assert.equal(spent.data.keypackage_ref, reservation.keypackage_ref);

const again = await carol.POST("/keypackages/reserve", { body: { targets: ["dave", "nobody"] } });
const back = again.data?.reservations[0];
assert(back !== undefined);
assert.deepEqual(again.data?.missing.map(({ user, reason }) => [user, reason]), [["nobody", "unknown-user"]]);
const released = await carol.POST("/keypackages/release", { body: { reservation_id: back.reservation_id } });
assert.equal(released.data?.state, "available");

const unknown = await carol.POST("/keypackages/reserve", { body: { target_user: "nobody" } });
assert.equal(unknown.error?.type, "unknown-user");
// @ts-expect-error -- the types know what there is: no such problem,
void (unknown.error?.type === "no-such-problem");
// @ts-expect-error -- and no such field.
void ({ target_user: "dave", user: "dave" } satisfies components["schemas"]["ReserveRequest"]);

const { data: pool } = await dave.GET("/keypackages/status");
assert(pool !== undefined);
assert.deepEqual([pool.spent, pool.lapsed, pool.fresh, pool.health], [1, 1, packages.length - 2, "low"]);
console.log(`typescript: ${pool.total} KeyPackages, ${pool.spent} spent, ${pool.health}`);
