// Draws a run as a page of its own: the ledger's verdict, latency and outcomes over time, settings. The page loads nothing
// from elsewhere and has no scripts. It has each picture twice, for wide and for narrow windows, and its figures as a table.

import { OUTCOMES } from './metrics.js';

const [LEFT, RIGHT, LATENCY_HEIGHT, OUTCOMES_HEIGHT, ROW, CHARACTER] = [58, 14, 130, 170, 16, 7.4];
const PERCENTILES = ['p50', 'p95', 'p99'];

const STYLE = `
  :root, svg { --ground: #ffffff; --text: #1f2328; --quiet: #59636e; --grid: #d8dee4; --p50: #0b66c3; --p95: #8250df; --p99: #b3410b;
    --good: #1a7f37; --bad: #cf222e; --executed: #1a7f37; --replayed: #6aa9e0; --in-progress: #d4a72c; --refused: #8250df;
    --unavailable: #f0883e; --other-5xx: #82071e; --no-answer: #8c959f; color-scheme: light dark; }
  @media (prefers-color-scheme: dark) {
    :root, svg { --ground: #0d1117; --text: #e6edf3; --quiet: #9198a1; --grid: #30363d; --p50: #58a6ff; --p95: #bc8cff; --p99: #f0883e;
      --good: #3fb950; --bad: #ff7b72; --executed: #2ea043; --replayed: #2f6bb0; --in-progress: #9e6a03; --refused: #8957e5;
      --unavailable: #f0883e; --other-5xx: #ff7b72; --no-answer: #6e7681; }
  }
  svg { fill: none; stroke-linejoin: round; }
  svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
  svg .quiet { fill: var(--quiet); }
  svg .title { font-weight: 600; }
  svg .grid { stroke: var(--grid); }
  svg .down { stroke: var(--bad); stroke-width: 1.5; }
  svg .up { stroke: var(--good); stroke-width: 1.5; stroke-dasharray: 5 3; }
  svg .verdict { font-size: 16px; font-weight: 600; }
${PERCENTILES.map((of) => `  svg .${of} { stroke: var(--${of}); stroke-width: 2; }`).join('\n')}
  svg .p95 { stroke-dasharray: 6 3; }
${OUTCOMES.map((of) => `  svg .${slug(of)} { fill: var(--${slug(of)}); }`).join('\n')}`;

/** Returns the page. `run` is what `summary.js` says of a run, and `text` the summary that it prints. */
export function page(run, text) {
  const rows = run.slices.map((slice) => [
    `${number(slice.seconds)} s`,
    ...OUTCOMES.map((of) => slice.outcomes[of]),
    ...run.series.flatMap((name) => PERCENTILES.map((of) => (slice.latency[name] ? ms(slice.latency[name][of]) : ''))),
  ]);
  const figures = ['from', ...OUTCOMES, ...run.series.flatMap((name) => PERCENTILES.map((of) => `${name} ${of}`))];
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${escaped(`${run.verdict} ${run.title}`)}</title>
<style>${STYLE}
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 1.5em auto; padding: 0 16px; color: var(--text); background: var(--ground); }
  h1 { font-size: 1.5em; line-height: 1.3; margin: 0 0 .5em; }
  h1 b { padding: 0 .4em; border-radius: 4px; color: var(--ground); background: var(--good); }
  .fail h1 b { background: var(--bad); }
  h2 { font-size: 1.15em; margin: 1.8em 0 .4em; }
  dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 0; }
  dl div { border: 1px solid var(--grid); border-left: 4px solid var(--good); border-radius: 4px; padding: .4em .8em; }
  dl .bad { border-left-color: var(--bad); }
  dt { color: var(--quiet); }
  dd { margin: 0; font-size: 1.3em; font-weight: 600; }
  .bad dd { color: var(--bad); }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .2em .9em .2em 0; border-bottom: 1px solid var(--grid); text-align: right; font-weight: normal; white-space: nowrap; }
  th { color: var(--quiet); }
  th:first-child { text-align: left; }
  pre { overflow-x: auto; font-size: 13px; }
  svg { display: block; width: 100%; height: auto; }
  .narrow { display: none; }
  @media (max-width: 640px) { .wide { display: none; } .narrow { display: block; } }
