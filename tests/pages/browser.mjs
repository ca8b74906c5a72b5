// A browser that lets nothing pass: no error on a page's console, no request that leaves the server, no violation of axe's rules.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

import { chromium } from "playwright-core";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const SCREENSHOTS = process.env.SCREENSHOTS;

// Runs `visit(page, url)` for each visit, each in a new context.
export async function visiting(url, visits) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    // As root, Chromium has no sandbox.
    args: ["--no-sandbox", "--disable-gpu"],
  });
  try {
    for (const visit of visits) {
      const began = performance.now();
      const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce" });
      const page = await context.newPage();
      const faults = watch(page, url);
      await visit(page, url);
      assert.deepEqual(faults, [], visit.name);
      await context.close();
      console.log(`${visit.name}: ok (${Math.round(performance.now() - began)} ms)`);
    }
  } finally {
    await browser.close();
  }
}

// What a page does wrong from now on.
function watch(page, url) {
  const faults = [];
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("console", (message) => {
    const isRefusal = /the server responded with a status of 4\d\d/.test(message.text());
    if (message.type() === "error" && !isRefusal) {
      faults.push(`console: ${message.text()}`);
    }
  });
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (origin !== new URL(url).origin && !["data:", "blob:"].includes(protocol)) {
      faults.push(`asks elsewhere: ${request.url()}`);
    }
  });
  return faults;
}

// Checks the page with axe in light and dark. Its script is told to the page by the browser, past the page's policy.
export async function mustBeAccessible(page) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await page.evaluate(await (await import("node:fs/promises")).readFile(AXE, "utf8"));
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
    assert.deepEqual(told, [], `${page.url()} in ${colorScheme}`);
  }
}

// Takes a screenshot in light and in dark, if somebody wants them.
export async function inEachScheme(page, name) {
  for (const colorScheme of SCREENSHOTS ? ["dark", "light"] : []) {
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path: path.join(SCREENSHOTS, `${name}-${colorScheme}.png`) });
  }
}
