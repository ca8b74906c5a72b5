// Proves that each of the processor's events takes effect once, however often and in whatever order it's delivered.
// Charges, a refund and payouts are made first, in sets with ten events each: disputes that are opened, won and lost, a
// refund that comes back, pending charges that are decided, payouts that arrive and come back, a settlement. Then 32
// virtual users deliver each event three times, signed and in random order, to all instances, if several are given.
// Different users make the three deliveries of one event, so a dispute's end often comes before its beginning, and two
// deliveries may be under way at once. A delivery answered 409 or 503 is repeated. Charges go on meanwhile.
//
// In the end, no event may still wait. Each is delivered once more and must get the same bytes as before. Each must be
// stored as applied, and the ledger must agree to the cent.
//
// You can kill an instance during the run.
//
//   k6 run load/webhook_storm.js  EVENTS=10000  CLIENTS=32  MERCHANTS=4

import crypto from 'k6/crypto';
import encoding from 'k6/encoding';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { Client, Request, pause, steady, together } from './lib/client.js';
import { checkLedger } from './lib/ledger.js';
import { newMerchants } from './lib/merchant.js';
import { clientCounts, compare, iteration, options as optionsOf, violation } from './lib/metrics.js';
import { CURRENCY, amount, cents } from './lib/money.js';
import { pay } from './lib/payments.js';
import { dice, newKey, plan, settlementOf } from './lib/plan.js';
import { hasProcessor, number, operatorKey, webhookSecret } from './lib/settings.js';
import { summary } from './lib/summary.js';

/** The events of a set, by the kind of charge: the event's type, and the object of the charge that it names. */
const TOLD = [
  ['dispute_won', 'dispute.opened', 'charge'],
  ['dispute_won', 'dispute.won', 'charge'],
  ['dispute_won', 'payout.paid', 'payout'],
  ['dispute_lost', 'dispute.opened', 'charge'],
  ['dispute_lost', 'dispute.lost', 'charge'],
  ['dispute_lost', 'payout.failed', 'payout'],
  ['refund_failed', 'refund.failed', 'refund'],
  ['async_approved', 'charge.succeeded', 'charge'],
  ['async_approved', 'settlement.paid', 'charge'],
  ['async_declined', 'charge.failed', 'charge'],
];
const KINDS = [...new Set(TOLD.map(([kind]) => kind))];
const DELIVERIES = 3;
/** Number of virtual users that pay meanwhile. */
const PAYERS = 4;
/** Number of parallel requests while the events' objects are made, and at the end. */
const WIDTH = 24;
/** Maximum time in which a parked event must find its object. */
const PARKED_MAX_MS = 60000;

const series = ['set-up', 'executed', 'replayed', 'charges'];
const eventsCount = number('EVENTS', 10000);
const clients = number('CLIENTS', 32);
const merchantsCount = number('MERCHANTS', 4);
if (eventsCount % TOLD.length !== 0 || clients < DELIVERIES) {
  throw new Error(`EVENTS must be a multiple of ${TOLD.length}, CLIENTS at least ${DELIVERIES}.`);
}
if (hasProcessor) {
  throw new Error('It plays the processor itself, so the service must have a sandbox: `oncepay dev` without --processor.');
}
if (!/^whsec_./.test(webhookSecret)) {
  throw new Error('ONCEPAY_WEBHOOK_SECRET must be what the service expects events to be signed with (whsec_…).');
}
const secret = encoding.b64decode(webhookSecret.slice('whsec_'.length));
/** Events that came before their objects. */
const overtakers = new Counter('overtakers');
const ONCE = { copies: 1, patience: () => steady };

/** Maximum number of deliveries that a deliverer has to make, one per iteration. */
const shareMax = DELIVERIES * Math.ceil(eventsCount / clients);

export const options = {
  ...optionsOf({
    scenarios: {
      // All users share one scenario, in which they are numbered from 1: the number decides who does what.
      storm: {
        executor: 'per-vu-iterations',
        vus: PAYERS + clients,
        iterations: shareMax,
        maxDuration: '1h',
      },
    },
    // Includes the time to make the objects. The duration depends on the machine. Only the report needs it.
    runSeconds: Math.ceil(eventsCount / 100),
    series,
    compared: ['answers'],
  }),
  setupTimeout: '30m',
};

export const handleSummary = summary('webhook_storm', series, (_, value) => [
  `    ${eventsCount} events, ${DELIVERIES} deliveries each; ${value('overtakers')} came before what they are about`,
  `    answers to one event ${value('difference{of:answers}') ? 'DIFFER' : 'are all the same'}`,
]);

/** Makes the objects. The events follow from them, so it returns only the ids of each set, by kind of charge. */
export async function setup() {
  const { merchants, versions } = await newMerchants('webhook_storm', merchantsCount);
  const numbers = Array.from({ length: eventsCount / TOLD.length }, (_, i) => i);
  const sets = await together(WIDTH, numbers, (i) => makeSet(merchants[i % merchants.length], i));
  return { merchants, versions, sets };
}

async function makeSet({ apiKey }, i) {
  const client = new Client(apiKey);
  const set = {};
  for (const kind of KINDS) {
    const key = `${kind}-${i}`;
    const { refunds, payout } = plan(key);
    const charge = (await pay(client, key, ONCE, 'set-up')).first.json().id;
    set[kind] = { charge };
    for (const refund of refunds) {
      const body = { charge_id: charge, amount: amount(refund), metadata: { key } };
      set[kind].refund = await make(client, '/v1/refunds', `${key}-refund`, body, 'refunded');
    }
    if (payout) {
      const body = { amount: amount(payout), currency: CURRENCY, destination: 'ba_main', metadata: { key } };
      set[kind].payout = await make(client, '/v1/payouts', `${key}-payout`, body, 'paid out');
    }
  }
  return set;
}

