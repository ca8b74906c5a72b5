// The counts and measurements of a run, and those that make it fail.
//
// k6 keeps no samples for the summary, only sums and percentiles per metric and per tag that a threshold names. So each
// latency is tagged with one of a fixed number of slices of the run's time, and each slice gets a threshold without a
// condition. That is enough to draw the run over time afterwards, however long it is. The outcomes of requests and what tells
// whether an instance is there are counted in the same way.

import exec from 'k6/execution';
import { Counter, Gauge, Trend } from 'k6/metrics';
import { urls } from './settings.js';

/** Number of time slices in the report. The last one has all that comes later. */
export const SLICES = 60;
/** Number of slices in the time that a run is meant to take. Some of its requests end later, above all after a crash. */
const SLICES_PLANNED = 40;
/** Counts that both the client and the ledger keep. Amounts are in cents. */
export const BOOKED = ['charges', 'journal entries', 'captured', 'refunded', 'paid out'];
/** Kinds of violations. */
export const VIOLATIONS = {
  executed_twice: 'keys executed more than once',
  never_executed: 'keys answered as replays that nobody executed',
  answers_differ: 'answers to one key that differ',
  unanswered: 'requests without a final answer',
  charges_per_key: 'keys with another number of charges than one',
  events: "the processor's events that aren't kept as applied",
  broken_off: 'iterations that broke off',
  ledger: 'disagreements in the ledger',
  audit: 'checks of the audit that failed',
};

const latency = new Trend('latency', true);
const elapsed = new Gauge('elapsed', true);
const attempts = new Counter('attempts');
const retries = new Counter('retries');
const keys = new Counter('keys');
const unseen = new Counter('unseen_executions');
const unexplained = new Counter('unexplained_executions');
const unexpected = new Counter('unexpected');
const violations = new Counter('violations');
const duplicates = new Counter('duplicates');
const client = new Counter('client');
const ledger = new Counter('ledger');
const difference = new Counter('difference');
const ledgerChecks = new Counter('ledger_checks');
const answered = new Trend('answered', true);
const refusedConnection = new Trend('refused_connection', true);

/**
 * How an attempt can end: with a final answer, which is the first one or a replay; 409 to a request that is still running; another
 * final 4xx; 503; another 5xx; or without an answer.
 */
export const OUTCOMES = ['executed', 'replayed', 'in progress', 'refused', 'unavailable', 'other 5xx', 'no answer'];
// A metric for each: k6 compares each sample with all the tags that its metric is counted by.
const outcomes = Object.fromEntries(OUTCOMES.map((of) => [of, new Counter(outcomeMetric(of))]));

/** Length of a slice, in milliseconds; set by `options`. */
export let sliceMs = 1000;

/**
 * Returns the options of a script: `scenarios` that take `runSeconds` together, the names of the `series` in its report,
 * and the names `compared` by `compare`. Every virtual user must call it, which happens if a script calls it on
 * loading.
 */
export function options({ scenarios, runSeconds, series, compared = [] }) {
  sliceMs = (runSeconds * 1000) / SLICES_PLANNED;
  const none = ['count==0'];
  const thresholds = {
    violations: none,
    unexpected: none,
    duplicates: none,
    // A value below zero means more executions than keys.
    unseen_executions: ['count>=0'],
    // A value above zero means keys that nobody was told to have executed, though no answer was lost.
    unexplained_executions: ['count<=0'],
    // A run that checked nothing has proved nothing.
    ledger_checks: ['count>0'],
    'client{of:charges}': ['count>0'],
  };
  const shown = [];
  [...BOOKED, ...compared].forEach((of) => (thresholds[`difference{of:${of}}`] = none));
  BOOKED.forEach((of) => {
    shown.push(`client{of:${of}}`, `ledger{of:${of}}`);
  });
  Object.keys(VIOLATIONS).forEach((kind) => shown.push(`violations{kind:${kind}}`));
  series.forEach((name) => shown.push(`latency{series:${name}}`));
  for (let slice = 0; slice < SLICES; slice++) {
    series.forEach((name) => shown.push(`latency{series:${name},slice:${slice}}`));
    OUTCOMES.forEach((of) => shown.push(`${outcomeMetric(of)}{slice:${slice}}`));
    urls.forEach((_, instance) => {
      shown.push(`answered{instance:${instance},slice:${slice}}`, `refused_connection{instance:${instance},slice:${slice}}`);
    });
  }
  shown.forEach((name) => (thresholds[name] = thresholds[name] || []));
  return {
    scenarios,
    thresholds,
    // The caller handles a missing answer, instead of k6 logging it.
    throw: true,
    setupTimeout: '5m',
    // The check reads everything that the run has written.
    teardownTimeout: '30m',
    summaryTrendStats: ['min', 'med', 'p(95)', 'p(99)', 'max', 'count'],
  };
}

