import http.server, os, sqlite3, sys  # WEBHOOK_SECRET=whsec_… python receiver.py 9000 events.db
from standardwebhooks.webhooks import Webhook
hook, db = Webhook(os.environ["WEBHOOK_SECRET"]), sqlite3.connect(sys.argv[2])
db.executescript("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY); CREATE TABLE IF NOT EXISTS effects (what TEXT)")
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))  # The raw body: the signature covers these bytes.
        try: event = hook.verify(body, dict(self.headers))
        except Exception: return self.send_error(400)
        with db:  # One transaction records the event and applies it. Acknowledge it after the commit.
            if db.execute("INSERT OR IGNORE INTO seen VALUES (?)", [event["id"]]).rowcount:
                db.execute("INSERT INTO effects VALUES (?)", [f'{event["type"]} {event["data"]["id"]}'])
        self.send_response(204), self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
