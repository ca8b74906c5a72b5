// The summary that a run prints at its end, and what its report shows.

import { BOOKED, OUTCOMES, SLICES, VIOLATIONS, outcomeMetric, sliceMs } from './metrics.js';
import { amount } from './money.js';
import { image, page } from './report.js';
import { reportPath, urls, used } from './settings.js';

/**
 * Returns a `handleSummary`. `notes` may add lines of a script's own, from the figures of a series and the value of a
 * metric.
 */
export function summary(script, series, notes = () => []) {
  const path = reportPath(script);
  return ({ metrics, state, setup_data: setUp }) => {
    const { lines, run } = report(script, series, metrics, notes, (setUp && setUp.versions) || {});
    const text = lines.join('\n');
    return {
      stdout: `\n${state.isStdOutTTY ? colored(text) : text}\n\n  report      ${path}\n\n`,
      [path]: path.endsWith('.svg') ? image(run) : page(run, text),
    };
  };
}

function report(script, series, metrics, notes, versions) {
  const value = (name, field = 'count') => (metrics[name] ? metrics[name].values[field] || 0 : 0);
  const count = (name) => thousands(value(name));
  const outcome = (name) => count(outcomeMetric(name));

  const crossed = Object.entries(metrics).filter(([, { thresholds }]) =>
    Object.values(thresholds || {}).some(({ ok }) => !ok),
  );
  const runSeconds = value('elapsed', 'max') / 1000;
  const instances = `${urls.length} instance${urls.length === 1 ? '' : 's'}`;
  const perSecond = thousands(Math.round(value('attempts') / (runSeconds || 1)));
  const unseen = value('unseen_executions');
  const executions =
    unseen < 0
      ? `executed ${thousands(-unseen)} TIMES TOO OFTEN`
      : `executed once each: ${outcome('executed')} by what the answer says, ${thousands(unseen)} whose answer was lost`;
  const verdict = crossed.length ? 'FAIL' : 'PASS';
  const title = `${script}, ${Math.round(runSeconds)} s, ${value('vus_max', 'max')} clients, ${instances}`;
  const rest = ['refused', 'other 5xx'].map((name) => (value(outcomeMetric(name)) ? `, ${outcome(name)} ${name}` : '')).join('');
  const lines = [
    `${verdict}  ${title}`,
    '',
    `  keys        ${count('keys')}, ${executions}`,
    `  requests    ${count('attempts')} (${perSecond}/s), of which ${count('retries')} retries`,
    `  answers     ${outcome('executed')} executed, ${outcome('replayed')} replayed, ${outcome('in progress')} 409 in progress, ${outcome('unavailable')} 503, ${outcome('no answer')} none${rest}`,
    `  duplicates  ${count('duplicates')}, unexpected answers ${count('unexpected')}`,
    '',
    row('latency', 'p50', 'p95', 'p99', 'answers'),
  ];
  const figures = (name) => {
    const of = `latency{series:${name}}`;
    return { p50: value(of, 'med'), p95: value(of, 'p(95)'), p99: value(of, 'p(99)'), count: value(of) };
  };
  for (const name of series) {
    const { p50, p95, p99, count: answers } = figures(name);
    lines.push(row(`  ${name}`, ms(p50), ms(p95), ms(p99), thousands(answers)));
  }
  lines.push(...notes(figures, value), '', row('ledger', 'client', 'ledger', ''));
  const books = BOOKED.map((of) => {
    const [client, ledger] = [value(`client{of:${of}}`), value(`ledger{of:${of}}`)];
    const shown = of === 'charges' || of === 'journal entries' ? thousands : amount;
    return { of, client, ledger, cells: [shown(client), shown(ledger), client === ledger ? 'ok' : 'DIFFERENT'] };
  });
  books.forEach(({ of, cells }) => lines.push(row(`  ${of}`, ...cells)));
  lines.push(
    `    checked   ${value('ledger_checks') ? 'each of them, trial balance, balance, audit' : 'NO: the check did not get to its end'}`,
  );

  const wrong = Object.entries(VIOLATIONS).filter(([kind]) => value(`violations{kind:${kind}}`));
  if (wrong.length) {
    lines.push('', '  violations');
    wrong.forEach(([kind, meaning]) => lines.push(`${count(`violations{kind:${kind}}`).padStart(9)}  ${meaning}`));
  }
  if (crossed.length) {
    const names = new Set(crossed.map(([name]) => name.replace(/\{.*/, '')));
    lines.push('', `  failed      ${[...names].sort().join(', ')}`);
  }
  const run = {
    verdict,
    title,
    checks: checksOf(value, books),
    violations: [
      ...wrong.map(([kind, meaning]) => [meaning, count(`violations{kind:${kind}}`)]),
      ...(value('unexpected') ? [['unexpected answers', count('unexpected')]] : []),
    ],
    series,
    sliceSeconds: sliceMs / 1000,
    slices: slicesOf(series, metrics),
    marks: marksOf(metrics),
    books: books.map(({ of, cells }) => [of, ...cells.slice(0, 2)]),
    latency: series.map((name) => {
      const { p50, p95, p99, count: answers } = figures(name);
      return [name, ...[p50, p95, p99].map((figure) => figure.toFixed(1)), thousands(answers)];
    }),
    settings: Object.entries({
      script: `load/${script}.js`,
      ...used,
      instances: urls.length,
      'Oncepay': versions.oncepay || '?',
      'k6': versions.k6 || '?',
      'ended at': `${new Date().toISOString().slice(0, 19)}Z`,
    }),
  };
  return { lines, run };
}

/** Returns what the check at the end found, in short. Without that check, nothing is good. */
function checksOf(value, books) {
  const isChecked = value('ledger_checks') > 0;
  const check = (name, wrong, good, bad = thousands(wrong)) => ({
    name,
    value: isChecked ? (wrong ? bad : good) : 'not checked',
    isGood: isChecked && wrong === 0,
  });
  const [charges] = books;
  const duplicates = Math.max(value('duplicates'), value('violations{kind:executed_twice}'), -value('unseen_executions'), 0);
  const lost = Math.max(charges.client - charges.ledger, 0) + value('violations{kind:unanswered}');
  const uneven =
    books.filter(({ client, ledger }) => client !== ledger).length +
    value('violations{kind:ledger}') +
    value('violations{kind:audit}');
  return [
    check('duplicates', duplicates, '0'),
    check('lost', lost, '0'),
    check('ledger', uneven, 'balanced', 'NOT as expected'),
    { name: 'keys', value: thousands(value('keys')), isGood: value('keys') > 0 },
  ];
}

/** Returns outcomes and latency for each slice, up to the last one with any. */
function slicesOf(series, metrics) {
  const of = (name, slice) => metrics[`${name}{slice:${slice}}`] || { values: {} };
  const slices = Array.from({ length: SLICES }, (_, slice) => ({
    seconds: (slice * sliceMs) / 1000,
    outcomes: Object.fromEntries(OUTCOMES.map((name) => [name, of(outcomeMetric(name), slice).values.count || 0])),
    latency: Object.fromEntries(
      series
        .map((name) => [name, metrics[`latency{series:${name},slice:${slice}}`]])
        .filter(([, metric]) => metric && metric.values.count > 0)
        .map(([name, { values }]) => [name, { p50: values.med, p95: values['p(95)'], p99: values['p(99)'] }]),
    ),
  }));
  while (slices.length && OUTCOMES.every((name) => !slices[slices.length - 1].outcomes[name])) {
    slices.pop();
  }
  return slices;
}

/**
 * Returns when instances went away and came back, as the clients saw it: connections were refused, and answers came
 * again. Who kills an instance needn't tell.
 */
function marksOf(metrics) {
  const marks = [];
  urls.forEach((_, instance) => {
    let isDown = false;
    const mark = (atMs, text) => {
      isDown = !isDown;
      marks.push({ seconds: atMs / 1000, text: `${instance + 1} ${text}`, isDown });
    };
    for (let slice = 0; slice < SLICES; slice++) {
      const [refused, answered] = ['refused_connection', 'answered'].map(
        (name) => (metrics[`${name}{instance:${instance},slice:${slice}}`] || { values: { count: 0 } }).values,
      );
      if (refused.count && !isDown) {
        mark(refused.min, 'gone');
      }
      const lastRefusal = refused.count ? refused.max : 0;
      if (isDown && answered.count && answered.max > lastRefusal) {
        mark(Math.max(answered.min, lastRefusal), 'back');
      }
    }
  });
  return marks.sort((one, other) => one.seconds - other.seconds);
}

function row(name, ...cells) {
  return `  ${name.padEnd(18)}${cells.map((cell) => cell.padStart(14)).join('')}`.trimEnd();
}

function ms(number) {
  return `${number < 10 ? number.toFixed(1) : Math.round(number)} ms`;
}

function thousands(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ',');
}

function colored(text) {
  return text.replace(/^(PASS|FAIL)/, (word) => `\x1b[1;97;${word === 'PASS' ? 42 : 41}m ${word} \x1b[0m`);
}
