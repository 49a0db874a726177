// 토스 인증(본인확인): 원터치와 개인정보 기반. · Toss Cert: one-touch, and with personal data.

import { appsInTossSignTossCert, isMinVersionSupported } from "@apps-in-toss/web-framework";
import { type Bff, patiently, pause } from "./bff";

/** As the user typed it. */
export interface Person {
  name: string;
  /** 10 or 11 digits. */
  phone: string;
  /** YYYYMMDD. */
  birthday: string;
}

export interface Started {
  txId: string;
  requestType: "USER_NONE" | "USER_PERSONAL";
  requestedAt: string;
  expiresAt: string;
  /** Absent when a login session shows whose it is. */
  verificationToken?: string;
}

interface Status {
  txId: string;
  status: "REQUESTED" | "IN_PROGRESS" | "COMPLETED" | "EXPIRED";
}

/** What the operator discloses (`BFF_CERT__DISCLOSED_FIELDS`). */
export interface Outcome {
  maskedName?: string;
  /** UNKNOWN must not pass for an adult. */
  ageGroup?: "ADULT" | "MINOR" | "UNKNOWN";
  ageGroupDisagrees?: boolean;
  completedAt?: string;
}

interface Result {
  txId: string;
  outcome: Outcome;
  unreadableFields: string[];
  retrieval: { source: "READ" | "LAST_READ" | "RECOVERED" | "STORED"; readsLeft: number };
}

/** Null: the user has not finished in time; start again. Without a person it is a one-touch verification. */
export async function verify(bff: Bff, person?: Person): Promise<Outcome | null> {
  return await finish(bff, await start(bff, person));
}

/** Keep what it answers in memory: without it nobody can fetch the result, or `claim` it. */
export async function start(bff: Bff, person?: Person): Promise<Started> {
  // An older Toss app resolves the call below without doing anything.
  const least = person === undefined ? "5.236.0" : "5.233.0";
  if (!isMinVersionSupported({ android: least, ios: least })) throw new Error("the Toss app is too old");

  const request = person === undefined ? { requestType: "USER_NONE" } : { requestType: "USER_PERSONAL", ...person };
  return await patiently(() => bff.call<Started>("POST", "/api/v1/cert/requests", request));
}

export async function finish(bff: Bff, started: Started): Promise<Outcome | null> {
  const { txId } = started;
  const token = started.verificationToken ?? bff.sessionToken;

  await appsInTossSignTossCert({ txId }); // rejects if the user cancels; that it resolves proves nothing

  for (;;) {
    const { status } = await patiently(() =>
      bff.call<Status>("GET", `/api/v1/cert/requests/${txId}/status`, undefined, token),
    );
    if (status === "EXPIRED") return null;
    if (status === "COMPLETED") break;
    await pause(2500);
  }

  // Toss permits two reads; the BFF counts them. Repeating the call is safe: a result that was read comes from its store.
  const result = await patiently(() =>
    bff.call<Result>("POST", `/api/v1/cert/requests/${txId}/result`, undefined, token),
  );
  return result.outcome;
}

/** After a login: binds a verification that began before it to the session, so that your server finds it by its user. */
export async function claim(bff: Bff, started: Started): Promise<void> {
  const { txId, verificationToken } = started;
  await bff.call("POST", `/api/v1/cert/requests/${txId}/claim`, { verificationToken });
  delete started.verificationToken; // it opens nothing any more: the session does
}
