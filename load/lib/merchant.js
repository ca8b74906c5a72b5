// Merchants that each run makes for itself, so that their ledgers hold only this run's payments.

import { Client, headersOf } from './client.js';
import { PRICING } from './money.js';
import { operatorKey } from './settings.js';

/**
 * Makes `count` merchants. k6 hands the result to every virtual user, to the check at the end, and to the report, which names the
 * `versions`.
 */
export async function newMerchants(script, count = 1) {
  const operator = new Client(operatorKey);
  const run = `load-${Date.now().toString(36)}-${Math.floor(Math.random() * 2 ** 32).toString(36)}`;
  const merchants = [];
  for (let i = 0; i < count; i++) {
    const body = JSON.stringify({ name: `Load: ${script} ${i + 1}`, ...PRICING });
    const answer = await operator.insist('POST', '/v1/operator/merchants', body, headersOf({ key: `${run}-${i}` }));
    const { id, api_key } = answer.json();
    merchants.push({ id, apiKey: api_key.key });
  }
  return { merchants, versions: await versions(operator) };
}

async function versions(client) {
  const { request, text } = await client.insist('GET', '/openapi.json', null, {});
  const [agent] = request.headers['User-Agent'] || ['?'];
  return { oncepay: JSON.parse(text).info.version, k6: agent.replace('Grafana k6/', '') };
}
