// Makes payments according to a plan, each step by a client that retries, and checks each at once.

import { Request, steady, storm } from './client.js';
import { clientCounts, violation } from './metrics.js';
import { CURRENCY, amount, cents } from './money.js';
import { plan } from './plan.js';

/** Returns the request for a charge under a key. */
export function chargeRequest(key, series) {
  const { card, capture, authorized, answer } = plan(key);
  return new Request({
    path: '/v1/charges',
    key,
    body: { amount: amount(authorized), currency: CURRENCY, payment_method: card, capture, reference: key },
    expect: answer,
    series,
    // The two seconds of this card are the processor's.
    isTimed: card !== 'pm_card_slow',
  });
}

/** How to make a payment: `copies` of each request are sent at once, and `patience` draws the patience of each. */
const ONCE = { copies: 1, patience: () => steady };

/**
 * Makes the charge of a key, and checks that there is one. Returns its request, of which more copies can be sent, or
 * null if there was no answer.
 */
export async function pay(client, key, { copies, patience } = ONCE, series) {
  const request = chargeRequest(key, series);
  // Counted before it's sent, since from then on the charge counts, whatever happens to the answer.
  clientCounts('charges', 1);
  const answer = await storm(client, request, copies, patience);
  if (!answer) {
    return null;
  }
  await book(client, request);
  return request;
}

/** Records the answer of a charge, and checks that there is that charge and no other under its key. */
export async function book(client, { key, first }) {
  const body = first.json();
  if (first.status === 201 && body.amount_captured !== '0.00') {
    clientCounts('captured', cents(body.amount_captured));
    clientCounts('journal entries', 1);
  }
  const found = (await client.read(`/v1/charges?reference=${key}`)).data.map((charge) => charge.id);
  const told = body.id || body.charge_id;
  if (found.length !== 1 || found[0] !== told) {
    violation('charges_per_key', `${key}: told of ${told}, found ${found.join(', ') || 'none'}`);
  }
}

/**
 * Authorizes, captures, refunds and pays out, as the key's plan says. With `bySteps`, each of these is a series of the
 * report.
 */
export async function lifecycle(client, key, { copies, patience } = ONCE, bySteps = false) {
  const { captured, refunds, payout, payoutEnd } = plan(key);
  const series = (name) => (bySteps ? name : undefined);
  const step = async (name, request) => {
    const answer = await storm(client, new Request({ ...request, series: series(name) }), copies, patience);
    return answer && answer.status < 300 ? answer.json() : null;
  };

  const charge = await pay(client, key, { copies, patience }, series('authorize'));
  if (!charge || charge.first.status !== 201) {
    return;
  }
  const id = charge.first.json().id;
  const capture = await step('capture', {
    path: `/v1/charges/${id}/capture`,
    name: '/v1/charges/{id}/capture',
    key: `${key}-capture`,
    body: { amount: amount(captured) },
    expect: 200,
  });
  if (!capture) {
    return;
  }
  clientCounts('captured', cents(capture.amount_captured));
  clientCounts('journal entries', 1);
  // Sent at once: they are different requests for one charge, and none may affect another.
  await Promise.all(
    refunds.map(async (part, i) => {
      const body = { charge_id: id, amount: amount(part), metadata: { key } };
      const refund = await step('refund', { path: '/v1/refunds', key: `${key}-refund-${i}`, body });
      if (refund) {
        clientCounts('refunded', cents(refund.amount));
        clientCounts('journal entries', 1);
      }
    }),
  );
  const body = { amount: amount(payout), currency: CURRENCY, destination: 'ba_main', metadata: { key } };
  const paidOut = await step('payout', { path: '/v1/payouts', key: `${key}-payout`, body });
  if (paidOut) {
    clientCounts('paid out', cents(paidOut.amount));
    // One more for its end, which the processor reports.
    clientCounts('journal entries', payoutEnd ? 2 : 1);
  }
}
