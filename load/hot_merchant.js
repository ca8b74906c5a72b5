// Proves that one merchant with all the traffic is served as correctly and about as fast as many merchants with a share
// each: no row is touched by all payments of a merchant. The first half of the run pays for many merchants, the second
// half for one. The summary compares them.
//
//   k6 run load/hot_merchant.js   CLIENTS=8  DURATION=20s  MERCHANTS=20

import { Client, steady } from './lib/client.js';
import { checkLedger } from './lib/ledger.js';
import { newMerchants } from './lib/merchant.js';
import { iteration, options as optionsOf } from './lib/metrics.js';
import { pay } from './lib/payments.js';
import { newKey } from './lib/plan.js';
import { number, seconds } from './lib/settings.js';
import { summary } from './lib/summary.js';

const series = ['many merchants', 'one merchant'];
const half = Math.max(Math.floor(seconds('DURATION', '20s') / 2), 1);
const merchantsCount = number('MERCHANTS', 20);

const phase = (exec, startTime) => ({
  executor: 'constant-vus',
  exec,
  startTime,
  vus: number('CLIENTS', 8),
  duration: `${half}s`,
  gracefulStop: '5m',
});

export const options = optionsOf({
  scenarios: { many: phase('many', '0s'), one: phase('one', `${half}s`) },
  runSeconds: 2 * half,
  series,
});

export const setup = () => newMerchants('hot_merchant', merchantsCount + 1);
export const teardown = checkLedger;
export const handleSummary = summary('hot_merchant', series, (figures) => {
  const perSecond = (name) => figures(name).count / half;
  const [many, one] = series.map(perSecond);
  return [`    charges/s ${many.toFixed(0)} for many, ${one.toFixed(0)} for one: ${(one / many).toFixed(2)} of that`];
});

const once = { copies: 1, patience: () => steady };

export const many = iteration(async ({ merchants }) => {
  const { apiKey } = merchants[1 + Math.floor(Math.random() * merchantsCount)];
  await pay(new Client(apiKey), newKey('charge'), once, 'many merchants');
});

export const one = iteration(async ({ merchants: [{ apiKey }] }) => {
  await pay(new Client(apiKey), newKey('charge'), once, 'one merchant');
});
