/**
 * How each front is made. A new front is one line here and one in `#admin/fronts`. A lane loads those that it is to run:
 * the others would cost time at the start and memory for ever. NBD runs in every lane.
 */
import type { FrontMaker } from "./front.ts";
import { makeNbdFront } from "./nbd.ts";

const MAKERS: Readonly<Record<string, () => Promise<FrontMaker>>> = {
  nbd: async () => makeNbdFront,
  scp: async () => (await import("./scp.ts")).makeScpFront,
  iscsi: async () => (await import("./iscsi.ts")).makeIscsiFront,
};

/** The makers of the fronts with these names; names that there are not are left out. */
export async function loadFronts(names: readonly string[]): Promise<Record<string, FrontMaker>> {
  const known = names.filter((name) => name in MAKERS);
  return Object.fromEntries(await Promise.all(known.map(async (name) => [name, await MAKERS[name]!()] as const)));
}
