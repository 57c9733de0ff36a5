/**
 * Names of volumes, snapshots and hosts. They appear in URLs, file names, export names and shell commands, so they are
 * made of characters that need no quoting in any of these.
 */
import { Refusal } from "./refusal.ts";

export const NAME_LENGTH_MAX = 100;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;

/** True for 1 to 100 of A-Z a-z 0-9 . _ - of which the first is a letter or digit. */
export const isName = (text: string): boolean => text.length <= NAME_LENGTH_MAX && NAME.test(text);

/** The same with a refusal that says what is wrong. @throws Refusal bad-request */
export function checkName(what: "volume" | "snapshot" | "host" | "drive" | "partition", text: string): string {
  if (isName(text)) return text;
  throw new Refusal(
    "bad-request",
    `"${text}" cannot be the name of a ${what}`,
    `A name has 1 to ${NAME_LENGTH_MAX} of A-Z a-z 0-9 . _ - and begins with a letter or digit.`,
  );
}

/** "db@monday" in its two parts. @throws Refusal bad-request */
export function parseSnapshotName(text: string): { volume: string; snapshot: string } {
  const [volume = "", snapshot, ...rest] = text.split("@");
  if (snapshot === undefined || rest.length > 0)
    throw new Refusal("bad-request", `"${text}" is not the name of a snapshot`, "Snapshots are named VOLUME@SNAPSHOT.");
  return { volume: checkName("volume", volume), snapshot: checkName("snapshot", snapshot) };
}
