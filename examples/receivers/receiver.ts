import { createServer } from "node:http"; // WEBHOOK_SECRET=whsec_… DATABASE_URL=postgres://… npx tsx receiver.ts 9001
import pg from "pg";
import { Webhook } from "standardwebhooks";
const hook = new Webhook(process.env.WEBHOOK_SECRET!), db = new pg.Pool({ connectionString: process.env.DATABASE_URL });
db.on("error", console.error); // An idle connection that breaks must not end the program.
await db.query("CREATE TABLE IF NOT EXISTS seen (id text PRIMARY KEY); CREATE TABLE IF NOT EXISTS effects (what text)");
createServer(async (request, response) => {
  const verify = (body: Buffer[]) => hook.verify(Buffer.concat(body), request.headers as Record<string, string>);
  const event: any = await request.toArray().then(verify).catch(() => null); // null: a wrong signature, or a broken upload.
  if (!event) return response.writeHead(400).end();
  // One transaction records the event and applies it. Acknowledge it after the commit.
  const once = `WITH unseen AS (INSERT INTO seen VALUES ($1) ON CONFLICT DO NOTHING RETURNING id)
                INSERT INTO effects SELECT $2 FROM unseen`;
  const status = await db.query(once, [event.id, `${event.type} ${event.data.id}`]).then(() => 204, () => 503);
  response.writeHead(status).end();
}).listen(Number(process.argv[2]), "127.0.0.1");
