// Amounts in whole cents. JavaScript has one kind of number, which is exact for integers up to 2^53: ninety trillion
// dollars in cents. So the scripts use only integers, and no division that leaves a fraction.

/** The currency of all runs; it has two decimals. */
export const CURRENCY = 'USD';

/** Pricing of a run's merchants, per capture: 2.9 % + 0.30. */
export const PRICING = { fee_rate: '0.029', fee_fixed: '0.30' };
const RATE_THOUSANDTHS = 29;
const FIXED_CENTS = 30;

/** Returns the cents of an amount as the API writes it. */
export function cents(text) {
  const parts = /^(\d+)\.(\d\d)$/.exec(text);
  if (!parts) {
    throw new Error(`${JSON.stringify(text)} is no amount in ${CURRENCY}`);
  }
  return exact(Number(parts[1]) * 100 + Number(parts[2]));
}

/** Returns an amount as the API writes it. */
export function amount(inCents) {
  const part = exact(inCents) % 100;
  return `${(inCents - part) / 100}.${String(part).padStart(2, '0')}`;
}

/**
 * Returns the fee for a capture: rounded half-even to the cent, at most the amount. Computed here, not read from the
 * API.
 */
export function fee(capturedCents) {
  const thousandths = exact(capturedCents * RATE_THOUSANDTHS + FIXED_CENTS * 1000);
  const rest = thousandths % 1000;
  const whole = (thousandths - rest) / 1000;
  const up = rest > 500 || (rest === 500 && whole % 2 === 1);
  return Math.min(whole + (up ? 1 : 0), capturedCents);
}

function exact(number) {
  if (!Number.isSafeInteger(number)) {
    throw new Error(`${number} can't be counted exactly`);
  }
  return number;
}