async function make(client, path, key, body, of) {
  const made = (await client.execute(new Request({ path, key, body, isTimed: false }))).json();
  clientCounts(of, cents(made.amount));
  clientCounts('journal entries', 1);
  return made.id;
}

/** An event of the processor, signed anew for each attempt, as a provider does. */
class Event extends Request {
  /** Makes the event with a number below `EVENTS`. */
  constructor(data, i) {
    const { merchants, sets } = data;
    const [setNumber, [kind, type, object]] = [Math.floor(i / TOLD.length), TOLD[i % TOLD.length]];
    const [merchant, ids] = [merchants[setNumber % merchants.length].id, sets[setNumber][kind]];
    const { captured } = plan(`${kind}-${setNumber}`);
    const told =
      type === 'settlement.paid'
        ? { merchant, id: settlementOf(ids.charge), amount: amount(captured), currency: CURRENCY }
        : { merchant, reference: ids[object], dispute: `of-${ids.charge}` };
    super({ path: '/v1/webhooks/acquirer', key: eventId(data, i), body: { type, data: told }, expect: 200 });
    Object.assign(this, { type, captured });
  }

  headers() {
    const timestamp = Math.floor(Date.now() / 1000);
    const signature = crypto.hmac('sha256', secret, `${this.key}.${timestamp}.${this.text}`, 'base64');
    return {
      'Content-Type': 'application/json',
      'webhook-id': this.key,
      'webhook-timestamp': String(timestamp),
      'webhook-signature': `v1,${signature}`,
    };
  }
}

/** Returns the processor's id for an event. The first merchant's id distinguishes the runs. */
function eventId({ merchants: [{ id }] }, i) {
  return `evt_${id}_${i}`;
}

export default iteration(async (data) => {
  const [who, round] = [exec.vu.idInTest - 1, exec.vu.iterationInScenario];
  if (who >= PAYERS) {
    await deliver(data, who - PAYERS);
  } else if (round < shareMax / 2) {
    // A payment takes two requests, so all users finish at about the same time.
    const client = new Client(data.merchants[who % data.merchants.length].apiKey);
    await pay(client, newKey('charge'), ONCE, 'charges');
  }
});

const processor = new Client();
/** Remaining deliveries of this virtual user, once it has looked which are its own. */
let share = null;

/** Makes the next delivery of a deliverer. */
async function deliver(data, deliverer) {
  share = share || shareOf(deliverer);
  if (share.length === 0) {
    return;
  }
  const { i, copy } = share.pop();
  const event = new Event(data, i);
  // Only the first copy counts as a new key.
  event.isCounted = copy > 0;
  const answer = await processor.execute(event);
  if (!answer) {
    return;
  }
  compare('answers', markOf(answer));
  if (copy > 0) {
    return;
  }
  if (event.type !== 'charge.failed') {
    clientCounts('journal entries', 1);
  }
  if (event.type === 'charge.succeeded') {
    clientCounts('captured', event.captured);
  }
  if (answer.json().state === 'parked') {
    overtakers.add(1);
  }
}

/**
 * Returns the deliveries of a deliverer. The copies of one event go to deliverers that are a third of the way round
 * apart.
 */
function shareOf(deliverer) {
  const own = [];
  for (let i = 0; i < eventsCount; i++) {
    for (let copy = 0; copy < DELIVERIES; copy++) {
      if ((i + copy * Math.floor(clients / DELIVERIES)) % clients === deliverer) {
        own.push({ i, copy });
      }
    }
  }
  for (let last = own.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [own[last], own[other]] = [own[other], own[last]];
  }
  return own;
}

/** Returns a number for an answer's bytes. The numbers of all deliveries add up to less than 2^53. */
function markOf({ text }) {
  return dice(text)(2 ** 31);
}

/** Checks the events, then the ledger. */
export async function teardown(data) {
  try {
    await checkEvents(data);
  } catch (error) {
    violation('ledger', `the check of the events broke off: ${error.message || error}`);
  }
  await checkLedger(data);
}

/** Checks that each event is stored as applied, and that its answer is still the one that everybody got. */
async function checkEvents(data) {
  const operator = new Client(operatorKey);
  const ids = new Set(Array.from({ length: eventsCount }, (_, i) => eventId(data, i)));

  const isParked = async () =>
    (await operator.all('/v1/operator/acquirer-events?state=parked')).some(({ event_id }) => ids.has(event_id));
  for (const giveUpAt = Date.now() + PARKED_MAX_MS; Date.now() < giveUpAt && (await isParked());) {
    await pause(500);
  }

  // The list begins with the newest events, so these are the run's own and any that came later.
  const missing = new Set(ids);
  const kept = await operator.all('/v1/operator/acquirer-events', (page) => {
    page.forEach(({ event_id }) => missing.delete(event_id));
    return missing.size === 0;
  });
  missing.forEach((id) => violation('events', `${id} isn't kept`));
  kept
    .filter(({ event_id, state }) => ids.has(event_id) && state !== 'applied')
    .forEach(({ event_id, state, detail }) => violation('events', `${event_id} is ${state}: ${detail}`));

  await together(WIDTH, [...ids], async (id, i) => {
    const event = new Event(data, i);
    Object.assign(event, { isCounted: true, isTimed: false });
    const answer = await processor.execute(event);
    if (!answer) {
      return;
    }
    if (!answer.isReplay) {
      violation('executed_twice', `${id}, delivered once more: ${answer.brief()}`);
    }
    compare('answers', -DELIVERIES * markOf(answer));
  });
}
