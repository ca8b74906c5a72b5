// The summary that a run prints at its end.

import { chart } from './chart.js';
import { BOOKED, VIOLATIONS } from './metrics.js';
import { amount } from './money.js';
import { chartPath, urls } from './settings.js';

/**
 * Returns a `handleSummary`. `notes` may add lines of a script's own, from the figures of a series and the value of a
 * metric.
 */
export function summary(script, series, notes = () => []) {
  const path = chartPath(script);
  return ({ metrics, state }) => {
    const lines = report(script, series, metrics, notes);
    const text = lines.join('\n');
    return {
      stdout: `\n${state.isStdOutTTY ? colored(text) : text}\n\n  chart       ${path}\n\n`,
      [path]: chart(text, series, metrics),
    };
  };
}

function report(script, series, metrics, notes) {
  const value = (name, field = 'count') => (metrics[name] ? metrics[name].values[field] || 0 : 0);
  const count = (name) => thousands(value(name));
  const outcome = (name) => count(`outcomes{outcome:${name}}`);

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
  const lines = [
    `${crossed.length ? 'FAIL' : 'PASS'}  ${script}, ${Math.round(runSeconds)} s, ${value('vus_max', 'max')} clients, ${instances}`,
    '',
    `  keys        ${count('keys')}, ${executions}`,
    `  requests    ${count('attempts')} (${perSecond}/s), of which ${count('retries')} retries`,
    `  answers     ${outcome('executed')} executed, ${outcome('replayed')} replayed, ${outcome('in progress')} 409 in progress, ${outcome('unavailable')} 503, ${outcome('no answer')} none`,
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
  for (const of of BOOKED) {
    const [client, ledger] = [value(`client{of:${of}}`), value(`ledger{of:${of}}`)];
    const shown = of === 'charges' || of === 'journal entries' ? thousands : amount;
    lines.push(row(`  ${of}`, shown(client), shown(ledger), client === ledger ? 'ok' : 'DIFFERENT'));
  }
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
  return lines;
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
