/** A promise was broken: what the checkers throw. Everything else that is thrown is a bug as well, of the product or of the simulator. */
export class Violation extends Error {
  override readonly name = "Violation";
}
