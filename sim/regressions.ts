/** Seeds that once failed, with what they found. They are part of every run, so that it is not found again. */
export interface Regression {
  readonly seed: number;
  readonly scenario: string;
  /** What went wrong, and where it was put right. */
  readonly found: string;
}

export const REGRESSIONS: readonly Regression[] = [
  { seed: 1, scenario: "power-cuts", found: "after a kill, a flush did not cover what the page cache had" },
  { seed: 135, scenario: "power-cuts", found: "a spare that was a live segment under its other name was used again" },
  { seed: 190, scenario: "power-cuts", found: "the same, and a flushed block was lost by it" },
  { seed: 81, scenario: "power-cuts", found: "siblings whose parent was removed freed what they shared" },
  { seed: 26, scenario: "failing-disk", found: "a start trusted pages that a failed fdatasync had left in the cache" },
  { seed: 76, scenario: "failing-disk", found: "the same, and the set could be opened for reading only" },
  { seed: 81, scenario: "failing-disk", found: "replay threw at a change of a version that a gap had swallowed" },
  { seed: 39, scenario: "damage", found: "a group whose head could not be read again was skipped in silence" },
  { seed: 1000718, scenario: "damage", found: "a summary was written without the checksums that could not be read" },
  { seed: 1002811, scenario: "failing-disk", found: "a read returned zeroes for a volume that was being removed" },
  { seed: 25, scenario: "lying-disk", found: "a group that a disk wrote elsewhere looked at home there" },
  { seed: 34, scenario: "lying-disk", found: "the same" },
  { seed: 146, scenario: "lying-disk", found: "the same" },
  {
    seed: 3,
    scenario: "nbd-network",
    found: "a flush on a connection to a restarted server was taken to cover writes before it",
  },
  { seed: 1000545, scenario: "overwriting", found: "the checker itself: a clone's zero told what its origin had" },
  {
    seed: 2848520779,
    scenario: "scp",
    found: "a host took a slow network for a dead one, again and again: its waits for signs of life now grow",
  },
  {
    seed: 3043427736,
    scenario: "scp",
    found:
      "a version 1 host never noticed that its server had gone while it was cut off: data ports that refuse tell it",
  },
  {
    seed: 45,
    scenario: "iscsi",
    found: "a session that replaced one that replaced another did not wait for the first: its write still ran",
  },
  {
    seed: 53,
    scenario: "iscsi",
    found: "an aborted task was used again while its R2T stood in a queue: a read ended well without data",
  },
  { seed: 258, scenario: "iscsi", found: "the same: an R2T left on another connection than its command had come on" },
  {
    seed: 180,
    scenario: "iscsi",
    found: "a command whose turn came while its data arrived was kept for a turn that never came",
  },
  {
    seed: 161,
    scenario: "iscsi",
    found: "ABORT TASK of a task that was being aborted was answered while it still ran",
  },
  {
    seed: 366,
    scenario: "iscsi",
    found: "LOGICAL UNIT RESET did not wait for commands before it that were on their way (RFC 7143 §4.2.3.3)",
  },
  { seed: 553, scenario: "iscsi", found: "the same with CLEAR TASK SET: a write was done after its end was told" },
  {
    seed: 475,
    scenario: "iscsi",
    found: "TARGET WARM RESET did not wait for commands before it that were on their way: they ran after its answer",
  },
  { seed: 736, scenario: "iscsi", found: "as 475: they were answered after it" },
  {
    seed: 21707,
    scenario: "failing-disk",
    found:
      "the checker itself: a block that a rollback in doubt would not have changed was taken to tell whether it had",
  },
  {
    seed: 500833,
    scenario: "iscsi",
    found:
      "a task whose answer was acknowledged before the line had sent it all gave its buffer away while it was sent",
  },
  {
    seed: 31841,
    scenario: "failing-disk",
    found: 'a reserve that could not be kept because a call failed, not for want of space, refused writes with "full"',
  },
  {
    seed: 61254,
    scenario: "failing-disk",
    found:
      "the checker itself: a write that failed on its way to the disk was taken to be undone when the old data was read, and the start found it",
  },
  {
    seed: 30935,
    scenario: "damage",
    found:
      "a missing segment that had been flushed was taken for a torn end: only the first group behind it was asked whether it had been synced",
  },
  {
    seed: 33519,
    scenario: "iscsi",
    found:
      "the checker itself: of two resets under way, the first was heard, and took the place of one that it had made moot",
  },
  {
    seed: 510001230,
    scenario: "iscsi",
    found:
      "a command that was aborted while it waited for its turn left its slot's name there: the slot's next command ran again after its abort",
  },
  {
    seed: 510012973,
    scenario: "bad-checkpoints",
    found: "without memory to load checksums, good data was reported as damaged",
  },
  {
    seed: 438,
    scenario: "scp-shared",
    found: "a flush of a partition did not wait for the marks of zeroed parts that another flush was syncing",
  },
  {
    seed: 552,
    scenario: "scp-shared",
    found:
      "marks of zeroed parts that a killed server had not synced were not synced by the next one: parts were zeroed again",
  },
  {
    seed: 720002270,
    scenario: "failing-disk",
    found:
      "a write beyond where a volume had grown to, since the part of the log in which it grew was missing, was mapped at another block",
  },
  {
    seed: 700050207,
    scenario: "failing-disk",
    found:
      "a sync of two segments had failed for one, and another that ended before it answered for what that had lost",
  },
  {
    seed: 900001002,
    scenario: "damage",
    found: "the checker itself: it damaged a segment that no group on the disk knew to have been flushed",
  },
  {
    seed: 124,
    scenario: "scp-shared",
    found: "what a server without power had acknowledged to an SCP host was lost, and the next flush ended well",
  },
  {
    seed: 162,
    scenario: "scp-shared",
    found: "a command for a device that was deleted reached the one that had got its unit number",
  },
  {
    seed: 700032079,
    scenario: "scp-shared",
    found: "the checker itself: a right was taken away and given back before the host had heard of the first",
  },
  {
    seed: 700045512,
    scenario: "scp-shared",
    found: "a COMPARE_WRITE of unknown fate that had been done, and read, was lost with the server's power",
  },
  {
    seed: 700051090,
    scenario: "scp-shared",
    found: "as 700045512; and an older write was repeated over what the COMPARE_WRITE had left",
  },
  {
    seed: 700002078,
    scenario: "scp-shared",
    found: "the checker itself: what was a host's own part of a device was another's when the device had grown",
  },
  {
    seed: 700078340,
    scenario: "scp-shared",
    found: "a version 1 host without units never noticed that its server had been restarted while it was cut off",
  },
  {
    seed: 700125938,
    scenario: "iscsi",
    found: "the checker itself: a reset whose session was over still waited for another host's write",
  },
  {
    seed: 700151575,
    scenario: "scp-shared",
    found: "a write of a killed host's ended session came after a write of the session that the host began then",
  },
  {
    seed: 800012487,
    scenario: "failing-disk",
    found:
      "what was flushed after a start without the newest checkpoint was garbage to the next start, which could read it",
  },
  {
    seed: 700194825,
    scenario: "scp-shared",
    found: "the checker itself: a killed host's write that the server still had was taken to be over",
  },
  {
    seed: 900058630,
    scenario: "scp-shared",
    found: "what a host had for a deleted device reached the next one, in a session that began between the two",
  },
  {
    seed: 900118959,
    scenario: "iscsi",
    found: "the checker itself: its initiator waited for ever for the answer to a logout",
  },
  {
    seed: 900039694,
    scenario: "nbd-slow",
    found: "a client that had stood still took its server for silent: what was under way there came after newer writes",
  },
  {
    seed: 1000040706,
    scenario: "nbd-slow",
    found: "as 900039694",
  },
  {
    seed: 900067464,
    scenario: "nbd-network",
    found: "each lost connection began the repetition of unflushed writes anew: none lasted to its end",
  },
  {
    seed: 900088969,
    scenario: "nbd-network",
    found: "as 900067464",
  },
  {
    seed: 1000019197,
    scenario: "iscsi",
    found:
      "CLEAR TASK SET let a waiting command begin, which heard a unit attention and was then aborted without a word",
  },
  {
    seed: 1000074023,
    scenario: "failing-disk",
    found: "a set opened for reading only answered a flush, with writes of the run before in the page cache only",
  },
  {
    seed: 1000065134,
    scenario: "failing-disk",
    found: "the checker itself: two hundred seconds on a disk that stalls were too many looks for the end of a step",
  },
  {
    seed: 1000102126,
    scenario: "bad-checkpoints",
    found: "a torn segment that had been thrown away came back with a power cut, and hid what had been flushed since",
  },
  {
    seed: 1600049097,
    scenario: "damage",
    found: "the checker itself: of a rollback that was cut short it asked a damaged block, for ever",
  },
  {
    seed: 1000129155,
    scenario: "bad-checkpoints",
    found: "the checker itself: a power cut at the end of the time for all answers left none for the start after it",
  },
  {
    seed: 1710016430,
    scenario: "scp-shared",
    found: "the checker itself: a write that was never answered had been seen by a read, and was lost with the power",
  },
];
