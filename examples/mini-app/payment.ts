// 토스페이 결제. · A payment with Toss Pay.

import { checkoutPayment } from "@apps-in-toss/web-framework"; // SDK 2.x; in SDK 3 it is in TossPay
import { type Bff, BffError, patiently, pause } from "./bff";

export type PaymentState =
  | "CREATED" | "READY" | "PENDING" | "PAID" | "CANCELED" | "FAILED" | "REFUNDING" | "REFUNDED" | "HELD";

export interface Payment {
  orderNo: string;
  state: PaymentState;
  /** Whole KRW. The BFF decides it: a mini-app never sends one. */
  amount: number;
  productDesc: string;
  productId: string | null;
  orderId: string | null;
  isTest: boolean;
  createdAt: string;
  paidAt: string | null;
  refundedAt: string | null;
  tossCode: string | null;
}

/**
 * PAID: deliver. READY: not paid, `execute` may be called again. CANCELED, FAILED: over, begin anew if the user wants.
 * PENDING: nobody knows yet; ask later, and let nobody pay again. HELD: say that it is being looked into.
 */
export async function pay(bff: Bff, what: { productId: string } | { orderId: string }): Promise<Payment> {
  // Not repeated by itself: a product that is begun twice is two payments.
  const begun = await bff.call<Payment & { payToken: string }>("POST", "/api/v1/payments", what);
  const sheet = await checkoutPayment({ params: { payToken: begun.payToken } }); // no money has moved
  // `true` and nothing else: a failure was once seen without the field.
  return sheet.success === true ? await execute(bff, begun.orderNo) : await payment(bff, begun.orderNo);
}

export const payment = (bff: Bff, orderNo: string) => bff.call<Payment>("GET", `/api/v1/payments/${orderNo}`);

export async function execute(bff: Bff, orderNo: string): Promise<Payment> {
  let latest: Payment;
  try {
    latest = await patiently(() => bff.call<Payment>("POST", `/api/v1/payments/${orderNo}/execute`));
  } catch (error) {
    // `tossCode` of the payment says why: an empty card, a limit.
    if (!(error instanceof BffError) || !["payment_refused", "payment_ended", "payment_held"].includes(error.code)) throw error;
    latest = await payment(bff, orderNo);
  }
  for (let asked = 0; latest.state === "PENDING" && asked < 20; asked++) {
    await pause(3000);
    latest = await patiently(() => payment(bff, orderNo));
  }
  return latest;
}
