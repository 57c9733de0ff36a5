/** Opens a data socket, and goes on under TLS where the session does. */
import type { Effect } from "#base/task";
import type { Millis } from "#base/units";
import { type Env, isNetError, type Line, type NetError, type Tls } from "#env/env";
import { StoryLine } from "#env/story-line";
import { askForTls, type StartTlsEnd } from "#proto/scp/start-tls";
import type { LinkAddress } from "./scp-link.ts";

/** `onDialled` is told how long TCP took to connect: a network's round trip, whatever comes after it. */
export function dialData(
  env: Env,
  to: LinkAddress,
  tls: Tls | undefined,
  timeoutMs: Millis,
  onDialled: (took: Millis) => void,
): Effect<Line | NetError> {
  return (resume) => {
    const began = env.clock.now();
    env.net.dial(to, { timeoutMs })((line) => {
      if (isNetError(line)) return resume(line);
      onDialled(env.clock.now() - began);
      if (tls === undefined) resume(line);
      else startTls(env, line, tls, timeoutMs)(resume);
    });
  };
}

function startTls(env: Env, line: Line, tls: Tls, timeoutMs: Millis): Effect<Line | NetError> {
  return (resume) => {
    const alarm = env.clock.alarm(() => {
      alarm.at = Number.POSITIVE_INFINITY;
      story.close();
    });
    alarm.at = env.clock.now() + timeoutMs;
    const story = new StoryLine<StartTlsEnd>(env.memory, line, {
      onEnd: (end) => {
        alarm.at = Number.POSITIVE_INFINITY;
        if (end === "start-tls") env.net.secure(line, tls)(resume);
        else resume({ fault: "tls-failed", detail: `the server answered the wish for TLS with "${end}"` });
      },
      keeps: (end) => end === "start-tls",
    });
    story.start(askForTls((bytes) => story.send(bytes)));
  };
}
