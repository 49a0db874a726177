// 토스 로그인, 익명 로그인, 로그아웃. · Toss login, anonymous login, logging out.

import { appLogin, getAnonymousKey } from "@apps-in-toss/web-framework";
import { type Bff, BffError } from "./bff";

export interface User {
  userId: string;
  kind: "MEMBER" | "ANONYMOUS";
  linkedAt: string;
  scopes: string[];
  agreedTerms: string[];
  /** This one and all others only as far as the operator discloses them. */
  maskedName?: string;
  unreadableFields: string[];
}

export interface LoggedIn {
  sessionToken: string;
  sessionId: string;
  expiresAt: string;
  endsAt: string;
  user: User;
}

/** On the user's tap, after a screen that says what it is for: Toss's review rejects a login on entry. */
export async function logIn(bff: Bff): Promise<User> {
  try {
    return await exchange(bff);
  } catch (error) {
    // The code was used or too old, or its answer was lost: a new one costs nothing.
    const again = error instanceof BffError && ["login_rejected", "login_in_progress"].includes(error.code);
    if (!again) throw error;
    return await exchange(bff);
  }
}

async function exchange(bff: Bff): Promise<User> {
  const { authorizationCode, referrer } = await appLogin(); // both unchanged; a code serves once, for ten minutes
  const answer = await bff.call<LoggedIn>("POST", "/api/v1/login", { authorizationCode, referrer }, null);
  bff.sessionToken = answer.sessionToken;
  return answer.user;
}

/** For who has not logged in. The key proves only that Toss issued it: keep it out of logs and addresses. */
export async function logInAnonymously(bff: Bff): Promise<User> {
  const key = await getAnonymousKey();
  if (key === undefined || key === "ERROR") throw new Error("no anonymous key: old Toss app, or another category");
  const answer = await bff.call<LoggedIn>("POST", "/api/v1/login/anonymous", { anonKey: key.hash }, null);
  bff.sessionToken = answer.sessionToken;
  return answer.user;
}

export const me = (bff: Bff) => bff.call<User>("GET", "/api/v1/me");

export async function logOut(bff: Bff): Promise<void> {
  await bff.call<void>("POST", "/api/v1/logout");
  bff.sessionToken = null;
}
