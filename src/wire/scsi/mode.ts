/**
 * Mode pages: SPC-4 §7.5, SBC-3 §6.5. There is one set per unit, shared by all nexuses, not saved. What can be changed:
 * the write cache, the sense format, the software write protection, and reporting of provisioning thresholds.
 */
import { layout } from "#base/layout";

export const ModePage = {
  ERROR_RECOVERY: 0x01,
  CACHING: 0x08,
  CONTROL: 0x0a,
  INFORMATIONAL_EXCEPTIONS: 0x1c,
  ALL: 0x3f,
} as const;
export const ModeControl = { CURRENT: 0, CHANGEABLE: 1, DEFAULT: 2, SAVED: 3 } as const;

export class ModeState {
  writeCache = true;
  descriptorSense = false;
  softwareWriteProtect = false;
  /** SPC-4 §7.5.11, DEXCPT: exceptions are off when set; then there are no threshold attentions. */
  exceptionsOff = false;
}

const RECOVERY = layout({
  code: 1,
  length: 1,
  flags: 1,
  readRetries: 1,
  reserved: 4,
  writeRetries: 1,
  reserved2: 1,
  timeLimit: 2,
});
const CACHING = layout({ code: 1, length: 1, flags: 1, rest: 17 });
const CONTROL = layout({
  code: 1,
  length: 1,
  flags: 1,
  queue: 1,
  protect: 1,
  autoload: 1,
  obsolete: 2,
  busyTimeout: 2,
  selfTest: 2,
});
const EXCEPTIONS = layout({ code: 1, length: 1, flags: 1, method: 1, interval: 4, count: 4 });
const WCE = 0x04;
const D_SENSE = 0x04;
const SWP = 0x08;
/** Unrestricted reordering: commands in flight at once may be done in any order. */
const QAM_UNRESTRICTED = 0x10;
const DEXCPT = 0x08;
/** Thresholds come as unit attentions. */
const MRIE_UNIT_ATTENTION = 0x02;
/** What `code` says in MODE SELECT besides the page: saving is not supported, subpages neither. */
const CODE_MASK = 0x3f;
const SUBPAGE = 0x40;

type PageWriter = (mode: ModeState, changeable: boolean) => Uint8Array;
const PAGES: readonly (readonly [code: number, write: PageWriter])[] = [
  [
    ModePage.ERROR_RECOVERY,
    () => {
      const bytes = new Uint8Array(RECOVERY.byteLength);
      bytes[RECOVERY.code] = ModePage.ERROR_RECOVERY;
      bytes[RECOVERY.length] = RECOVERY.byteLength - RECOVERY.flags;
      return bytes;
    },
  ],
  [
    ModePage.CACHING,
    (mode, changeable) => {
      const bytes = new Uint8Array(CACHING.byteLength);
      bytes[CACHING.code] = ModePage.CACHING;
      bytes[CACHING.length] = CACHING.byteLength - CACHING.flags;
      bytes[CACHING.flags] = changeable || mode.writeCache ? WCE : 0;
      return bytes;
    },
  ],
  [
    ModePage.CONTROL,
    (mode, changeable) => {
      const bytes = new Uint8Array(CONTROL.byteLength);
      bytes[CONTROL.code] = ModePage.CONTROL;
      bytes[CONTROL.length] = CONTROL.byteLength - CONTROL.flags;
      bytes[CONTROL.flags] = changeable || mode.descriptorSense ? D_SENSE : 0;
      bytes[CONTROL.queue] = changeable ? 0 : QAM_UNRESTRICTED;
      bytes[CONTROL.protect] = changeable || mode.softwareWriteProtect ? SWP : 0;
      return bytes;
    },
  ],
  [
    ModePage.INFORMATIONAL_EXCEPTIONS,
    (mode, changeable) => {
      const bytes = new Uint8Array(EXCEPTIONS.byteLength);
      bytes[EXCEPTIONS.code] = ModePage.INFORMATIONAL_EXCEPTIONS;
      bytes[EXCEPTIONS.length] = EXCEPTIONS.byteLength - EXCEPTIONS.flags;
      bytes[EXCEPTIONS.flags] = changeable || mode.exceptionsOff ? DEXCPT : 0;
      bytes[EXCEPTIONS.method] = changeable ? 0 : MRIE_UNIT_ATTENTION;
      return bytes;
    },
  ],
];

/** The page `code`, or all of them; undefined when there is no such page. */
export function encodeModePages(code: number, control: number, mode: ModeState): Uint8Array | undefined {
  const from = control === ModeControl.DEFAULT ? new ModeState() : mode;
  const found = PAGES.filter(([page]) => code === ModePage.ALL || code === page);
  if (found.length === 0) return undefined;
  return Uint8Array.from(found.flatMap(([, write]) => [...write(from, control === ModeControl.CHANGEABLE)]));
}

/**
 * Applies the pages of a MODE SELECT to `mode`. Returns the offset of the first byte that cannot be so (then nothing
 * has been changed), "length" when a page is cut short, or undefined.
 */
export function applyModePages(pages: Uint8Array, mode: ModeState): number | "length" | undefined {
  const next = Object.assign(new ModeState(), mode);
  for (let at = 0; at < pages.length; ) {
    const code = pages[at]! & CODE_MASK;
    const write = PAGES.find(([page]) => page === code)?.[1];
    if (write === undefined || (pages[at]! & SUBPAGE) !== 0) return at;
    const changeable = write(next, true);
    const current = write(next, false);
    if (at + 1 >= pages.length || pages[at + 1] !== current[1]) return at + 1 < pages.length ? at + 1 : "length";
    if (at + current.length > pages.length) return "length";
    for (let index = 2; index < current.length; index++)
      if (((pages[at + index]! ^ current[index]!) & ~changeable[index]!) !== 0) return at + index;
    if (code === ModePage.CACHING) next.writeCache = (pages[at + CACHING.flags]! & WCE) !== 0;
    if (code === ModePage.CONTROL) {
      next.descriptorSense = (pages[at + CONTROL.flags]! & D_SENSE) !== 0;
      next.softwareWriteProtect = (pages[at + CONTROL.protect]! & SWP) !== 0;
    }
    if (code === ModePage.INFORMATIONAL_EXCEPTIONS) next.exceptionsOff = (pages[at + EXCEPTIONS.flags]! & DEXCPT) !== 0;
    at += current.length;
  }
  Object.assign(mode, next);
  return undefined;
}
