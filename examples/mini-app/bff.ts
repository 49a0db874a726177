// BFF의 미니앱 문(/api/v1)을 부르는 클라이언트예요. · A client of the BFF's mini-app door (/api/v1).
//
// No cookies (iOS blocks them): what proves who is calling goes into a header, and is kept in memory only.

/** Every error of the BFF. Switch on `code`; `title` and `detail` are for people and may change. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  code: string;
  retryable: boolean;
  detail?: string;
  instance?: string;
  errors?: { pointer: string; detail: string }[];
  tossCode?: string;
  readsLeft?: number;
}

export class BffError extends Error {
  constructor(
    readonly problem: Problem,
    /** How long the BFF asks to wait, in milliseconds; null: it does not say. */
    readonly retryAfter: number | null,
    /** Names the call in the BFF's log: put it into your error report. */
    readonly requestId: string | null,
  ) {
    super(problem.code);
  }

  get code(): string {
    return this.problem.code;
  }
}

/** No answer came, or one that is not the BFF's: whether the call took effect is not known. */
export class NoAnswer extends Error {}

export const pause = (ms: number) => new Promise<void>((done) => setTimeout(done, ms));

const DEFAULT_PAUSE = 2000;
const LONGEST_PAUSE = 30_000;

/**
 * Repeats a call while the BFF says that it may be repeated, and after `NoAnswer`. The BFF is made for that; only to begin
 * a payment or a billing key of a product twice makes two of them.
 */
export async function patiently<T>(call: () => Promise<T>, attempts = 5): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      const mayRepeat = error instanceof NoAnswer || (error instanceof BffError && error.problem.retryable);
      const wait = error instanceof BffError ? (error.retryAfter ?? DEFAULT_PAUSE) : DEFAULT_PAUSE;
      if (!mayRepeat || attempt >= attempts || wait > LONGEST_PAUSE) throw error;
      await pause(wait);
    }
  }
}

export class Bff {
  /** Of the login. In memory: a user who comes back calls `appLogin()` again, which then answers at once. */
  sessionToken: string | null = null;

  constructor(private readonly origin: string) {}

  /** `token` instead of the session's: the `verificationToken` of a verification without a login. */
  async call<T>(method: "GET" | "POST" | "DELETE", path: string, body?: object, token = this.sessionToken): Promise<T> {
    const headers: Record<string, string> = {};
    if (token !== null) headers["Authorization"] = `Bearer ${token}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer: Response;
    let content: unknown;
    try {
      answer = await fetch(this.origin + path, {
        method,
        headers,
        body: body === undefined ? null : JSON.stringify(body),
      });
      content = answer.status === 204 ? undefined : await answer.json();
    } catch (cause) {
      throw new NoAnswer("no answer", { cause });
    }
    if (answer.ok) return content as T;
    const problem = content as Problem;
    if (problem.code === "session_required") this.sessionToken = null;
    const seconds = Number(answer.headers.get("Retry-After") ?? NaN);
    throw new BffError(problem, Number.isNaN(seconds) ? null : seconds * 1000, answer.headers.get("X-Request-Id"));
  }
}
