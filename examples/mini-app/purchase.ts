// 인앱 결제와 구독, 이용권. · In-app purchase, subscriptions, entitlements.

import { IAP } from "@apps-in-toss/web-framework"; // subscriptions: SDK 2.6.2, Toss app 5.248.0 (Android), 5.249.0 (iOS)
import { type Bff, BffError } from "./bff";

export interface Purchase {
  orderId: string;
  sku: string;
  state: "GRANTED" | "REFUNDED";
  grantedAt: string | null;
  refundedAt: string | null;
}

export interface Entitlement {
  sku: string;
  kind: string;
  /** Null for what does not end by itself. */
  expiresAt: string | null;
  autoRenew: boolean | null;
  orderIds: string[];
}

/** For `processProductGrant`: true for an order that was granted before, too. The BFF waits for Toss, less than the SDK's 30 s. */
async function grant(bff: Bff, orderId: string): Promise<boolean> {
  try {
    await bff.call<Purchase>("POST", `/api/v1/purchases/${orderId}/grant`);
    return true;
  } catch {
    return false; // if it is paid, the next start of the app finds it
  }
}

/** On a Toss app that is too old the SDK does nothing at all, and this never ends: check its version first. */
export function buy(bff: Bff, sku: string): Promise<void> {
  return new Promise((done, failed) => {
    const end = IAP.createOneTimePurchaseOrder({
      options: { sku, processProductGrant: ({ orderId }) => grant(bff, orderId) },
      onEvent: () => (end(), done()),
      onError: (error) => (end(), failed(error)), // USER_CANCELED, for one; `code` says which
    });
  });
}

export function subscribe(bff: Bff, sku: string, offerId?: string): Promise<void> {
  return new Promise((done, failed) => {
    const end = IAP.createSubscriptionPurchaseOrder({
      options: { sku, offerId: offerId ?? null, processProductGrant: ({ orderId }) => grant(bff, orderId) },
      onEvent: () => (end(), done()),
      onError: (error) => (end(), failed(error)),
    });
  });
}

/** On every start, after the login: a user may have paid and lost the app before the grant. */
export async function grantPendingOrders(bff: Bff): Promise<void> {
  const pending = await IAP.getPendingOrders(); // undefined on an old Toss app, whatever its type says
  for (const { orderId } of pending?.orders ?? []) {
    if (await grant(bff, orderId)) await IAP.completeProductGrant({ params: { orderId } });
  }
}

/** What the user may use now. Never decide that from the SDK. */
export const entitlements = async (bff: Bff) =>
  (await bff.call<{ entitlements: Entitlement[] }>("GET", "/api/v1/entitlements")).entitlements;

/** Null: nothing was granted under this order to this user. */
export async function purchase(bff: Bff, orderId: string): Promise<Purchase | null> {
  try {
    return await bff.call<Purchase>("GET", `/api/v1/purchases/${orderId}`);
  } catch (error) {
    if (error instanceof BffError && error.code === "purchase_not_found") return null;
    throw error;
  }
}
