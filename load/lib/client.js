// A client as it should be: sends the same request under the same key until there is a final answer, with a timeout for
// each attempt and growing, jittered pauses in between. And clients as they are: impatient ones that hang up early,
// don't ask the service to wait, and come back at once.

import http from 'k6/http';
import {
  countAttempt,
  countKey,
  countLost,
  countOutcome,
  measure,
  sawInstance,
  unexpectedAnswer,
  violation,
} from './metrics.js';
import { urls } from './settings.js';

/** Maximum time to get a final answer. Above the lease (30 s), after which a request whose instance died goes on. */
const GIVE_UP_MS = 90000;
const TIMEOUT_MS = 10000;
const PAUSE_MIN_MS = 50;
const PAUSE_MAX_MS = 5000;

/** Waits as docs/clients.md tells clients to. */
export const steady = {
  timeoutMs: () => TIMEOUT_MS,
  pauseMs: (attempt, retryAfterMs) => retryAfterMs + between(0.5, 1) * backoff(attempt),
  headers: {},
};

/**
 * Returns a client of a storm, drawn anew each time. Half of these clients hang up within milliseconds, in the middle
 * of the request; later attempts are given more time, or they'd never end. Some ask the service to wait for the first
 * request; some ignore `Retry-After`.
 */
export function impatient() {
  const firstTimeoutMs = Math.random() < 0.5 ? TIMEOUT_MS : between(1, 60);
  const isDeaf = Math.random() < 0.5;
  return {
    timeoutMs: (attempt) => Math.min(Math.ceil(firstTimeoutMs * 3 ** attempt), TIMEOUT_MS),
    pauseMs: (attempt, retryAfterMs) => (isDeaf ? 0 : retryAfterMs) + between(0, 1) * backoff(attempt),
    headers: Math.random() < 0.3 ? { Prefer: 'wait=5' } : {},
  };
}

/** A request that changes something, with the facts known about its answers. All copies of it share this object. */
export class Request {
  /** `series` is the series of its latencies in the report. Without it, they go to `executed` or `replayed`. */
  constructor({ method = 'POST', path, name = path, key, body, expect = 201, series, isTimed = true }) {
    Object.assign(this, { method, path, name, key, expect, series, isTimed });
    this.text = JSON.stringify(body);
    this.isCounted = false;
    this.executions = 0;
    /** True if an answer may have been lost on the way to us, so that an execution went unseen. */
    this.anyLost = false;
    this.first = null;
  }

  /** Returns the headers of one attempt. */
  headers() {
    return headersOf(this);
  }

  /** Records a final answer. Each must equal the first one. */
  note(answer) {
    if (answer.status !== this.expect) {
      unexpectedAnswer(`${this.method} ${this.path} ${this.key}: ${answer.brief()}`);
    }
    const [was, is] = [this.first || answer, answer];
    this.first = was;
    if (was.status !== is.status || was.text !== is.text || was.location !== is.location) {
      violation('answers_differ', `${this.key}: ${was.brief()} and ${is.brief()}`);
    }
    if (is.isReplay === undefined) {
      unexpectedAnswer(`${this.key}: no Idempotent-Replayed with ${is.brief()}`);
    }
    if (is.isReplay === false) {
      this.executions += 1;
      if (this.executions > 1) {
        violation('executed_twice', `${this.key}: ${this.executions} answers say that they are the first`);
      }
    }
  }

  /** Records that an answer may have been lost. */
  lose() {
    this.anyLost = true;
    countLost();
  }

  /** Checks, once all copies have their answers, that one of the answers was the first. */
  settle() {
    if (this.first && this.executions === 0 && !this.anyLost) {
      violation('never_executed', `${this.key}: all of its answers are replays`);
    }
  }
}

/**
 * Talks to the service as one merchant or operator, or without an API key as the processor. Draws an instance for each
 * request, and goes to the next one with each further attempt.
 */
export class Client {
  constructor(apiKey) {
    this.apiKey = apiKey;
  }

  /** Sends a request until its answer is final. If there is none in time, records a violation and returns null. */
  async execute(request, patience = steady) {
    if (!request.isCounted) {
      request.isCounted = true;
      countKey();
    }
    const [giveUpAt, instance] = [Date.now() + GIVE_UP_MS, anyInstance()];
    for (let attempt = 0; Date.now() < giveUpAt; attempt++) {
      const answer = await this.attempt(request, patience, attempt, instance + attempt);
      if (answer && answer.isFinal) {
        request.note(answer);
        return answer;
      }
      await pause(patience.pauseMs(attempt, answer ? answer.retryAfterMs : 0));
    }
    violation('unanswered', `${request.method} ${request.path} ${request.key}`);
    return null;
  }

  /** Sends a request once. Returns null if there is no answer. */
  async attempt(request, patience = steady, attempt = 0, instance = anyInstance()) {
    countAttempt(attempt > 0);
    const { method, path, text, name } = request;
    const headers = { ...request.headers(), ...patience.headers };
    const answer = await this.send(method, path, text, headers, {
      name,
      instance,
      timeoutMs: patience.timeoutMs(attempt),
    });
    if (answer === null) {
      request.lose();
      countOutcome('no answer');
      return null;
    }
    if (answer.status >= 500) {
      request.lose();
    }
    if (answer.status === 503) {
      countOutcome('unavailable');
    } else if (answer.status >= 500) {
      countOutcome('other 5xx');
      unexpectedAnswer(`${request.key}: ${answer.brief()}`);
    } else if (!answer.isFinal) {
      countOutcome('in progress');
    } else if (answer.isReplay !== undefined) {
      const outcome = answer.isReplay ? 'replayed' : 'executed';
      countOutcome(outcome);
      // A client that asked for waiting has waited for another client's request.
      if (request.isTimed && !patience.headers.Prefer) {
        measure(request.series || outcome, answer.ms);
      }
    } else {
      countOutcome('refused');
    }
    return answer;
  }

