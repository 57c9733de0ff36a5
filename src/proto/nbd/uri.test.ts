import assert from "node:assert/strict";
import { test } from "node:test";
import { Refusal } from "#base/refusal";
import { formatNbdUri, parseNbdUri } from "./uri.ts";

const nameOf = (text: string): string => parseNbdUri(text).exportName;

test("the document's table of export names holds", () => {
  assert.equal(nameOf("nbd://example.com/disk"), "disk");
  assert.equal(nameOf("nbd+unix:///disk?socket=sock"), "disk");
  assert.equal(nameOf("nbd://example.com/"), "");
  assert.equal(nameOf("nbd://example.com"), "");
  assert.equal(nameOf("nbd://example.com//disk"), "/disk");
  assert.equal(nameOf("nbd://example.com/hello%20world"), "hello world");
  assert.equal(nameOf("nbd://example.com/db@monday"), "db@monday");
  assert.equal(nameOf("nbd://example.com/a+b"), "a+b");
});

test("addresses: the port has a default, IPv6 stands in brackets, no host is this one", () => {
  assert.deepEqual(parseNbdUri("nbd://h/x").address, { host: "h", port: 10809 });
  assert.deepEqual(parseNbdUri("nbd://h:99/x").address, { host: "h", port: 99 });
  assert.deepEqual(parseNbdUri("nbd://[::1]:99/x").address, { host: "::1", port: 99 });
  assert.deepEqual(parseNbdUri("nbd:///x").address, { host: "localhost", port: 10809 });
  assert.deepEqual(parseNbdUri("nbd+unix:///?socket=/tmp/a%20b").address, { path: "/tmp/a b" });
  assert.deepEqual(parseNbdUri("nbd+unix:///?socket=%00/abstract").address, { path: "\0/abstract" });
});

test("TLS: a must with nbds, with keys or certificates", () => {
  assert.equal(parseNbdUri("nbd://h/x").tls, undefined);
  assert.deepEqual(parseNbdUri("nbds://alice@h/x?tls-psk-file=/etc/k").tls, {
    type: "psk",
    user: "alice",
    certificates: undefined,
    pskFile: "/etc/k",
    hostname: "h",
    verifyPeer: true,
  });
  assert.equal(parseNbdUri("nbds+unix://al%69ce@/x?socket=/s&tls-psk-file=/k").tls?.user, "alice");
  const unix = parseNbdUri("nbds+unix:///x?socket=/s&tls-certificates=/pki&tls-hostname=db.example&tls-verify-peer=0");
  assert.deepEqual(unix.tls, {
    type: "x509",
    user: undefined,
    certificates: "/pki",
    pskFile: undefined,
    hostname: "db.example",
    verifyPeer: false,
  });
});

test("what is not understood is refused in words", () => {
  for (const [text, why] of [
    ["http://h/x", /scheme is "http"/],
    ["nbd:h", /"\/\/" must follow/],
    ["not a uri", /does not parse/],
    ["nbd+unix:///x", /socket=PATH/],
    ["nbd+unix://h/x?socket=/s", /no host/],
    ["nbd://h/x?socket=/s", /nbd\+unix/],
    ["nbd://h/x?color=red", /"color" is not known/],
    ["nbd+unix:///x?socket=/a&socket=/b", /twice/],
    ["nbd://h/x?tls-psk-file=/k", /needs the scheme nbds/],
    ["nbd://u@h/x", /a user needs the scheme nbds/],
    ["nbds://u:secret@h/x?tls-psk-file=/k", /password/],
    ["nbds://h/x?tls-type=psk", /needs tls-psk-file/],
    ["nbds://h/x?tls-type=x509&tls-psk-file=/k", /needs tls-type=psk/],
    ["nbds://h/x?tls-type=anon", /Anonymous/],
    ["nbds://h/x?tls-type=best", /there are x509 and psk/],
    ["nbds://h/x?tls-verify-peer=yes", /0 or 1/],
    ["nbd://h/%ff", /UTF-8/],
    ["nbd://h/a%00b", /NUL/],
    ["nbd://h/x#y", /fragment/],
    ["nbd://h:0/x", /port 0/],
    ["nbd://h:99999/x", /port 99999/],
    ["nbd://h:1:2/x", /host\[:port\]|host/],
    ["nbd://h/a b", /percent-encoded/],
    [`nbd://h/${"n".repeat(4097)}`, /longer than 4096/],
    [`nbd+unix:///?socket=/${"p".repeat(107)}`, /longer than 107/],
  ] as const)
    assert.throws(
      () => parseNbdUri(text),
      (error) => error instanceof Refusal && why.test(error.message),
      text,
    );
});

test("what is formatted reads back", () => {
  for (const [address, name] of [
    [{ host: "127.0.0.1", port: 10809 }, "db@monday"],
    [{ host: "::1", port: 7 }, "a/b c?d#e%f"],
    [{ path: "/tmp/a b?c" }, ""],
  ] as const) {
    const { exportName, address: back } = parseNbdUri(formatNbdUri(address, name));
    assert.deepEqual([back, exportName], [address, name]);
  }
});
