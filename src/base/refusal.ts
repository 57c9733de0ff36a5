/**
 * Why the control plane (API, command line, configuration, opening a store) refuses something. It is thrown, shown to
 * a person, and says what to do next. The data path throws nothing: there, a `Status` is the whole answer.
 */
export type RefusalCode = keyof typeof REFUSALS;

/** Every code with its HTTP status and the exit code of the command line. `docs/cli.md` is checked against it. */
export const REFUSALS = {
  "bad-request": { http: 400, exit: 2 },
  "not-found": { http: 404, exit: 3 },
  exists: { http: 409, exit: 4 },
  "in-use": { http: 409, exit: 5 },
  "not-allowed": { http: 403, exit: 6 },
  full: { http: 507, exit: 7 },
  damaged: { http: 500, exit: 8 },
  "too-new": { http: 500, exit: 9 },
  locked: { http: 409, exit: 10 },
  unreachable: { http: 503, exit: 11 },
  "storage-failed": { http: 500, exit: 12 },
  unsupported: { http: 501, exit: 13 },
  timeout: { http: 504, exit: 14 },
  /** A mistake of the program, and nobody else's. */
  internal: { http: 500, exit: 70 },
  interrupted: { http: 500, exit: 130 },
} as const;

export class Refusal extends Error {
  override readonly name = "Refusal";
  readonly code: RefusalCode;
  /** What to do about it: a sentence for a person, with the command to type where there is one. */
  readonly hint: string | undefined;

  constructor(code: RefusalCode, message: string, hint?: string) {
    super(message);
    this.code = code;
    this.hint = hint;
  }
}
