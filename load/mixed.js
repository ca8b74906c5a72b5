// Proves that the service stays correct and fast: a soak of everything at once, at a gentle pace. Most clients pay
// once; some retry, some storm, some reuse a key for another request, some go all the way to a payout, some read. Watch
// the report for latency that creeps up with the tables.
//
//   k6 run load/mixed.js          CLIENTS=10  DURATION=1m  MERCHANTS=3

import { Client, Request, between, impatient, pause, steady, storm } from './lib/client.js';
import { checkLedger } from './lib/ledger.js';
import { newMerchants } from './lib/merchant.js';
import { iteration, options as optionsOf } from './lib/metrics.js';
import { lifecycle, pay } from './lib/payments.js';
import { newKey } from './lib/plan.js';
import { number, seconds } from './lib/settings.js';
import { summary } from './lib/summary.js';

const series = ['executed', 'replayed', 'read'];
const runSeconds = seconds('DURATION', '1m');
const merchantsCount = number('MERCHANTS', 3);

export const options = optionsOf({
  scenarios: {
    mixed: { executor: 'constant-vus', vus: number('CLIENTS', 10), duration: `${runSeconds}s`, gracefulStop: '5m' },
  },
  runSeconds,
  series,
});

export const setup = () => newMerchants('mixed', merchantsCount);
export const teardown = checkLedger;
export const handleSummary = summary('mixed', series);

/** Clients' actions, with the percentage of clients that perform each. */
const HABITS = [
  [60, payOnce],
  [10, payAndRetry],
  [8, payInAStorm],
  [5, reuseAKey],
  [7, goAllTheWay],
  [10, read],
];

export default iteration(async ({ merchants }) => {
  const client = new Client(merchants[Math.floor(Math.random() * merchantsCount)].apiKey);
  let point = between(0, 100);
  const [, habit] = HABITS.find(([weight]) => (point -= weight) < 0);
  await habit(client);
  await pause(between(10, 100));
});

async function payOnce(client) {
  await pay(client, newKey('charge'));
}

async function payAndRetry(client) {
  const charge = await pay(client, newKey('troubled'), { copies: 1, patience: impatient });
  await pause(between(0, 2000));
  if (charge) {
    await storm(client, charge, 1);
  }
}

async function payInAStorm(client) {
  await pay(client, newKey('troubled'), { copies: Math.floor(between(2, 11)), patience: impatient });
}

async function reuseAKey(client) {
  const charge = await pay(client, newKey('charge'));
  if (charge) {
    const body = { ...JSON.parse(charge.text), amount: '0.01' };
    await client.refused(new Request({ path: charge.path, key: charge.key, body }), 422, 'idempotency_key_reused');
  }
}

async function goAllTheWay(client) {
  await lifecycle(client, newKey('life'), { copies: 2, patience: () => steady });
}

async function read(client) {
  await client.read('/v1/balance', 'read');
  await client.read('/v1/charges?limit=20', 'read');
  await client.read('/v1/ledger/trial-balance', 'read');
}
