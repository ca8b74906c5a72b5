// Draws latency over time as a page of its own: an SVG, and the summary below it. The page loads nothing
// from elsewhere.

import { SLICES, sliceMs } from './metrics.js';

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [960, 420, 64, 16, 16, 40];
const COLORS = ['#2563eb', '#d97706', '#059669', '#9333ea', '#dc2626'];

/** Returns the page. For each series, a thin line is the median and a bold one the 99th percentile. */
export function chart(summary, series, metrics) {
  const lines = series.map((name) => ({ name, points: pointsOf(name, metrics) }));
  const all = lines.flatMap(({ points }) => points);
  if (all.length === 0) {
    return page(summary, '<p>Nothing was measured.</p>', '');
  }
  const slices = Math.max(...all.map(({ slice }) => slice)) + 1;
  const low = 10 ** Math.floor(Math.log10(Math.max(Math.min(...all.map(({ p50 }) => p50)), 0.1)));
  const high = Math.max(...all.map(({ p99 }) => p99), low * 10) * 1.1;
  const x = (slice) => LEFT + ((slice + 0.5) / slices) * (WIDTH - LEFT - RIGHT);
  // The scale is logarithmic: replays take a tenth of the time of executions, and both matter.
  const y = (ms) =>
    HEIGHT - BOTTOM - (Math.log(Math.max(ms, low) / low) / Math.log(high / low)) * (HEIGHT - TOP - BOTTOM);

  const parts = [];
  for (let decade = low; decade <= high; decade *= 10) {
    for (const ms of [decade, 2 * decade, 5 * decade].filter((at) => at <= high)) {
      parts.push(`<path class="grid" d="M${LEFT} ${at(y(ms))}H${WIDTH - RIGHT}"/>`);
      parts.push(`<text x="${LEFT - 8}" y="${at(y(ms) + 4)}" text-anchor="end">${Number(ms.toPrecision(1))} ms</text>`);
    }
  }
  for (let tick = 0; tick <= 4; tick++) {
    const seconds = (tick / 4) * slices * (sliceMs / 1000);
    const left = LEFT + (tick / 4) * (WIDTH - LEFT - RIGHT);
    parts.push(
      `<text x="${at(left)}" y="${HEIGHT - 14}" text-anchor="${['start', 'middle', 'middle', 'middle', 'end'][tick]}">${Number(seconds.toFixed(1))} s</text>`,
    );
  }
  lines.forEach(({ points }, i) => {
    const color = COLORS[i % COLORS.length];
    const path = (of) =>
      points.map((point, j) => `${j === 0 ? 'M' : 'L'}${at(x(point.slice))} ${at(y(point[of]))}`).join('');
    parts.push(`<path d="${path('p50')}" stroke="${color}" stroke-width="1" opacity=".6"/>`);
    parts.push(`<path d="${path('p99')}" stroke="${color}" stroke-width="2.5"/>`);
    points.forEach((point) =>
      parts.push(`<circle cx="${at(x(point.slice))}" cy="${at(y(point.p99))}" r="2.5" fill="${color}"/>`),
    );
  });
  const svg = `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="Latency over time">${parts.join('\n')}</svg>`;
  const legend = lines
    .map(({ name }, i) => `<b style="color:${COLORS[i % COLORS.length]}">${escaped(name)}</b>`)
    .join(', ');
  return page(
    summary,
    svg,
    `${legend}: p99 bold, median thin; a point for each ${sliceMs / 1000} s, on a logarithmic scale.`,
  );
}

function pointsOf(name, metrics) {
  return Array.from({ length: SLICES }, (_, slice) => ({
    slice,
    metric: metrics[`latency{series:${name},slice:${slice}}`],
  }))
    .filter(({ metric }) => metric && metric.values.count > 0)
    .map(({ slice, metric }) => ({ slice, p50: metric.values.med, p99: metric.values['p(99)'] }));
}

function page(summary, svg, legend) {
  const title = escaped(summary.split('\n')[0]);
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>${title}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }
  svg { width: 100%; height: auto; fill: none; stroke-linejoin: round; }
  svg text { font-size: 12px; fill: #666; }
  .grid { stroke: #e5e5e5; }
</style>
<h1>${title}</h1>
<p>${legend}</p>
${svg}
<pre>${escaped(summary)}</pre>
</html>
`;
}

function at(number) {
  return number.toFixed(1);
}

function escaped(text) {
  return text.replace(/&/g, '&amp;').replace(/</g, '&lt;');
}