</style>
<body class="${run.verdict.toLowerCase()}">
<h1><b>${run.verdict}</b> ${escaped(run.title)}</h1>
<dl>
${run.checks.map(({ name, value, isGood }) => `<div${isGood ? '' : ' class="bad"'}><dt>${name}</dt><dd>${value}</dd></div>`).join('\n')}
</dl>
${run.violations.length ? `<h2>Violations</h2>\n${table(['', 'times'], run.violations)}` : ''}
<h2 id="time">Latency and outcomes over time</h2>
${run.slices.length ? `<div class="wide">${picture(run, 928)}</div>\n<div class="narrow">${picture(run, 340)}</div>` : '<p>Nothing was measured.</p>'}
${run.marks.length ? `<p>▼ 1 gone: instance 1 refuses connections. ▲ 1 back: it answers again.</p>` : ''}
<details><summary>The same as a table: answers, and latency in ms, for each ${number(run.sliceSeconds)} s</summary>
${table(figures, rows)}
</details>
<h2>The ledger and the clients</h2>
${table(['', 'clients', 'ledger'], run.books)}
<h2>Latency of the run</h2>
${table(['in ms', ...PERCENTILES, 'answers'], run.latency)}
<h2>Settings and versions</h2>
${table(['name', 'value'], run.settings)}
<h2>What it printed</h2>
<pre>${escaped(text)}</pre>
</html>
`;
}

/** Returns the verdict and the picture as an SVG of its own. */
export function image(run, width = 900) {
  const inner = picture(run, width - 32);
  const height = Number(/viewBox="0 0 \d+ (\d+)"/.exec(inner)[1]) + 68;
  const checks = run.checks.map(({ name, value }) => `${name}: ${value}`).join('  ·  ');
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}">
<style>${STYLE}
  svg .${run.verdict.toLowerCase()} { fill: var(--${run.verdict === 'PASS' ? 'good' : 'bad'}); }
</style>
<rect width="${width}" height="${height}" rx="6" style="fill: var(--ground)"/>
<text x="16" y="28" class="verdict"><tspan class="${run.verdict.toLowerCase()}">${run.verdict}</tspan>  ${escaped(run.title)}</text>
<text x="16" y="48">${escaped(checks)}</text>
${inner.replace('<svg ', `<svg x="16" y="60" width="${width - 32}" height="${height - 68}" `)}
</svg>
`;
}

/** Draws the panels above each other, on one scale of time, with the marks across. */
function picture(run, width) {
  const lengthSeconds = run.slices.length * run.sliceSeconds;
  const x = (seconds) => LEFT + (seconds / lengthSeconds) * (width - LEFT - RIGHT);
  const labels = placed(run.marks, x, width);
  const parts = labels.map(
    ({ text, isDown, left, row }) => `<text x="${at(left)}" y="${12 + row * ROW}">${isDown ? '▼' : '▲'} ${text}</text>`,
  );
  let top = labels.length ? Math.max(...labels.map(({ row }) => row + 1)) * ROW + 6 : 0;
  const crossings = [[top - 4, top + 4]];
  for (const name of run.series.filter((series) => run.slices.some(({ latency }) => latency[series]))) {
    parts.push(...latencyPanel(run, name, x, top, width));
    crossings.push([top + 30, top + 30 + LATENCY_HEIGHT]);
    top += LATENCY_HEIGHT + 44;
  }
  parts.push(...outcomesPanel(run, x, top, width));
  crossings.push([top + 28, top + 28 + OUTCOMES_HEIGHT]);
  top += OUTCOMES_HEIGHT + 28;
  for (const { seconds, isDown } of run.marks) {
    parts.push(`<path class="${isDown ? 'down' : 'up'}" d="${crossings.map(([from, to]) => `M${at(x(seconds))} ${from}V${to}`).join('')}"/>`);
  }
  for (const tick of ticks(lengthSeconds, width < 500 ? 4 : 8)) {
    const anchor = tick > lengthSeconds * 0.96 ? 'end' : 'middle';
    parts.push(`<text class="quiet" x="${at(x(tick))}" y="${top + 16}" text-anchor="${anchor}">${number(tick)} s</text>`);
  }
  const legend = legendOf(run, width);
  legend.forEach(({ of, left, row }) => {
    const y = top + 34 + row * 18;
    parts.push(`<rect class="${slug(of)}" x="${at(left)}" y="${y - 10}" width="12" height="12"/>`);
    parts.push(`<text x="${at(left + 17)}" y="${y}">${of}</text>`);
  });
  const height = top + 44 + Math.max(...legend.map(({ row }) => row)) * 18;
  const marks = run.marks.map(({ seconds, text }) => `${text} after ${number(seconds)} s`).join(', ');
  return `<svg viewBox="0 0 ${width} ${height}" role="img"><title>Latency and outcomes over time</title>
<desc>${escaped(`${run.verdict}. ${marks || 'All instances answered all the time'}. The figures are in the tables of the report.`)}</desc>
${parts.join('\n')}</svg>`;
}