export function countAttempt(isRetry) {
  attempts.add(1);
  if (isRetry) {
    retries.add(1);
  }
}

/** Counts a key that is sent for the first time. */
export function countKey() {
  keys.add(1);
  unseen.add(1);
  unexplained.add(1);
}

/** Counts an answer that may have been lost, and with it the news of an execution. */
export function countLost() {
  unexplained.add(-1);
}

/** Counts how an attempt ended: one of `OUTCOMES`. */
export function countOutcome(outcome) {
  outcomes[outcome].add(1, sliceNow());
  if (outcome === 'executed') {
    unseen.add(-1);
    unexplained.add(-1);
  }
}

/** Returns the name of the metric that counts an outcome. */
export function outcomeMetric(outcome) {
  return `outcome_${outcome.replace(/ /g, '_')}`;
}

/** Adds a latency to a series of the report. */
export function measure(series, ms) {
  const nowMs = exec.instance.currentTestRunDuration;
  elapsed.add(nowMs);
  latency.add(ms, { series, ...sliceNow() });
}

/** Records that an instance has answered, or that nobody listens at its address. */
export function sawInstance(instance, isThere) {
  const { slice } = sliceNow();
  if (slice !== undefined) {
    const nowMs = exec.instance.currentTestRunDuration;
    (isThere ? answered : refusedConnection).add(nowMs, { instance: String(instance), slice });
  }
}

/** Returns the tag for what happens now. There is none in the check at the end, where k6 doesn't tell the time of the run. */
function sliceNow() {
  try {
    return { slice: String(Math.min(Math.floor(exec.instance.currentTestRunDuration / sliceMs), SLICES - 1)) };
  } catch (_) {
    return {};
  }
}

/** Adds to the client's books: its requests and the answers it got. `of` is one of `BOOKED`. */
export function clientCounts(of, count) {
  client.add(count, { of });
  difference.add(count, { of });
}

/**
 * Adds to the ledger's books, at the end. The check can't read the counts of the virtual users, since k6 lets nobody
 * read a metric. But a counter to which they add and from which it subtracts is zero if both agree.
 */
export function ledgerCounts(of, count) {
  ledger.add(count, { of });
  difference.add(-count, { of });
}

/**
 * Compares numbers of several virtual users, who can't ask each other, with the numbers of the check at the end. The
 * check passes the same numbers with the sign turned. They are integers, and small enough for an exact sum.
 */
export function compare(of, number) {
  difference.add(number, { of });
}

/** Makes an iteration of a virtual user from `work`. An exception is a violation; k6 would only log it. */
export function iteration(work) {
  return async (data) => {
    try {
      await work(data);
    } catch (error) {
      violation('broken_off', error.stack || error);
    }
  };
}

/** Counts duplicates of something that must be unique. */
export function countDuplicates(count) {
  duplicates.add(count);
}

/** Records that the check went through to its end. */
export function ledgerWasChecked() {
  ledgerChecks.add(1);
}

/** Records a violation. `kind` is one of `VIOLATIONS`. */
export function violation(kind, message) {
  violations.add(1, { kind });
  tell(`${kind}: ${message}`);
}

/** Records an answer that breaks the contract. */
export function unexpectedAnswer(message) {
  unexpected.add(1);
  tell(`unexpected answer: ${message}`);
}

/** Maximum number of messages per virtual user: a broken service would fill the log with traces. */
const MESSAGES_MAX = 2;
let messages = 0;

function tell(message) {
  messages += 1;
  if (messages <= MESSAGES_MAX) {
    console.error(message);
  }
}
