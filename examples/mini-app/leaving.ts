// 탈퇴: 토스 연결을 끊고 정보를 지워요. · Leaving: unlinks at Toss, then erases.

import { type Bff, BffError, patiently } from "./bff";
import { logIn } from "./login";

/** Throws if Toss has not confirmed it. The user is still logged in then, and the BFF goes on trying by itself. */
export async function leave(bff: Bff): Promise<void> {
  const attempt = () => bff.call<void>("DELETE", "/api/v1/me");
  try {
    await patiently(attempt, 3);
  } catch (error) {
    if (!(error instanceof BffError)) throw error;
    if (error.code === "unlink_needs_login") {
      await logIn(bff); // Toss wants a token of the user that is alive
      await patiently(attempt, 3);
    } else if (error.code !== "session_required") {
      throw error; // else: an earlier attempt has done it, and its answer was lost
    }
  }
  bff.sessionToken = null;
}
