/**
 * Deliberate mistakes, for the simulator to find: a test of the tests. In a product nothing is ever armed; where one
 * is, exactly one place of the code does the wrong thing. `sim/canaries.ts` lists them with what each one breaks.
 */
export const canary: { armed: string } = { armed: "" };
