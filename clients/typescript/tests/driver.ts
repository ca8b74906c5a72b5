// Charges orders, several at a time, and writes a line for each: the charge, or what was thrown. .ci/clients.py runs and kills it.
// ONCEPAY_URL=… ONCEPAY_API_KEY=… node driver.js FOLDER WORKERS SECONDS AMOUNT ORDER…
import { fileStore, oncepay } from "../src/retries.ts";

const [folder = "", workers, seconds, amount = "", ...orders] = process.argv.slice(2);
const once = oncepay({
  url: process.env["ONCEPAY_URL"] ?? "",
  apiKey: process.env["ONCEPAY_API_KEY"] ?? "",
  store: fileStore(folder),
  attemptTimeout: 3_000,
  giveUpAfter: Number(seconds) * 1_000,
});

async function pay(order: string): Promise<object> {
  try {
    const body = { amount, currency: "USD" as const, payment_method: "pm_card_visa", reference: order };
    const { data } = await once(order).POST("/v1/charges", { body });
    return data ? { charge: data } : { error: "Refused" };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return { error: error.constructor.name, message: error.message };
  }
}

const waiting = orders.values();
await Promise.all(
  Array.from({ length: Number(workers) }, async () => {
    for (const order of waiting) process.stdout.write(`${JSON.stringify({ order, ...(await pay(order)) })}\n`);
  }),
);
