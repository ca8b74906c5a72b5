// Reads and presses the console as a payment engineer does who is told "I was charged twice".

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

import { inEachScheme, mustBeAccessible } from "./browser.mjs";

// What nobody may be able to smuggle into a page. Pictures for the docs are of other texts.
const HOSTILE = process.env.SCREENSHOTS ? "Lamp, blue" : `"><script>globalThis.wasSmuggled = true</script><img src=x onerror="globalThis.wasSmuggled = true">'`;
const KEY = `order-${randomUUID()}`;

async function keysOf(page, url) {
  return (await page.request.get(new URL("/docs/authorization.json", url).href)).json();
}

async function call(page, url, path, body, key = randomUUID()) {
  const { api_key } = await keysOf(page, url);
  return page.request.post(new URL(path, url).href, {
    headers: { authorization: `Bearer ${api_key}`, "idempotency-key": key },
    data: body,
  });
}

const CHARGE = {
  amount: "42.00",
  currency: "USD",
  payment_method: "pm_card_visa",
  reference: `${KEY} ${HOSTILE}`,
  description: `d ${HOSTILE}`,
  metadata: { [`m ${HOSTILE}`.slice(0, 40)]: HOSTILE },
};

// A charge with everything: a retry, another request with its key, a refund. All of the console's visits look at it.
let charge;
async function make(page, url) {
  if (charge) return;
  charge = await (await call(page, url, "/v1/charges", CHARGE, KEY)).json();
  assert.equal((await call(page, url, "/v1/charges", CHARGE, KEY)).headers()["idempotent-replayed"], "true");
  assert.equal((await call(page, url, "/v1/charges", { ...CHARGE, amount: "43.00" }, KEY)).status(), 422);
  assert.equal((await call(page, url, "/v1/refunds", { charge_id: charge.id, amount: "2.00" })).status(), 201);
  await call(page, url, "/v1/webhook-endpoints", { url: "http://127.0.0.1:9/hook", event_types: ["*"] });
  assert.equal((await call(page, url, "/v1/charges", { ...CHARGE, reference: "declined", payment_method: "pm_card_declined" })).status(), 402);
}

async function enter(page, url, as) {
  await make(page, url);
  await page.goto(new URL("/console", url).href);
  await page.getByRole("button", { name: `Enter as ${as}` }).click();
  await page.getByRole("button", { name: "Leave" }).waitFor();
}

async function mustBeFine(page, name) {
  await mustBeAccessible(page);
  assert.equal(await page.evaluate(() => globalThis.wasSmuggled), undefined, name);
  await inEachScheme(page, `console-${name}`);
  await page.setViewportSize({ width: 360, height: 800 });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(overflow <= 0, `${name} is ${overflow} px too wide for a phone`);
  await inEachScheme(page, `console-${name}-narrow`);
  await page.setViewportSize({ width: 1280, height: 900 });
}

async function consoleIsEnteredWithAKey(page, url) {
  await make(page, url);
  await page.goto(new URL("/console", url).href);
  await mustBeFine(page, "enter");
  await page.getByLabel("API key or operator key").fill("sk_test_wrong");
  await page.getByRole("button", { name: "Enter", exact: true }).click();
  await page.getByText("There is no such key").waitFor();
  await page.getByLabel("API key or operator key").fill((await keysOf(page, url)).api_key);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Charges" }).waitFor();
  const [cookie] = await page.context().cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/console"]);
  assert.ok(!cookie.value.includes("sk_test_"));

  const merchant = new URL(page.url()).pathname.split("/")[2];
  const other = merchant.replace(/.$/, (last) => (last === "0" ? "1" : "0"));
  for (const path of [`/console/${other}/charges`, "/console/merchants", "/console/attention", "/console/nothing"]) {
    assert.equal((await page.request.get(new URL(path, url).href)).status(), 404, path);
  }
  // What another site's page would send, with the cookie or without.
  const foreign = { headers: { origin: "https://evil.example" }, form: { key: KEY, method: "POST", path: "/", body: "" } };
  for (const path of [`/console/${merchant}/key`, `/console/${merchant}/storm`, "/console/act", "/console/session/end"]) {
    const form = { ...foreign.form, duplicates: 2, action: "enable", subject: "x", key: KEY };
    assert.equal((await page.request.post(new URL(path, url).href, { ...foreign, form })).status(), 403, path);
  }
  await page.getByRole("button", { name: "Leave" }).click();
  await page.getByRole("heading", { name: "Enter the console" }).waitFor();
  assert.equal((await page.context().cookies()).length, 0);
}

