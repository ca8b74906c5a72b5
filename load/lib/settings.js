// Addresses of the service, our keys, and the duration of runs: from the environment, else from the
// dev.env that `oncepay dev` writes.

const known = { ...devEnv(), ...__ENV };

/** The settings that the script has read, with their values. */
export const used = {};

/** Base addresses of all instances. */
export const urls = (known.ONCEPAY_URLS || known.ONCEPAY_URL || '')
  .split(',')
  .map((url) => url.trim().replace(/\/$/, ''))
  .filter((url) => url);

/** Key of the operator that makes the merchants of a run and requests the audit. */
export const operatorKey = known.ONCEPAY_OPERATOR_KEY;

/** Secret with which the processor signs its events: `whsec_` and base64. */
export const webhookSecret = (known.ONCEPAY_WEBHOOK_SECRET || '').split(',')[0].trim();

/** Whether the service has a processor that sends events of its own, or a sandbox that sends none. */
export const hasProcessor = Boolean(known.ONCEPAY_PROCESSOR_URL);

if (urls.length === 0 || !operatorKey) {
  throw new Error(
    'No service is known. Start one with `cargo run -- dev`, or set ONCEPAY_URL (or ONCEPAY_URLS=http://…,http://…) ' +
      'and ONCEPAY_OPERATOR_KEY. ONCEPAY_DATA_DIR names the folder of a dev.env that is elsewhere.',
  );
}

/** Reads a whole number that `k6 run -e NAME=…` may set. */
export function number(name, byDefault) {
  const value = known[name] === undefined ? byDefault : Number(known[name]);
  if (!Number.isInteger(value) || value < 1) {
    throw new Error(`${name} must be a whole number above zero.`);
  }
  used[name] = value;
  return value;
}

/** Reads the seconds of a duration like `90s`, `5m` or `1h30m` that `k6 run -e NAME=…` may set. */
export function seconds(name, byDefault) {
  const text = known[name] || byDefault;
  const parts = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$/.exec(text);
  const total = parts && Number(parts[1] || 0) * 3600 + Number(parts[2] || 0) * 60 + Number(parts[3] || 0);
  if (!total) {
    throw new Error(`${name} must be a duration like 90s, 5m or 1h30m.`);
  }
  used[name] = text;
  return total;
}

/** Returns the file for the report of a script: a page, or only its picture if the name ends in `.svg`. */
export function reportPath(script) {
  return known.REPORT || known.CHART || fileOf(`../out/${script}.html`);
}

function devEnv() {
  const folder = __ENV.ONCEPAY_DATA_DIR;
  // Like the service itself: next to the sources by default, else relative to the working directory.
  const path = !folder
    ? fileOf('../../.oncepay/dev.env')
    : `${folder.startsWith('/') ? '' : `${__ENV.PWD}/`}${folder}/dev.env`;
  try {
    const lines = open(path).split('\n');
    return Object.fromEntries(lines.filter((line) => line.includes('=')).map((line) => line.split(/=(.*)/s, 2)));
  } catch (_) {
    return {};
  }
}

/** Makes a path absolute, since `open` takes paths relative to the script that k6 was given. */
function fileOf(relative) {
  return decodeURIComponent(import.meta.resolve(relative).replace(/^file:\/\//, ''));
}
