// The payment of a key. Everything follows from the key itself: amounts, the card, and whether the payment is captured
// later, refunded and paid out. So the check at the end can tell the expected state of each charge that it finds, to
// the cent, without a record of the requests.
//
// A real client's keys are random UUIDs that it stores before sending. Ours name the virtual user and its iteration,
// which is just as unique within the merchant that each run makes for itself.

import exec from 'k6/execution';
import { fee } from './money.js';
import { hasProcessor } from './settings.js';

/** Kinds of payments by the card that they use. */
const CARDS = {
  charge: 'pm_card_visa',
  declined: 'pm_card_declined',
  life: 'pm_card_visa',
  lost: 'pm_card_timeout',
  slow: 'pm_card_slow',
  dispute_won: 'pm_card_visa',
  dispute_lost: 'pm_card_visa',
  refund_failed: 'pm_card_visa',
  async_approved: 'pm_card_async',
  async_declined: 'pm_card_async',
};
/**
 * Kinds that the processor decides by its events: the content of the event, and how the result differs from a good
 * charge.
 */
const BY_EVENTS = {
  dispute_won: { dispute: 'won', payoutEnd: 'paid' },
  dispute_lost: { dispute: 'lost', payoutEnd: 'failed', status: 'disputed' },
  refund_failed: { refundEnd: 'failed' },
  async_approved: { isSettled: true },
  async_declined: { captured: 0, status: 'failed' },
};
/** Cards of the sandbox, with the percentage of charges that use them, in scripts that want trouble. */
const TROUBLED_CARDS = [
  ['pm_card_visa', 78],
  ['pm_card_declined', 8],
  ['pm_card_timeout', 5],
  ['pm_card_error_once', 5],
  ['pm_card_insufficient_funds', 3],
  ['pm_card_slow', 1],
];

/**
 * Makes a new key of the calling virtual user, at most one per kind and iteration. `kind` is one of the kinds of
 * `plan`.
 */
export function newKey(kind) {
  return `${kind}-${exec.vu.idInTest}-${exec.vu.iterationInInstance}`;
}

/**
 * Returns the plan of a key, by its kind, which is the word that it begins with. `charge` is a charge with a good card;
 * `declined`, `lost` and `slow` are charges whose card has this effect; `troubled` has any card. `life` is an
 * authorization that is captured in part, refunded once or twice, and paid out in part.
 *
 * A processor reports that payout as paid, in a second or so; a sandbox reports nothing.
 *
 * The processor's events decide the other kinds: charges whose dispute is won or lost (with a payout that arrives or
 * comes back), whose refund comes back, or that were pending until they were approved (and settled) or declined.
 */
export function plan(key) {
  const draw = dice(key);
  const kind = key.split('-')[0];
  const authorized = 1000 + draw(50000);
  const card = CARDS[kind] || pick(TROUBLED_CARDS, draw(100));
  if (BY_EVENTS[kind]) {
    return {
      key,
      card,
      capture: true,
      answer: 201,
      authorized,
      captured: authorized,
      status: 'succeeded',
      refunds: kind === 'refund_failed' ? [1 + draw(authorized >> 1)] : [],
      payout: BY_EVENTS[kind].payoutEnd ? 1 + draw(authorized >> 2) : 0,
      ...BY_EVENTS[kind],
    };
  }
  const declined = card === 'pm_card_declined' || card === 'pm_card_insufficient_funds';
  if (kind !== 'life') {
    const captured = declined ? 0 : authorized;
    const status = declined ? 'failed' : 'succeeded';
    return {
      key,
      card,
      capture: true,
      answer: declined ? 402 : 201,
      authorized,
      captured,
      status,
      refunds: [],
      payout: 0,
    };
  }
  const captured = authorized - draw(authorized >> 2);
  const refunds = Array.from({ length: 1 + draw(2) }, () => 1 + draw(captured >> 2));
  const left = captured - fee(captured) - sum(refunds);
  const payout = 1 + draw(left >> 1);
  return {
    key,
    card,
    capture: false,
    answer: 201,
    authorized,
    captured,
    status: 'partially_refunded',
    refunds,
    payout,
    payoutEnd: hasProcessor ? 'paid' : undefined,
  };
}

/** Returns the processor's name for a settlement: it settles charge by charge, and uses the charge's id. */
export function settlementOf(chargeId) {
  return chargeId.replace('ch_', 'set_');
}

/** Returns the sum of whole numbers. */
export function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

function pick(choices, point) {
  let left = point;
  return choices.find(([, weight]) => (left -= weight) < 0)[0];
}

/** Draws whole numbers below a bound, the same ones for the same text: FNV-1a, then Marsaglia's xorshift. */
export function dice(text) {
  let state = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    state = Math.imul(state ^ text.charCodeAt(i), 0x01000193);
  }
  return (bound) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % bound;
  };
}
