// The check at the end of each run: reads everything that the run has left behind, through the API, and recounts it.
//
// For each merchant, there must be one charge per key, and each charge must match its key's plan to the cent. Each
// movement of money must have one journal entry with its amount, and there may be no others. Sums, trial balance and
// balance must follow from the postings. Then a sample of the keys is sent again and must give the same charges. Last,
// the service audits its own books.
//
// `ledgerCounts` compares the client's own counts with these.

import { Client, headersOf, pause } from './client.js';
import { countDuplicates, ledgerCounts, ledgerWasChecked, violation } from './metrics.js';
import { CURRENCY, amount, cents, fee } from './money.js';
import { chargeRequest } from './payments.js';
import { plan, settlementOf, sum } from './plan.js';
import { hasProcessor, operatorKey } from './settings.js';

/** Maximum number of keys per merchant that are sent once more at the end. */
const SENT_AGAIN_MAX = 50;
/** Longest time in which the processor must report the end of every payout. */
const PAYOUTS_END_MS = 60000;

/** Runs the whole check. Anything that it can't check is a violation, too. */
export async function checkLedger({ merchants }) {
  try {
    for (const merchant of merchants) {
      await checkMerchant(new Client(merchant.apiKey));
    }
    await checkAudit(new Client(operatorKey));
    ledgerWasChecked();
  } catch (error) {
    violation('ledger', `the check broke off: ${error.message || error}`);
  }
}

async function checkMerchant(client) {
  if (hasProcessor) {
    await payoutsHaveEnded(client);
  }
  const charges = await client.all('/v1/charges');
  const refunds = groupBy(await client.all('/v1/refunds'), (refund) => refund.charge_id);
  const payouts = groupBy(await client.all('/v1/payouts'), (payout) => payout.metadata.key);
  const disputes = groupBy(await client.all('/v1/disputes'), (dispute) => dispute.charge_id);
  const entries = groupBy(await client.all('/v1/ledger/journal-entries'), (entry) => entry.source);

  /** Expected sources of journal entries, with their lines. */
  const expected = {};
  const byKey = groupBy(charges, (charge) => charge.reference);
  for (const [key, ofKey] of Object.entries(byKey)) {
    if (ofKey.length > 1) {
      countDuplicates(ofKey.length - 1);
      violation('charges_per_key', `${key}: ${ofKey.map((charge) => charge.id).join(', ')}`);
    }
    for (const charge of ofKey) {
      Object.assign(expected, checkCharge(charge, refunds[charge.id] || [], disputes[charge.id] || []));
    }
    Object.assign(expected, checkPayouts(key, payouts[key] || []));
  }
  const posted = checkEntries(entries, expected);
  await checkBalances(client, posted);
  await sendAgain(client, byKey);

  ledgerCounts('charges', charges.length);
  ledgerCounts('journal entries', sum(Object.values(entries).map((ofSource) => ofSource.length)));
  ledgerCounts('captured', posted.captured);
  ledgerCounts('refunded', posted.refunded);
  ledgerCounts('paid out', posted['paid out']);
}

/** Waits until the processor has reported the end of every payout. Those that it hasn't are found by the check. */
async function payoutsHaveEnded(client) {
  const inTransit = async () =>
    (await client.read('/v1/balance')).balances.some(({ in_transit: amount }) => cents(amount) > 0);
  for (const giveUpAt = Date.now() + PAYOUTS_END_MS; Date.now() < giveUpAt && (await inTransit());) {
    await pause(200);
  }
}

/**
 * Compares a charge, its refunds and its disputes with their plan. Returns the lines of their journal entries by
 * source, including the entry of the settlement.
 */
function checkCharge(charge, refunds, disputes) {
  const planned = plan(charge.reference);
  const earned = fee(planned.captured);
  agree(charge.id, 'amount', charge.amount, amount(planned.authorized));
  agree(charge.id, 'amount_captured', charge.amount_captured, amount(planned.captured));
  agree(charge.id, 'amount_refunded', charge.amount_refunded, amount(planned.refundEnd ? 0 : sum(planned.refunds)));
  agree(charge.id, 'fee', charge.fee, amount(earned));
  agree(charge.id, 'status', charge.status, planned.status);
  agree(charge.id, 'payment_method', charge.payment_method, planned.card);
  const made = refunds.map((refund) => cents(refund.amount));
  agree(charge.id, 'refunds', ordered(made), ordered(planned.refunds));
  countDuplicates(Math.max(made.length - planned.refunds.length, 0));

  const sources = {};
  if (planned.captured > 0) {
    sources[`${charge.id}:capture`] = [
      line('acquirer_clearing', 'debit', planned.captured),
      line('fee_revenue', 'credit', earned),
      line('merchant_payable', 'credit', planned.captured - earned),
    ];
  }
  refunds.forEach(({ id, status }, i) => {
    agree(id, 'status', status, planned.refundEnd || 'succeeded');
    sources[id] = moved(made[i], 'merchant_payable', 'acquirer_clearing');
    if (planned.refundEnd) {
      sources[`${id}:failed`] = moved(made[i], 'acquirer_clearing', 'merchant_payable');
    }
  });
  if (planned.isSettled) {
    sources[settlementOf(charge.id)] = moved(planned.captured, 'bank', 'acquirer_clearing');
  }
  return Object.assign(sources, checkDisputes(charge.id, planned, disputes));
}

