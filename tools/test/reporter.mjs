/** A reporter of node:test for programs: one line of JSON for each test that begins, and one for each that ended. */
import { inspect } from "node:util";

export default async function* report(events) {
  for await (const { type, data } of events) {
    if (type === "test:diagnostic" && data.nesting === 0 && /^tests \d+$/.test(data.message)) yield '{"end":true}\n';
    if (type === "test:dequeue") yield `${JSON.stringify({ begins: true, name: data.name, nesting: data.nesting })}\n`;
    if (type !== "test:pass" && type !== "test:fail") continue;
    const { duration_ms: ms, type: kind, error } = data.details;
    const told = { passed: type === "test:pass", name: data.name, nesting: data.nesting, ms };
    if (kind === "suite") told.suite = true;
    if (data.skip !== undefined) told.skip = data.skip === true ? "" : String(data.skip);
    if (data.todo !== undefined) told.skip = "to do";
    if (error !== undefined) {
      told.because = error.failureType;
      told.error = inspect(error.cause ?? error, { depth: 6, colors: false });
    }
    yield `${JSON.stringify(told)}\n`;
  }
}
