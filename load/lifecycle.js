// Proves that each step of a payment happens once: authorization, capture of a part, one or two refunds at the same
// time, payout. Each request is sent twice at once, half of the time by clients that hang up early, and all payments
// share one merchant's balance. In the end, each account of the ledger must hold the amount that a recount gives.
//
//   k6 run load/lifecycle.js      CLIENTS=5  DURATION=15s

import { Client, impatient, steady } from './lib/client.js';
import { checkLedger } from './lib/ledger.js';
import { newMerchants } from './lib/merchant.js';
import { iteration, options as optionsOf } from './lib/metrics.js';
import { lifecycle } from './lib/payments.js';
import { newKey } from './lib/plan.js';
import { number, seconds } from './lib/settings.js';
import { summary } from './lib/summary.js';

const series = ['authorize', 'capture', 'refund', 'payout'];
const runSeconds = seconds('DURATION', '15s');

export const options = optionsOf({
  scenarios: {
    lives: { executor: 'constant-vus', vus: number('CLIENTS', 5), duration: `${runSeconds}s`, gracefulStop: '5m' },
  },
  runSeconds,
  series,
});

export const setup = () => newMerchants('lifecycle');
export const teardown = checkLedger;
export const handleSummary = summary('lifecycle', series);

export default iteration(async ({ merchants: [{ apiKey }] }) => {
  const patience = Math.random() < 0.5 ? impatient : () => steady;
  await lifecycle(new Client(apiKey), newKey('life'), { copies: 2, patience }, true);
});