function checkDisputes(chargeId, { dispute, captured }, disputes) {
  const made = disputes.map((opened) => `${opened.status} ${opened.amount}`);
  agree(chargeId, 'disputes', ordered(made), dispute ? `${dispute} ${amount(captured)}` : '');
  countDuplicates(Math.max(disputes.length - 1, 0));
  const goesTo = dispute === 'won' ? 'merchant_payable' : 'acquirer_clearing';
  const sources = {};
  for (const { id } of disputes) {
    sources[id] = moved(captured, 'merchant_payable', 'disputes_held');
    sources[`${id}:${dispute}`] = moved(captured, 'disputes_held', goesTo);
  }
  return sources;
}

function checkPayouts(key, payouts) {
  const { payout, payoutEnd = 'in_transit' } = plan(key);
  agree(key, 'payouts', ordered(payouts.map((made) => cents(made.amount))), ordered(payout ? [payout] : []));
  countDuplicates(Math.max(payouts.length - 1, 0));
  const sources = {};
  for (const { id, status } of payouts) {
    agree(id, 'status', status, payoutEnd);
    sources[id] = moved(payout, 'merchant_payable', 'payouts_in_transit');
    if (payoutEnd !== 'in_transit') {
      const goesTo = payoutEnd === 'paid' ? 'bank' : 'merchant_payable';
      sources[`${id}:${payoutEnd}`] = moved(payout, 'payouts_in_transit', goesTo);
    }
  }
  return sources;
}

/** Compares the journal with the expected sources. Returns the sums of the postings, by account and by kind. */
function checkEntries(entries, expected) {
  const posted = { captured: 0, refunded: 0, 'paid out': 0, accounts: {} };
  const what = { 'ch:capture': 'captured', re: 'refunded', po: 'paid out' };
  for (const [source, ofSource] of Object.entries(entries)) {
    if (ofSource.length > 1) {
      countDuplicates(ofSource.length - 1);
      violation('ledger', `${source} is posted ${ofSource.length} times`);
    }
    for (const entry of ofSource) {
      const lines = entry.postings.map((posting) => line(posting.account_kind, posting.side, cents(posting.amount)));
      agree(source, 'postings', ordered(lines), ordered(expected[source] || []));
      for (const { account_kind: kind, side, amount: text } of entry.postings) {
        const signed = side === 'debit' ? cents(text) : -cents(text);
        posted.accounts[kind] = (posted.accounts[kind] || 0) + signed;
        const of = what[source.replace(/_[^:]*/, '')];
        if (of) {
          posted[of] += Math.max(signed, 0);
        }
      }
    }
  }
  Object.keys(expected)
    .filter((source) => !entries[source])
    .forEach((source) => violation('ledger', `${source} isn't posted`));
  return posted;
}

/** Compares trial balance and balance with the sums of the postings. */
async function checkBalances(client, { accounts }) {
  const trial = await client.read('/v1/ledger/trial-balance');
  for (const { currency, debit, credit } of trial.totals) {
    agree(`trial balance ${currency}`, 'columns', debit, credit);
  }
  const balances = trial.accounts.map(({ kind, debit, credit }) => `${kind} ${cents(debit) - cents(credit)}`);
  agree(
    'trial balance',
    'accounts',
    ordered(balances),
    ordered(Object.entries(accounts).map(([kind, of]) => `${kind} ${of}`)),
  );

  const [balance] = (await client.read('/v1/balance')).balances.filter(({ currency }) => currency === CURRENCY);
  if (balance) {
    agree('balance', 'available', balance.available, amount(-(accounts.merchant_payable || 0)));
    agree('balance', 'in_transit', balance.in_transit, amount(-(accounts.payouts_in_transit || 0)));
  } else {
    agree('balance', CURRENCY, ordered(Object.keys(accounts)), '');
  }
}

/** Sends some of the keys once more, evenly spread over the run. */
async function sendAgain(client, byKey) {
  const keys = Object.keys(byKey);
  const step = Math.ceil(keys.length / SENT_AGAIN_MAX);
  for (const key of keys.filter((_, i) => i % step === 0)) {
    const request = chargeRequest(key);
    const answer = await client.ask(request.method, request.path, request.text, headersOf(request), 'again');
    const { id, charge_id: failedId } = answer.json();
    if (answer.status !== request.expect || !answer.isReplay || (id || failedId) !== byKey[key][0].id) {
      violation('answers_differ', `${key} sent again: ${answer.brief()}`);
    }
  }
}

async function checkAudit(operator) {
  const report = await operator.read('/v1/operator/audit');
  const failed = report.checks.filter((check) => check.violations > 0);
  failed.forEach((check) => violation('audit', `${check.name}: ${check.violations}, e.g. ${check.samples.join(', ')}`));
  if (!report.clean && failed.length === 0) {
    violation('audit', "it isn't clean and doesn't say why");
  }
}

function agree(whose, what, found, expected) {
  if (found !== expected) {
    violation('ledger', `${whose}: ${what} is ${found || 'nothing'} and not ${expected || 'nothing'}`);
  }
}

function line(account, side, inCents) {
  return `${account} ${side} ${inCents}`;
}

/** Returns the lines of an entry that moves an amount. */
function moved(inCents, debited, credited) {
  return [line(debited, 'debit', inCents), line(credited, 'credit', inCents)];
}

/** Returns a list as a text that doesn't depend on its order. */
function ordered(items) {
  return items.map(String).sort().join(', ');
}

function groupBy(items, keyOf) {
  const groups = {};
  items.forEach((item) => (groups[keyOf(item)] = groups[keyOf(item)] || []).push(item));
  return groups;
}
