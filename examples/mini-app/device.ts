// 토스 앱 대신 SDK에 답해요(샌드박스 전용). · Answers the SDK in place of the Toss app, for the sandbox only.
//
// It speaks the SDK's own protocol (postMessage there, an emitter back), so that the real SDK runs unchanged, and plays the
// user through the sandbox's control API.

type Listener = (value: unknown) => void;
type Message = { type: string; functionName: string; eventId: string; args?: any };

export interface Device {
  /** What the user does next. */
  user: string;
  cancelsPayments: boolean;
  losesTheAppBeforeGrants: boolean;
  control: (path: string, body?: object) => Promise<any>;
}

export function playDevice(page: string): Device {
  const listeners = new Map<string, Listener[]>();
  const tell = (event: string, value?: unknown) => [...(listeners.get(event) ?? [])].forEach((listener) => listener(value));
  const unfinished = new Map<string, string>(); // orderId -> sku
  const device: Device = {
    user: "",
    cancelsPayments: false,
    losesTheAppBeforeGrants: false,
    async control(path, body) {
      const answer = await fetch(`${page}/control/${path}`, {
        method: body === undefined ? "GET" : "POST",
        headers: { "Content-Type": "application/json" },
        body: body === undefined ? null : JSON.stringify(body),
      });
      if (!answer.ok) throw new Error(`the sandbox refuses ${path}: ${await answer.text()}`);
      return answer.status === 204 ? undefined : answer.json();
    },
  };

  const functions: Record<string, (argument: any) => Promise<unknown>> = {
    appLogin: () => device.control(`users/${device.user}/login`, {}),
    getAnonymousKey: () => device.control(`users/${device.user}/anon-key`, {}),
    appsInTossSignTossCert: ({ txId }) => device.control(`transactions/${txId}/approve`, {}),
    async checkoutPayment({ params }) {
      await device.control(`pay/${params.payToken}/${device.cancelsPayments ? "cancel" : "authenticate"}`, {});
      return { success: !device.cancelsPayments };
    },
    async requestTossPayPaysBilling({ params }) {
      await device.control(`billing/${params.wrappedToken}/authenticate`, {});
      return { success: true };
    },
    async processProductGrant({ orderId, isProductGranted }) {
      if (isProductGranted) {
        await device.control(`iap/${orderId}/complete`, {});
        unfinished.delete(orderId);
      }
    },
    getPendingOrders: async () => ({ orders: [...unfinished].map(([orderId, sku]) => ({ orderId, sku })) }),
    async completeProductGrant({ params }) {
      await functions["processProductGrant"]!({ orderId: params.orderId, isProductGranted: true });
      return true;
    },
  };

  async function sell(message: Message) {
    const { sku } = message.args;
    const isSubscription = message.functionName === "requestSubscriptionPurchase";
    const { orderId } = await device.control(isSubscription ? "iap/subscriptions" : "iap/orders", { user: device.user, sku });
    unfinished.set(orderId, sku);
    const name = `${message.functionName}/onEvent/${message.eventId}`;
    if (!device.losesTheAppBeforeGrants) tell(name, { type: "purchased", data: { orderId } });
    setTimeout(() => tell(name, { type: "success", data: { orderId } }), 1500);
  }

  function receive(text: string) {
    const message = JSON.parse(text) as Message;
    const { type, functionName, eventId } = message;
    if (type === "addEventListener") void sell(message);
    if (type !== "method") return;
    const play = functions[functionName] ?? (() => Promise.reject(new Error(`${functionName} is not played`)));
    play(message.args?.[0]).then(
      (value) => tell(`${functionName}/resolve/${eventId}`, value),
      (error) => tell(`${functionName}/reject/${eventId}`, { __isError: true, message: String(error) }),
    );
  }

  const emitter = {
    on(event: string, listener: Listener) {
      listeners.set(event, [...(listeners.get(event) ?? []), listener]);
      return () => listeners.set(event, (listeners.get(event) ?? []).filter((each) => each !== listener));
    },
  };
  (globalThis as any).window = {
    ReactNativeWebView: { postMessage: receive },
    __GRANITE_NATIVE_EMITTER: emitter,
    __CONSTANT_HANDLER_MAP: { getOperationalEnvironment: "toss", getTossAppVersion: "5.260.0", getPlatformOS: "ios" },
  };
  return device;
}