async function consoleFindsAndTellsACharge(page, url) {
  await enter(page, url, "the merchant");
  await page.getByRole("link", { name: charge.id }).waitFor();
  await mustBeFine(page, "charges");
  const search = page.getByLabel("Id, reference or idempotency key");
  for (const text of [charge.id, CHARGE.reference]) {
    await search.fill(text);
    await search.press("Enter");
    await page.getByRole("link", { name: charge.id }).waitFor();
    assert.equal(await page.locator("tbody tr").count(), 1, text);
  }
  await page.getByLabel("State").selectOption("failed");
  await search.fill("");
  await search.press("Enter");
  await page.getByRole("cell", { name: "declined" }).first().waitFor();
  assert.deepEqual(new Set(await page.locator("tbody .state").allInnerTexts()), new Set(["failed"]));
  await page.getByLabel("State").selectOption("");
  await search.fill(KEY);
  await search.press("Enter");
  await page.getByRole("link", { name: "Look at its charge" }).click();

  await page.getByRole("heading", { name: `Charge ${charge.id}` }).waitFor();
  const told = await page.locator(".timeline li").allInnerTexts();
  const order = [/is claimed/, /charge\.succeeded/, /the first answer again: 201/, /the key was another request's: 422/, /charge\.refunded/];
  const places = order.map((pattern) => told.findIndex((text) => pattern.test(text)));
  assert.deepEqual(places, [...places].sort((a, b) => a - b), told.join("\n"));
  assert.ok(!places.includes(-1), told.join("\n"));
  const entry = page.locator(".entry").first();
  await entry.getByRole("columnheader", { name: "Debit" }).waitFor();
  assert.match(await entry.innerText(), /acquirer clearing\s+42\.00/);
  await page.getByText("Metadata").click();
  await page.getByText(HOSTILE, { exact: true }).first().waitFor();
  await mustBeFine(page, "charge");
}

async function consoleExplainsAKey(page, url) {
  await enter(page, url, "the merchant");
  await page.getByRole("link", { name: "Key inspector" }).click();
  await page.getByLabel("Idempotency key, without quotes").fill(KEY);
  await page.getByRole("button", { name: "Look", exact: true }).click();
  await page.getByText("the stored answer", { exact: false }).first().waitFor();
  const compare = async (body) => {
    await page.getByLabel("Body").fill(JSON.stringify(body));
    await page.getByRole("button", { name: "Compare" }).click();
    return page.locator("div[role=status]").innerText();
  };
  assert.match(await compare(Object.fromEntries(Object.entries(CHARGE).reverse())), /This is the same request\./);
  const differs = await compare({ ...CHARGE, amount: "43.00", reference: undefined, extra: "secret-value" });
  assert.match(differs, /This is another request/);
  for (const place of ["/amount has another value", "/reference is only in the first request", "/extra is only in this one"]) {
    assert.ok(differs.includes(place), differs);
  }
  assert.ok(!differs.includes("secret-value") && !differs.includes("42.00"), differs);
  await mustBeFine(page, "key");
}

async function consoleShowsBalances(page, url) {
  await enter(page, url, "the merchant");
  await page.getByRole("link", { name: "Balances" }).click();
  await page.getByRole("img", { name: /^Balance of merchant payable in USD/ }).waitFor();
  await page.getByRole("link", { name: "fee revenue" }).click();
  await page.getByRole("img", { name: /^Balance of fee revenue in USD/ }).waitFor();
  await mustBeFine(page, "balances");
}

async function consoleShowsAStormOfRetries(page, url) {
  await enter(page, url, "the merchant");
  await page.getByRole("link", { name: "Retry storm" }).click();
  await page.getByRole("button", { name: "Send them" }).click();
  await page.getByRole("heading", { name: "50 requests, 1 charge" }).waitFor();
  const counts = Object.fromEntries(
    (await page.locator(".legend b").allInnerTexts()).map((text) => text.split(" ").reverse()),
  );
  assert.equal(counts.executed, "1");
  assert.equal(Number(counts.replayed) + Number(counts.conflict), 49);
  await mustBeFine(page, "storm");
  await page.getByRole("link", { name: "Live" }).click();
  const live = page.getByRole("img", { name: /^Outcomes in each of the last 60 seconds/ });
  assert.match(await live.getAttribute("aria-label"), /[1-9]\d* executed, /);
  const first = await page.locator("#live time").last().getAttribute("datetime");
  // It goes on by itself.
  await page.waitForFunction((first) => [...document.querySelectorAll("#live time")].at(-1)?.getAttribute("datetime") !== first, first);
  await mustBeFine(page, "live");
}

async function consoleShowsWhatNeedsAPerson(page, url) {
  await enter(page, url, "an operator");
  await page.getByRole("heading", { name: "Needs a person" }).waitFor();
  await page.getByRole("heading", { name: "Differences to the processor's books" }).waitFor();
  await page.getByText("None, as far as the processor's books have been read.").waitFor();
  await mustBeFine(page, "attention");
  await page.getByRole("link", { name: "Runbook: OncepayRequestsParked" }).click();
  await page.getByRole("heading", { name: "OncepayRequestsParked" }).waitFor();
  await mustBeFine(page, "runbook");
  await page.getByRole("link", { name: "Merchants" }).click();
  await page.locator("tbody a").first().click();
  await page.getByRole("link", { name: charge.id }).waitFor();
}

async function consoleIsReadWithoutScripts(page, url) {
  await enter(page, url, "the merchant");
  const state = await page.context().storageState();
  const context = await page.context().browser().newContext({ storageState: state, javaScriptEnabled: false });
  const plain = await context.newPage();
  for (const section of ["charges", `charges/${charge.id}`, `key?key=${KEY}`, "balances", "attention", "live", "storm"]) {
    const merchant = new URL(page.url()).pathname.split("/")[2];
    const answer = await plain.goto(new URL(`/console/${merchant}/${section}`, url).href);
    assert.equal(answer.status(), 200, section);
    assert.ok((await plain.locator("h1").innerText()).length > 0, section);
  }
  await plain.getByRole("button", { name: "Send them" }).click();
  await plain.getByRole("heading", { name: "50 requests, 1 charge" }).waitFor();
  await context.close();
}

export const consoleVisits = [
  consoleIsEnteredWithAKey,
  consoleFindsAndTellsACharge,
  consoleExplainsAKey,
  consoleShowsBalances,
  consoleShowsAStormOfRetries,
  consoleShowsWhatNeedsAPerson,
  consoleIsReadWithoutScripts,
];
