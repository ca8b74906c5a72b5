// Payments as a plan says, each step by a client that retries, and checked as soon as it's through.

import { Request, steady, storm } from './client.js';
import { clientCounts, violation } from './metrics.js';
import { CURRENCY, amount, cents } from './money.js';
import { plan } from './plan.js';

/** The request for a charge under a key. */
export function chargeRequest(key, series) {
  const { card, capture, authorized, answer } = plan(key);
  return new Request({
    path: '/v1/charges',
    key,
    body: { amount: amount(authorized), currency: CURRENCY, payment_method: card, capture, reference: key },
    expect: answer,
    series,
    // Its two seconds are the processor's.
    isTimed: card !== 'pm_card_slow',
  });
}

/** How a payment is made: how many `copies` of each request at once, and how the `patience` of each is drawn. */
const ONCE = { copies: 1, patience: () => steady };

/**
 * Makes the charge of a key, and makes sure that there is one. Returns its request, of which more copies can be sent,
 * or null if there was no answer.
 */
export async function pay(client, key, { copies, patience } = ONCE, series) {
  const request = chargeRequest(key, series);
  // Before it's sent, since from then on it counts, whatever becomes of the answer.
  clientCounts('charges', 1);
  const answer = await storm(client, request, copies, patience);
  if (!answer) {
    return null;
  }
  await book(client, request);
  return request;
}

/** Writes down what a charge's answer said, and makes sure that there is that charge and no other under its key. */
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
 * Authorizes, captures, refunds and pays out, as the plan of the key says. With `bySteps`, each of these is a series of
 * the chart.
 */
export async function lifecycle(client, key, { copies, patience } = ONCE, bySteps = false) {
  const { captured, refunds, payout } = plan(key);
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
  // At once: they are different requests of one charge, and none may take from another.
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
    clientCounts('journal entries', 1);
  }
}
