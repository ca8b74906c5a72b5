// Proves that thousands of duplicates on one key neither charge twice nor get into the way of others. One merchant pays
// under ever new keys for the whole run. In the middle third, another one sends the same request over and over, at a
// fixed rate, whatever the answers: first while the request is still running, then as replays. The summary shows the
// first merchant's latency before, during and after.
//
//   k6 run load/hot_key.js        CLIENTS=4  DURATION=15s  DUPLICATES=5000

import exec from 'k6/execution';
import { Client, pause, steady } from './lib/client.js';
import { checkLedger } from './lib/ledger.js';
import { newMerchants } from './lib/merchant.js';
import { clientCounts, iteration, options as optionsOf } from './lib/metrics.js';
import { book, chargeRequest, pay } from './lib/payments.js';
import { newKey } from './lib/plan.js';
import { number, seconds } from './lib/settings.js';
import { summary } from './lib/summary.js';

const series = ['others before', 'others during', 'others after', 'duplicates'];
const third = Math.max(Math.floor(seconds('DURATION', '15s') / 3), 3);
const duplicates = number('DUPLICATES', 5000);

export const options = optionsOf({
  scenarios: {
    others: {
      executor: 'constant-vus',
      exec: 'others',
      vus: number('CLIENTS', 4),
      duration: `${3 * third}s`,
      gracefulStop: '5m',
    },
    duplicates: {
      executor: 'constant-arrival-rate',
      exec: 'duplicate',
      startTime: `${third}s`,
      duration: `${third}s`,
      rate: duplicates,
      timeUnit: `${third}s`,
      preAllocatedVUs: 50,
      maxVUs: 500,
      gracefulStop: '5m',
    },
  },
  runSeconds: 3 * third,
  series,
});

export const setup = () => newMerchants('hot_key', 2);
export const teardown = checkLedger;
export const handleSummary = summary('hot_key', series, (figures, value) => {
  const ratio = figures('others during').p99 / figures('others before').p99;
  const sent = duplicates - value('dropped_iterations');
  return [
    `    others' p99 during the storm is ${ratio.toFixed(1)} times the one before`,
    `    of ${duplicates} duplicates ${sent} were sent${sent < duplicates ? ': more than k6 and the service could do in that time' : ''}`,
  ];
});

export const others = iteration(async ({ merchants: [, { apiKey }] }) => {
  const passed = (Date.now() - exec.scenario.startTime) / 1000 / third;
  const when = passed < 1 ? 'before' : passed < 2 ? 'during' : 'after';
  await pay(new Client(apiKey), newKey('charge'), { copies: 1, patience: () => steady }, `others ${when}`);
  // Keeps the pace of the payments about the same in all three parts.
  await pause(20);
});

/** This virtual user's request, whose answers it compares with each other. The key's card takes two seconds. */
const request = chargeRequest('slow-and-hot', 'duplicates');
request.isTimed = true;

export const duplicate = iteration(async ({ merchants: [{ apiKey }] }) => {
  const client = new Client(apiKey);
  const number = exec.scenario.iterationInTest;
  if (number === 0) {
    // Whichever virtual user executes the request, there is one charge.
    clientCounts('charges', 1);
    await client.execute(request);
    if (request.first) {
      await book(client, request);
    }
    return;
  }
  const answer = await client.attempt(
    request,
    number % 20 === 0 ? { ...steady, headers: { Prefer: 'wait=5' } } : steady,
  );
  if (answer && answer.isFinal) {
    request.note(answer);
  }
});
