// Proves that a retry storm charges once. Every request is sent two to ten times at once and again later, by clients
// that hang up within milliseconds, ignore `Retry-After`, or ask to wait. The copies go to all instances, if several
// are given, and use cards that are declined, slow, or whose answer gets lost. Some requests are authorizations, whose
// captures, refunds and payouts are sent in the same way. Each answer must be the same as the first, and the ledger
// must agree to the cent.
//
// You can kill an instance during the run.
//
//   k6 run load/retry_storm.js    CLIENTS=20  DURATION=20s

import { Client, between, impatient, pause, storm } from './lib/client.js';
import { checkLedger } from './lib/ledger.js';
import { newMerchants } from './lib/merchant.js';
import { iteration, options as optionsOf } from './lib/metrics.js';
import { lifecycle, pay } from './lib/payments.js';
import { newKey } from './lib/plan.js';
import { number, seconds } from './lib/settings.js';
import { summary } from './lib/summary.js';

const series = ['executed', 'replayed'];
const runSeconds = seconds('DURATION', '20s');
/** Maximum number of requests that a client remembers, to send them again. */
const REMEMBERED_MAX = 20;

export const options = optionsOf({
  scenarios: {
    storm: {
      executor: 'constant-vus',
      vus: number('CLIENTS', 20),
      duration: `${runSeconds}s`,
      // Every request that has begun gets its answer.
      gracefulStop: '5m',
    },
  },
  runSeconds,
  series,
});

export const setup = () => newMerchants('retry_storm');
export const teardown = checkLedger;
export const handleSummary = summary('retry_storm', series);

const remembered = [];

export default iteration(async ({ merchants: [{ apiKey }] }) => {
  const client = new Client(apiKey);
  const copies = () => Math.floor(between(2, 11));
  if (Math.random() < 0.1) {
    await lifecycle(client, newKey('life'), { copies: copies(), patience: impatient });
    return;
  }
  const charge = await pay(client, newKey('troubled'), { copies: copies(), patience: impatient });
  if (charge) {
    remembered.push(charge);
    remembered.splice(0, remembered.length - REMEMBERED_MAX);
    await pause(between(0, 500));
  }
  const earlier = remembered[Math.floor(Math.random() * remembered.length)];
  await Promise.all([charge, earlier].filter(Boolean).map((request) => storm(client, request, copies(), impatient)));
});
