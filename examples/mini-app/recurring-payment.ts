// 자동결제: 사용자가 한 번 허락하고, 청구는 파트너 서버가 해요. · Recurring payment: the user permits it once, the partner server charges.

import { requestTossPayPaysBilling } from "@apps-in-toss/web-framework"; // SDK 2.5.0, Toss app 5.256.0
import { type Bff, patiently } from "./bff";

export interface BillingKey {
  billingKeyId: string;
  state: string;
  productDesc: string;
  isTest: boolean;
  createdAt: string;
  changedAt: string;
}

/** Null: not permitted. Your server charges the key by its `billingKeyId`. */
export async function permitCharges(bff: Bff, productId: string): Promise<BillingKey | null> {
  const begun = await bff.call<BillingKey & { wrappedToken: string }>("POST", "/api/v1/billing-keys", { productId });
  await requestTossPayPaysBilling({ params: { wrappedToken: begun.wrappedToken } }); // what it answers proves nothing
  const key = await patiently(() => bff.call<BillingKey>("POST", `/api/v1/billing-keys/${begun.billingKeyId}/confirm`));
  return key.state === "ACTIVE" ? key : null;
}

export const billingKeys = async (bff: Bff) =>
  (await bff.call<{ billingKeys: BillingKey[] }>("GET", "/api/v1/billing-keys")).billingKeys;

/** From now on nothing is charged to it. */
export const endBillingKey = (bff: Bff, billingKeyId: string) =>
  patiently(() => bff.call<BillingKey>("DELETE", `/api/v1/billing-keys/${billingKeyId}`));
