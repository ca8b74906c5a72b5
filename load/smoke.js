// Proves, in a few seconds, that the promises hold one by one: the same answer again byte for byte, one charge for
// copies sent at once, refusals that change nothing, declines that stay declines, a lost answer of the processor, and
// the way from an authorization to a payout. Also proves that the ledger agrees with all of it.
//
//   k6 run load/smoke.js          CLIENTS=2  ROUNDS=2

import { Client, Request, steady, storm } from './lib/client.js';
import { checkLedger } from './lib/ledger.js';
import { newMerchants } from './lib/merchant.js';
import { iteration, options as optionsOf, unexpectedAnswer } from './lib/metrics.js';
import { lifecycle, pay } from './lib/payments.js';
import { newKey } from './lib/plan.js';
import { number } from './lib/settings.js';
import { summary } from './lib/summary.js';

const series = ['executed', 'replayed'];

export const options = optionsOf({
  scenarios: {
    smoke: {
      executor: 'per-vu-iterations',
      vus: number('CLIENTS', 2),
      iterations: number('ROUNDS', 2),
      maxDuration: '5m',
    },
  },
  // The duration depends on the machine. Only the report needs it.
  runSeconds: 8 * number('ROUNDS', 2),
  series,
});

export const setup = () => newMerchants('smoke');
export const teardown = checkLedger;
export const handleSummary = summary('smoke', series);

export default iteration(async ({ merchants: [{ apiKey }] }) => {
  const client = new Client(apiKey);

  const charge = await pay(client, newKey('charge'));
  // The storm compares each answer with the first.
  await storm(client, charge, 2, () => steady);
  await refusals(client, charge);

  const copies = { copies: 4, patience: () => steady };
  await pay(client, newKey('slow'), copies);
  await pay(client, newKey('declined'), copies);
  await pay(client, newKey('lost'), copies);
  await lifecycle(client, newKey('life'), copies);
});

/** Sends requests that must not change anything. The check at the end finds any change. */
async function refusals(client, charge) {
  const other = { ...JSON.parse(charge.text), amount: '999.99' };
  await client.refused(new Request({ path: charge.path, key: charge.key, body: other }), 422, 'idempotency_key_reused');
  await client.refused(new Request({ path: charge.path, body: other }), 400, 'idempotency_key_missing');
  await client.refused(
    new Request({ path: charge.path, key: `${charge.key}-typo`, body: { ...other, amonut: '1.00' } }),
    422,
    'validation_failed',
  );

  const status = await client.read(`/v1/idempotency-keys/${charge.key}`);
  if (status.status !== 'completed' || status.response_status !== charge.first.status) {
    unexpectedAnswer(`${charge.key}: ${JSON.stringify(status)}`);
  }
}
