// Presses what a newcomer presses: the first page, then the reference of a development environment.

import assert from "node:assert/strict";

import { inEachScheme, mustBeAccessible } from "./browser.mjs";

const CHARGE = '.opblock-post:has([data-path="/v1/charges"])';

// The status and the headers that the reference shows for the last answer.
async function shown(operation) {
  const live = operation.locator(".live-responses-table");
  const status = await live.locator("tbody .response-col_status").first().innerText();
  return { status: Number.parseInt(status, 10), text: await live.innerText() };
}

async function execute(operation, button, amount) {
  if (amount) {
    const body = { amount, currency: "USD", payment_method: "pm_card_visa" };
    await operation.locator("textarea.body-param__text").fill(JSON.stringify(body));
  }
  const key = () => operation.locator('tr[data-param-name="Idempotency-Key"] input').inputValue();
  const answered = operation.page().waitForResponse((answer) => answer.url().endsWith("/v1/charges"));
  await button.click();
  const answer = await answered;
  const { id, code } = await answer.json();
  return { status: answer.status(), id, code, key: await key(), isReplay: answer.headers()["idempotent-replayed"] === "true" };
}

export async function firstPage(page, url) {
  await page.goto(url);
  await page.getByRole("heading", { name: "Oncepay" }).waitFor();
  const line = await page.locator("pre code").innerText();
  assert.match(line, /^curl -i http:\/\/127\.0\.0\.1:\d+\/v1\/charges/);
  for (const name of ["API reference", "OpenAPI document", "Problems", "Readiness"]) {
    const path = await page.getByRole("link", { name, exact: true }).getAttribute("href");
    assert.equal((await page.request.get(new URL(path, url).href)).status(), 200, path);
  }
  await mustBeAccessible(page);
  await inEachScheme(page, "first-page");
  return line;
}

// Nobody else's name leads to the keys, as a page that rebinds its own to this address would try.
export async function keysAreForThisMachine(page, url) {
  for (const path of ["/", "/docs/authorization.json"]) {
    const asked = (host) => page.request.get(new URL(path, url).href, { headers: { host } });
    assert.match(await (await asked("localhost")).text(), /sk_test_/, path);
    assert.doesNotMatch(await (await asked("rebound.example")).text(), /sk_test_/, path);
  }
}

export async function reference(page, url) {
  await page.goto(new URL("/docs/", url).href);
  const groups = page.locator(".opblock-tag");
  await groups.first().waitFor();
  const names = await groups.evaluateAll((tags) => tags.map((tag) => tag.getAttribute("data-tag")));
  assert.deepEqual(names.slice(0, 5), ["Charges", "Refunds", "Payouts", "Disputes", "Balance"]);
  assert.equal(names.at(-1), "Operators");
  // The keys of the environment are filled in.
  await page.locator(".auth-wrapper .authorize.locked").first().waitFor();

  const operation = page.locator(CHARGE);
  await operation.locator(".opblock-summary-control").click();
  await operation.getByRole("button", { name: "Try it out" }).click();
  const press = operation.locator("button.execute");
  const first = await execute(operation, press, "10.00");
  const second = await execute(operation, press, "11.00");
  assert.equal(first.status, 201);
  assert.equal(second.status, 201, "another body has another key");
  assert.notEqual(first.key, second.key);
  assert.notEqual(first.id, second.id);
  const note = operation.locator(".idempotency-note");
  assert.match(await note.innerText(), /^Executed\./);

  const again = operation.getByRole("button", { name: "Send again, same key" });
  const replay = await execute(operation, again);
  assert.deepEqual([replay.status, replay.id, replay.isReplay], [201, second.id, true]);
  await operation.getByText("A replay: the stored answer").waitFor();
  assert.match((await shown(operation)).text, /idempotent-replayed: true/);
  await operation.scrollIntoViewIfNeeded();
  await inEachScheme(page, "reference");

  const reused = await execute(operation, again, "12.00");
  assert.deepEqual([reused.status, reused.code], [422, "idempotency_key_reused"]);
}
