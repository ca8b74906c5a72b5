import { createHash, randomUUID } from "node:crypto";
import { link, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./schema.d.ts";

/** A final answer, with the headers that tell what its body is and which object it's about. */
export type Answer = { status: number; headers: Record<string, string>; body: string };
/** What a store keeps of a name. Without an answer, the request may have been sent, and may have taken effect. */
export type Entry = { name: string; key: string; fingerprint: string; answer?: Answer };
/** Keeps keys beyond the life of the process. Both functions return once a crash can't undo what they did. */
export type KeyStore = {
  /** Keeps `fresh` unless its name has an entry, and returns the name's entry. Atomic, also between processes. */
  claim(fresh: Entry): Promise<Entry>;
  /** Puts `entry` in place of its name's entry. */
  settle(entry: Entry): Promise<void>;
};
export type Options = {
  url: string;
  apiKey: string;
  /** Without one, a key lives as long as the call. */
  store?: KeyStore;
  /** Milliseconds that an attempt may take. Default: 15,000, since the service answers within 10 seconds. */
  attemptTimeout?: number;
  /** Milliseconds after which a call gives up. Default: 60,000. */
  giveUpAfter?: number;
};
/** The name stands for another request. Nothing was sent. */
export class NameReused extends Error {}
/** The request may have taken effect, and isn't sent again. Look at the object whose path is the cause, if one is. */
export class OutcomeUnknown extends Error {}
/** The outcome is unknown so far; the cause is what came last. Ask again under the same name, now or after a restart. */
export class Unanswered extends Error {}

/**
 * Gives a client for each request that changes something, by a name of your own for it, such as an order's id. However often
 * the request is made under its name, in this process or a later one, it has one key: it takes effect once, and has one answer.
 * Refusals are returned, as `error`; its `code` says what is the case. The requests throw `NameReused`, `OutcomeUnknown`,
 * `Unanswered`, and what the store throws.
 */
export function oncepay(options: Options) {
  const headers = { Authorization: `Bearer ${options.apiKey}` };
  return (name: string): Pick<Client<Keyless<paths>>, "POST" | "PUT" | "PATCH" | "DELETE"> =>
    createClient<Keyless<paths>>({ baseUrl: options.url, headers, fetch: (request) => send(options, name, request) });
}

async function send(options: Options, name: string, request: Request): Promise<Response> {
  const { store, attemptTimeout = 15_000, giveUpAfter = 60_000 } = options;
  const deadline = performance.now() + giveUpAfter;
  const body = canonical(await request.text());
  const { method, headers } = request;
  const { pathname, search } = new URL(request.url);
  const fingerprint = sha256(`${method} ${pathname}${search}\n${body}`);
  const fresh: Entry = { name, key: randomUUID(), fingerprint };
  const entry = (await store?.claim(fresh)) ?? fresh;
  if (entry.fingerprint !== fingerprint) throw new NameReused(`${name} stands for another request`);
  if (entry.answer) return result(entry.answer);
  headers.set("Idempotency-Key", entry.key);
  const isFresh = entry.key === fresh.key;
  for (let attempt = 0; ; attempt++) {
    const timeout = AbortSignal.timeout(Math.max(1, Math.ceil(Math.min(attemptTimeout, deadline - performance.now()))));
    const signal = AbortSignal.any([request.signal, timeout]);
    const outcome = await fetch(request.url, { method, headers, body: body || null, redirect: "manual", signal })
      .then((received) => judge(received, isFresh && attempt === 0))
      .catch((cause: unknown): Outcome => ({ cause, retryAfter: 0 }));
    if ("answer" in outcome) {
      if (outcome.settles) await store?.settle({ ...entry, answer: outcome.answer });
      return result(outcome.answer);
    }
    request.signal.throwIfAborted();
    // A random addition, so that clients that failed together don't come back together.
    const pause = outcome.retryAfter + Math.random() * 250 * 2 ** Math.min(attempt, 5);
    if (performance.now() + pause >= deadline)
      throw new Unanswered(`no final answer for ${name}: ask again under the same name`, { cause: outcome.cause });
    await sleep(pause, undefined, { signal: request.signal });
  }
}

type Problem = components["schemas"]["Problem"];
type Outcome = { answer: Answer; settles: boolean } | { cause: unknown; retryAfter: number };

async function judge(received: Response, isFirst: boolean): Promise<Outcome> {
  const { status, headers } = received;
  const body = await received.text();
  const kept = ["content-type", "location"].map((header) => [header, headers.get(header)]).filter(([, value]) => value);
  const answer: Answer = { status, headers: Object.fromEntries(kept), body };
  const problem = (await new Response(body).json().catch(() => undefined)) as Partial<Problem> | undefined;
  // What isn't JSON comes from a proxy, which doesn't know what has become of the request.
  const unsure = status === 408 || status === 429 || status >= 500 || (status < 400 && problem === undefined);
  const isFinal = !(problem?.retryable ?? unsure);
  // The service keeps no other refusals. They don't tell what has become of attempts before.
  const settles = isFinal && (status < 400 || status === 503 || headers.has("Idempotency-Expires"));
  if (settles || (isFinal && isFirst)) return { answer, settles };
  return { cause: answer, retryAfter: isFinal ? Infinity : milliseconds(headers.get("Retry-After") ?? "") };
}

/** Keeps each name in a file of its own, in a folder that exists, on a local POSIX file system. */
export function fileStore(folder: string): KeyStore {
  const path = (name: string) => join(folder, `${sha256(name)}.json`);
  async function write(entry: Entry, publish: (draft: string) => Promise<void>) {
    const draft = join(folder, `${randomUUID()}.draft`);
    const file = await open(draft, "wx", 0o600);
    await file.writeFile(JSON.stringify(entry)).then(() => file.sync()).finally(() => file.close());
    await publish(draft).finally(() => rm(draft, { force: true }));
    await flush(folder);
  }
  return {
    async claim(fresh) {
      const read = () => readFile(path(fresh.name), "utf8").catch(unless("ENOENT"));
      // A link appears whole, and not where another process was first.
      if (!(await read())) await write(fresh, (draft) => link(draft, path(fresh.name)).catch(unless("EEXIST")));
      const entry = JSON.parse((await read()) ?? "") as Entry;
      if (!entry.answer) await flush(folder); // The process that made the file may have died before it did.
      return entry;
    },
    settle: (entry) => write(entry, (draft) => rename(draft, path(entry.name))),
  };
}

/** The API without `Idempotency-Key`, which isn't the caller's to send. */
type Keyless<P> = { [Path in keyof P]: { [Method in keyof P[Path]]: WithoutKey<P[Path][Method]> } };
type WithoutKey<O> = O extends { parameters: { header: infer H } & infer Q }
  ? Omit<O, "parameters"> & { parameters: Omit<Q, "header"> & { header?: Omit<H, "Idempotency-Key"> } }
  : O;

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
const result = ({ status, headers, body }: Answer) => {
  if (status !== 503) return new Response(body || null, { status, headers });
  // No other 503 is final.
  throw new OutcomeUnknown("the outcome is unknown: look before you do anything else", { cause: headers["location"] });
};
const sorted = (_: string, value: unknown) =>
  value instanceof Object && !Array.isArray(value) ? Object.fromEntries(Object.entries(value).sort()) : value;
/** One spelling for equal bodies. */
const canonical = (body: string) => body && JSON.stringify(JSON.parse(body), sorted);
/** The pause of a `Retry-After`: seconds, or an HTTP date. */
const milliseconds = (after: string) =>
  Math.max(0, (/^\d+$/.test(after) ? Number(after) * 1000 : Date.parse(after) - Date.now()) || 0);
const unless = (code: string) => (error: NodeJS.ErrnoException) => {
  if (error.code !== code) throw error;
};
const flush = (folder: string) => open(folder).then((directory) => directory.sync().finally(() => directory.close()));
