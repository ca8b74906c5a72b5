"""A service with everything that its measurements need: merchants of several kinds, receivers, and requests to send."""

import base64
import hashlib
import hmac
import json
import time

import prepare
from programs import pgbench, wrk
from receivers import Endpoints, Sink, build
from service import Service

REPLAYED_KEYS = 1_000
# More than any run spends.
BALANCE = {"amount": "900000000.00", "currency": "USD", "payment_method": "pm_card_visa"}


class Stage:
    """A service of its own. What an operation needs is made when it's first asked for, and none of it while something is
    measured."""

    def __init__(self, binary):
        self.service, self.sink = Service(binary), None
        self.made, self.samples = {}, 0
        prepare.prepare_pgbench(self.service)

    def stop(self):
        if self.sink:
            self.sink.stop()
        self.service.stop()

    def once(self, name, make):
        """What `make` makes, made the first time."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def prefix(self):
        """What begins the idempotency keys and references of the next sample, and of no other."""
        self.samples += 1
        return f"sample-{self.samples}"

    def merchants(self, name="many", count=prepare.MERCHANTS):
        """Ids and API keys of merchants that are called so."""
        return self.once(name, lambda: prepare.make_merchants(self.service, name, count))

    def requests(self, *request, merchants="many", count=prepare.MERCHANTS):
        """A file with the same request for each merchant: method, path and body, or by default a charge."""
        keys = [key for _, key in self.merchants(merchants, count)]
        return prepare.write_lines(self.service, merchants, ["\t".join((key, *request)) for key in keys])

    def charges(self, kind):
        return self.once(f"charges {kind}", lambda: prepare.PreparedCharges(self.service, kind, self.merchants()))

    def charge_requests(self, kind, count, line):
        """A file with a request about each of the next charges of a kind. `line` makes it of the id and the API key of the
        merchant and the id of the charge."""
        charges = self.charges(kind)
        first = charges.provide(count, is_pgbench=False)
        lines = (line(*charges.merchant(number), charges.id(number)) for number in range(first, first + count))
        return prepare.write_lines(self.service, kind, lines)

    def standing_charges(self):
        """Charges that are there to be changed and listed."""
        charges = self.charges("patch")
        self.once("standing", lambda: charges.provide(prepare.STANDING_CHARGES, is_pgbench=False))
        return charges

    def fund(self):
        """Gives the merchants a balance that payouts and refunds can be taken from."""
        self.once("balance", lambda: [
            self.service.request("POST", "/v1/charges", BALANCE, key) for _, key in self.merchants()
        ])

    def make_replayable(self):
        """Executes the keys that are replayed."""

        def execute():
            deadline = time.monotonic() + 60
            while int(self.service.sql("SELECT count(*) FROM idempotency_keys WHERE key LIKE 'replay-%'")) < REPLAYED_KEYS:
                if time.monotonic() > deadline:
                    raise RuntimeError("the keys to replay aren't executed")
                wrk(self.service.url, 16, 1, self.requests(), "replay", replay=REPLAYED_KEYS)

        self.once("replayable", execute)

    def approval(self, merchant, _key, charge):
        """A request that tells of the approval of a pending charge, signed now: valid for five minutes."""
        data = {"merchant": f"mer_{merchant}", "reference": f"ch_{charge}"}
        body, id, timestamp = json.dumps({"type": "charge.succeeded", "data": data}), f"evt_{charge}", int(time.time())
        secret = base64.b64decode(self.service.settings["ONCEPAY_WEBHOOK_SECRET"].removeprefix("whsec_"))
        mac = hmac.digest(secret, f"{id}.{timestamp}.{body}".encode(), hashlib.sha256)
        signature = base64.b64encode(mac).decode()
        headers = (f"webhook-id: {id}", f"webhook-timestamp: {timestamp}", f"webhook-signature: v1,{signature}")
        return "\t".join(("", "POST", "/v1/webhooks/acquirer", body, *headers))

    def endpoints(self, merchants, each):
        """Endpoints of merchants that are called so, each of which has taken a message."""

        def make():
            self.sink = self.sink or Sink(build("sink"), self.service.folder)
            ids = [id for id, _ in self.merchants(merchants)]
            made = Endpoints(self.service, self.sink, ids, each)
            with made.enabled():
                wrk(self.service.url, 16, 3, self.requests(merchants=merchants), self.prefix(), rate=prepare.MERCHANTS)
                made.wait_until_delivered()
            return made

        return self.once(f"endpoints of {merchants}", make)

    def delivered(self):
        """The messages that the receiver has taken so far."""
        return self.sink.seen()["messages"] if self.sink else 0

    def pgbench(self, script, clients, seconds, rate=None):
        """A sample of a script, with what it uses up, as fast as it can or at a rate."""
        variables = {}
        if script == "patch":
            variables = {"charges": prepare.STANDING_CHARGES}
            self.once("standing of pgbench", lambda: self.charges(script).provide(prepare.STANDING_CHARGES, is_pgbench=True))
        elif script in prepare.PreparedCharges.KINDS:
            first = self.charges(script).provide(prepare.needed(clients, seconds), is_pgbench=True)
            variables = {"first": first, "stride": clients, "i": -1}
        cpu = self.service.postgres_cpu_s()
        result = pgbench(self.service, script, clients, seconds, rate, **variables)
        # What served it has ended, or is about to.
        time.sleep(0.2)
        result["postgres_cpu_us"] = (self.service.postgres_cpu_s() - cpu) / result["requests"] * 1e6
        return result
