import { fileStore, oncepay } from "./src/retries.ts";

const once = oncepay({
  url: process.env["ONCEPAY_URL"] ?? "http://127.0.0.1:8080",
  apiKey: process.env["ONCEPAY_API_KEY"] ?? "",
  store: fileStore("payments"),
});
const order = process.argv[2] ?? "order-1001";
const { data: charge, error } = await once(order).POST("/v1/charges", {
  body: { amount: "12.50", currency: "USD", payment_method: "pm_card_visa", reference: order },
});
if (charge) console.log(`${order} is paid: ${charge.id} is ${charge.status}`);
else console.error(`${order} isn't paid: ${error.detail}`);