  /** Sends a request that must be refused at once. */
  async refused(request, status, code) {
    const answer = await this.attempt(request);
    if (answer && answer.status < 500 && (answer.status !== status || answer.json().code !== code)) {
      unexpectedAnswer(`${request.method} ${request.path} ${request.key}: ${answer.brief()} and not ${code}`);
    }
  }

  /** Reads an object, with retries. Measures the latency if a series is given. */
  async read(path, series) {
    const answer = await this.insist('GET', path, null, {}, path.replace(/\?.*/, '').replace(/_[0-9a-f]{32}/g, '_…'));
    if (series) {
      countAttempt(false);
      measure(series, answer.ms);
    }
    return answer.json();
  }

  /** Sends a request of the script that isn't part of the load, until it succeeds. Throws if it doesn't. */
  async insist(method, path, body, headers, name = path) {
    const answer = await this.ask(method, path, body, headers, name);
    if (answer.status >= 300) {
      throw new Error(`${method} ${path}: ${answer.brief()}`);
    }
    return answer;
  }

  /** Sends a request that isn't part of the load, until it's answered. Throws if it isn't. */
  async ask(method, path, body, headers, name) {
    const [giveUpAt, instance] = [Date.now() + GIVE_UP_MS, anyInstance()];
    for (let attempt = 0; Date.now() < giveUpAt; attempt++) {
      const answer = await this.send(method, path, body, headers, {
        name,
        instance: instance + attempt,
        timeoutMs: 60000,
      });
      if (answer && answer.isFinal) {
        return answer;
      }
      await pause(steady.pauseMs(attempt, answer ? answer.retryAfterMs : 0));
    }
    throw new Error(`${method} ${path}: no answer`);
  }

  /** Reads a list page by page, to its end or until `isEnough` accepts a page. */
  async all(path, isEnough = () => false) {
    const items = [];
    for (let page = { has_more: true }; page.has_more;) {
      const after = items.length === 0 ? '' : `&starting_after=${items[items.length - 1].id}`;
      page = await this.read(`${path}${path.includes('?') ? '&' : '?'}limit=100${after}`);
      items.push(...page.data);
      if (isEnough(page.data)) {
        break;
      }
    }
    return items;
  }

  /** Sends one HTTP request. Returns null if there is no answer. */
  async send(method, path, body, headers, { name, instance = anyInstance(), timeoutMs = TIMEOUT_MS }) {
    const number = instance % urls.length;
    const params = {
      headers: this.apiKey ? { ...headers, Authorization: `Bearer ${this.apiKey}` } : headers,
      tags: { name },
      timeout: timeoutMs,
    };
    try {
      const response = await http.asyncRequest(method, `${urls[number]}${path}`, body, params);
      sawInstance(number, true);
      // The service never sends these: a proxy does if it got no answer, as when the instance has died.
      return [502, 504].includes(response.status) ? null : new Answer(response);
    } catch (error) {
      if (/connection refused/.test(error)) {
        sawInstance(number, false);
      }
      return null;
    }
  }
}

class Answer {
  constructor(response) {
    this.status = response.status;
    this.text = response.body;
    this.request = response.request;
    this.ms = response.timings.duration;
    this.location = response.headers.Location;
    this.isReplay = { true: true, false: false }[response.headers['Idempotent-Replayed']];
    this.retryAfterMs = Number(response.headers['Retry-After'] || 0) * 1000;
    this.isFinal = this.status < 500 && !(this.status === 409 && this.json().retryable);
  }

  json() {
    return JSON.parse(this.text);
  }

  /** Returns enough of the answer to tell it from others. */
  brief() {
    return `${this.status} ${this.text.slice(0, 150)}`;
  }
}

/** Sends `copies` of a request at once, each by a client of its own, until all have their answer. Returns the first. */
export async function storm(client, request, copies, patience = impatient) {
  await Promise.all(Array.from({ length: copies }, () => client.execute(request, patience())));
  request.settle();
  return request.first;
}

/** Returns the headers of a request. */
export function headersOf({ key }) {
  return { 'Content-Type': 'application/json', ...(key === undefined ? {} : { 'Idempotency-Key': key }) };
}

function anyInstance() {
  return Math.floor(Math.random() * urls.length);
}

/** Waits without blocking the other work of this virtual user. */
export function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Runs `work` for each item, `width` at a time. Returns the results in the order of the items. */
export async function together(width, items, work) {
  const results = [];
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const i = next++;
      results[i] = await work(items[i], i);
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
  return results;
}

/** Returns a random number between two bounds. */
export function between(low, high) {
  return low + Math.random() * (high - low);
}

function backoff(attempt) {
  return Math.min(PAUSE_MIN_MS * 2 ** attempt, PAUSE_MAX_MS);
}
