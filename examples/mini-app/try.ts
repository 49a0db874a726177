// 샌드박스와 BFF에 대고 모든 예제를 실행해요. · Runs every example against the sandbox and the BFF.
//
//   python -m sandbox          (in another shell, at the root of the repository)
//   npm install && npm run try

import assert from "node:assert/strict";
import { Bff, BffError } from "./bff";
import { playDevice } from "./device";
import { leave } from "./leaving";
import { logIn, logInAnonymously, logOut, me } from "./login";
import { execute, pay, payment } from "./payment";
import { buy, entitlements, grantPendingOrders, purchase, subscribe } from "./purchase";
import { billingKeys, endBillingKey, permitCharges } from "./recurring-payment";
import { claim, finish, start, verify } from "./verification";

const page = process.env["SANDBOX"] ?? "http://127.0.0.1:9480";
const device = playDevice(page);
const { bffUrl } = await device.control("config");
const id = `mini-app-${Date.now()}`;
await device.control("users", {
  id, name: "김토스", phone: "01012345678", birthday: "19930324", gender: "FEMALE", nationality: "LOCAL", ci: `CI-${id}`,
});
device.user = id;
const [coins, membership] = (await device.control("iap/products")) as { sku: string }[];
const bff = new Bff(bffUrl);
const skus = async () => (await entitlements(bff)).map((each) => each.sku).sort();

async function story(name: string, tell: () => Promise<void>) {
  await tell();
  console.log(`ok  ${name}`);
}

await story("a one-touch verification without a login", async () => {
  const outcome = await verify(bff);
  assert.equal(outcome?.ageGroup, "ADULT");
});

await story("a verification with personal data", async () => {
  const outcome = await verify(bff, { name: "김토스", phone: "01012345678", birthday: "19930324" });
  assert.match(outcome?.maskedName ?? "", /\*/);
});

await story("a login, and a verification that belongs to it", async () => {
  const user = await logIn(bff);
  assert.equal(user.kind, "MEMBER");
  assert.equal((await me(bff)).userId, user.userId);
  assert.ok(await verify(bff));
});

await story("a verification that is claimed after the login", async () => {
  const stranger = new Bff(bffUrl);
  const started = await start(stranger);
  const { txId, verificationToken } = started;
  await claim(bff, started);
  await assert.rejects(
    stranger.call("GET", `/api/v1/cert/requests/${txId}/status`, undefined, verificationToken),
    (error) => error instanceof BffError && error.code === "verification_not_found" && error.requestId !== null,
  );
  assert.equal((await finish(bff, started))?.ageGroup, "ADULT");
});

await story("a verification whose result is lost on its way from Toss", async () => {
  await device.control("faults", { call: "result", kind: "reset_after" });
  assert.equal((await verify(bff))?.ageGroup, "ADULT"); // by the last read
});

await story("a payment", async () => {
  const paid = await pay(bff, { productId: "americano" });
  assert.equal(paid.state, "PAID");
  assert.equal((await execute(bff, paid.orderNo)).state, "PAID");
  assert.equal((await payment(bff, paid.orderNo)).amount, 4500);
});

await story("a payment that the user cancels", async () => {
  device.cancelsPayments = true;
  assert.notEqual((await pay(bff, { productId: "americano" })).state, "PAID");
  device.cancelsPayments = false;
});

await story("a payment whose execution is lost on its way from Toss", async () => {
  await device.control("faults", { call: "pay_execute", kind: "reset_after" });
  assert.equal((await pay(bff, { productId: "beans" })).state, "PAID"); // once, by its status
});

await story("recurring payment", async () => {
  const key = await permitCharges(bff, "beans");
  assert.equal(key?.state, "ACTIVE");
  assert.equal((await billingKeys(bff)).length, 1);
  assert.equal((await endBillingKey(bff, key!.billingKeyId)).state, "REMOVED");
});

await story("an in-app purchase", async () => {
  await buy(bff, coins!.sku);
  assert.deepEqual(await skus(), [coins!.sku]);
});

await story("a subscription whose grant was missed, found on the next start", async () => {
  device.losesTheAppBeforeGrants = true;
  await subscribe(bff, membership!.sku);
  assert.deepEqual(await skus(), [coins!.sku]);
  await grantPendingOrders(bff);
  assert.deepEqual(await skus(), [coins!.sku, membership!.sku].sort());
  assert.equal(await purchase(bff, "0199aaaa-0000-7000-8000-000000000000"), null);
});

await story("leaving, whose first attempt Toss does not answer", async () => {
  await device.control("faults", { call: "unlink_token", kind: "reset_before" });
  await leave(bff);
  assert.equal(bff.sessionToken, null);
});

await story("an anonymous user, who logs out", async () => {
  assert.equal((await logInAnonymously(bff)).kind, "ANONYMOUS");
  await logOut(bff);
  await assert.rejects(me(bff), (error) => error instanceof BffError && error.code === "session_required");
});