function latencyPanel({ slices, sliceSeconds }, name, x, top, width) {
  const points = slices.map(({ latency }) => latency[name]);
  const known = points.filter(Boolean);
  const low = 10 ** Math.floor(Math.log10(Math.max(Math.min(...known.map(({ p50 }) => p50)), 0.1)));
  const high = Math.max(...known.map(({ p99 }) => p99), low * 10) * 1.1;
  const [upper, lower] = [top + 30, top + 30 + LATENCY_HEIGHT];
  // The scale is logarithmic: replays take a tenth of the time of executions, and both matter.
  const y = (value) => lower - (Math.log(Math.max(value, low) / low) / Math.log(high / low)) * LATENCY_HEIGHT;
  const parts = [`<text class="title" x="0" y="${top + 16}">Latency: ${escaped(name)}</text>`];
  // What the lines are, in the panel's head, from the right.
  PERCENTILES.forEach((of, i) => {
    const left = width - RIGHT - (PERCENTILES.length - i) * 52 + 6;
    parts.push(`<path class="${of}" d="M${left} ${top + 12}h18"/><text x="${left + 22}" y="${top + 16}">${of}</text>`);
  });
  for (let decade = low; decade <= high; decade *= 10) {
    const between = high / low > 100 ? [] : [2 * decade, 5 * decade];
    for (const value of [decade, ...between].filter((value) => value <= high)) {
      parts.push(...gridLine(y(value), `${number(value)} ms`, width));
    }
  }
  for (const of of PERCENTILES) {
    let isAfterGap = true;
    const path = points.map((point, i) => {
      if (!point) {
        isAfterGap = true;
        return '';
      }
      // A point alone would be no line: it gets the length of its slice.
      const isAlone = isAfterGap && !points[i + 1];
      const middle = x((i + 0.5) * sliceSeconds);
      const step = `${isAfterGap ? 'M' : 'L'}${at(middle)} ${at(y(point[of]))}${isAlone ? 'h4' : ''}`;
      isAfterGap = false;
      return step;
    });
    parts.push(`<path class="${of}" d="${path.join('')}"/>`);
  }
  parts.push(`<path class="grid" d="M${LEFT} ${upper}V${lower}"/>`);
  return parts;
}

/** Draws how many requests per second ended how, as bars on top of each other. */
function outcomesPanel({ slices, sliceSeconds }, x, top, width) {
  const total = ({ outcomes }) => OUTCOMES.reduce((sum, of) => sum + outcomes[of], 0) / sliceSeconds;
  const high = Math.max(...slices.map(total), 1) * 1.05;
  const lower = top + 28 + OUTCOMES_HEIGHT;
  const y = (perSecond) => lower - (perSecond / high) * OUTCOMES_HEIGHT;
  const parts = [`<text class="title" x="0" y="${top + 16}">Outcomes, requests per second</text>`];
  ticks(high, 4).forEach((tick) => parts.push(...gridLine(y(tick), `${number(tick)}/s`, width)));
  const barWidth = Math.max(x(sliceSeconds) - x(0) - 1, 0.5);
  // One path for each outcome keeps the file small.
  const paths = OUTCOMES.map((of, i) =>
    slices
      .map(({ outcomes }, slice) => {
        const below = OUTCOMES.slice(0, i).reduce((sum, other) => sum + outcomes[other], 0) / sliceSeconds;
        const own = outcomes[of] / sliceSeconds;
        const [left, upper] = [x(slice * sliceSeconds), y(below + own)];
        return own ? `M${at(left)} ${at(upper)}h${at(barWidth)}V${at(y(below))}h-${at(barWidth)}z` : '';
      })
      .join(''),
  );
  OUTCOMES.forEach((of, i) => paths[i] && parts.push(`<path class="${slug(of)}" d="${paths[i]}"/>`));
  return parts;
}

function gridLine(y, label, width) {
  return [
    `<path class="grid" d="M${LEFT} ${at(y)}H${width - RIGHT}"/>`,
    `<text class="quiet" x="${LEFT - 6}" y="${at(y + 4)}" text-anchor="end">${label}</text>`,
  ];
}

/** Returns the marks with a place for their labels: in the first row where none is in the way. */
function placed(marks, x, width) {
  const rowEnds = [];
  return marks.map((mark) => {
    const length = (mark.text.length + 2) * CHARACTER;
    const left = Math.min(x(mark.seconds) - 5, width - length);
    const free = rowEnds.findIndex((end) => end < left);
    const row = free < 0 ? rowEnds.length : free;
    rowEnds[row] = left + length;
    return { ...mark, left, row };
  });
}

/** Returns the outcomes that occur, each with its place in the legend. */
function legendOf({ slices }, width) {
  let [left, row] = [LEFT, 0];
  const occurring = OUTCOMES.filter((of) => slices.some(({ outcomes }) => outcomes[of]));
  return occurring.map((of) => {
    const length = of.length * CHARACTER + 34;
    if (left + length > width && left > LEFT) {
      [left, row] = [LEFT, row + 1];
    }
    left += length;
    return { of, left: left - length, row };
  });
}

/** Returns round numbers from zero up to a limit, about as many as wanted. */
function ticks(limit, wanted) {
  const power = 10 ** Math.floor(Math.log10(limit / wanted));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => limit / size <= wanted);
  return Array.from({ length: Math.floor(limit / step) + 1 }, (_, i) => i * step);
}

function table(heads, rows) {
  const cells = (row) => row.map((cell, i) => (i ? `<td>${escaped(cell)}</td>` : `<th scope="row">${escaped(cell)}</th>`));
  return `<div class="scroll"><table>
<thead><tr>${heads.map((head) => `<th scope="col">${escaped(head)}</th>`).join('')}</tr></thead>
<tbody>${rows.map((row) => `<tr>${cells(row).join('')}</tr>`).join('\n')}</tbody></table></div>`;
}

function slug(name) {
  return name.replace(/ /g, '-');
}

function ms(value) {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

function number(value) {
  return String(Number(value.toPrecision(3)));
}

function at(coordinate) {
  return String(Number(coordinate.toFixed(1)));
}

function escaped(text) {
  return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;');
}
