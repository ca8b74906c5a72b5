"""What is in the database before something is measured: merchants, keys, and what the measured operations use up."""

import os

MERCHANTS = 100
# Requests for which something is prepared: per client, whose requests follow each other, and of all clients together.
PREPARED_PER_CLIENT_S, PREPARED_PER_S_MAX = 1_500, 6_000
# Requests that may still be under way when it's counted how many charges they have used up.
UNDER_WAY_MAX = 300
# Charges that are there to be changed and listed.
STANDING_CHARGES = 10_000
# The account kinds that the measured operations post to.
ACCOUNT_KINDS = ("acquirer_clearing", "merchant_payable", "fee_revenue", "payouts_in_transit")


def make_merchants(service, name, count):
    """Ids (as in the database) and API keys of new merchants, each of which has a charge and so its accounts."""
    made = []
    for number in range(count):
        body = {"name": f"{name} {number}", "fee_rate": "0.029", "fee_fixed": "0.30"}
        merchant = service.request("POST", "/v1/operator/merchants", body)
        key = merchant["api_key"]["key"]
        charge = {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"}
        service.request("POST", "/v1/charges", charge, key)
        made.append((merchant["id"].removeprefix("mer_"), key))
    return made


def new_merchants(service, name, count):
    """A file with the API keys of new merchants."""
    return write_lines(service, name, [key for _, key in make_merchants(service, name, count)])


def write_lines(service, name, lines):
    """A file with requests for wrk."""
    file = os.path.join(service.folder, f"{name}.requests")
    with open(file, "w") as requests:
        requests.writelines(line + "\n" for line in lines)
    return file


def prepare_pgbench(service):
    """Merchants with ids that pgbench can compute, with a price, accounts, and a balance to spend; and keys to select."""
    kinds = ", ".join(f"'{kind}'" for kind in ACCOUNT_KINDS)
    service.sql(
        "INSERT INTO merchants (merchant_id, name) "
        f"SELECT md5(m::text)::uuid, 'pgbench ' || m FROM generate_series(1, {MERCHANTS}) m; "
        "INSERT INTO merchant_pricing (merchant_id, effective_at, fee_rate, fee_fixed) "
        f"SELECT md5(m::text)::uuid, now(), 0.029, 0.30 FROM generate_series(1, {MERCHANTS}) m; "
        "INSERT INTO ledger_accounts (merchant_id, kind, currency) SELECT md5(m::text)::uuid, kind, 'USD' "
        f"FROM generate_series(1, {MERCHANTS}) m, unnest(ARRAY[{kinds}]) kind"
    )
    lines = "(1, 'acquirer_clearing', 900000000.00), (2, 'merchant_payable', -900000000.00)"
    post_entries(service, pgbench_merchant("n"), "'balance'", lines, 1, MERCHANTS)
    insert_keys(service, "md5('1')::uuid", "select-", 1, 1_000)


def pgbench_merchant(number):
    """SQL: the merchant of a number, as the scripts of pgbench compute it."""
    return f"md5(({number} % {MERCHANTS} + 1)::text)::uuid"


def insert_keys(service, merchant, prefix, first, last):
    """Completed keys, as large as those of charges."""
    service.sql(
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, "
        "request_method, request_path, request_query, request_body, attempts, recovery_point, response_status, "
        "response_headers, response_body, created_at, completed_at, expires_at) "
        f"SELECT {merchant}, '{prefix}' || n, 'completed', 'charges.create', 1, sha256('x'), 'req_1', 'POST', "
        "'/v1/charges', '', '{}', 1, 'finished', 201, '[]', convert_to(repeat('x', 480), 'UTF8'), now(), now(), "
        f"now() + interval '1 day' FROM generate_series({first}, {last}) n"
    )


def needed(clients, seconds):
    """How many of what is used up the fastest run could need."""
    return seconds * min(clients * PREPARED_PER_CLIENT_S, PREPARED_PER_S_MAX)


CAPTURE_LINES = "(1, 'acquirer_clearing', 12.50), (2, 'merchant_payable', -11.84), (3, 'fee_revenue', -0.66)"


def post_entries(service, merchant, source, lines, first, last):
    """A journal entry for each n, with its postings. `merchant` and `source` are SQL on n."""
    service.sql(
        "WITH entry AS (INSERT INTO journal_entries (merchant_id, id, source, created_at) "
        f"SELECT {merchant}, uuid_v7(), {source}, now() FROM generate_series({first}, {last}) n RETURNING merchant_id, id) "
        "INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at) "
        "SELECT e.merchant_id, e.id, line.number, a.id, 'USD', line.amount, now() FROM entry e, "
        f"(VALUES {lines}) AS line (number, kind, amount) "
        "JOIN ledger_accounts a ON a.kind = line.kind AND a.currency = 'USD' WHERE a.merchant_id = e.merchant_id"
    )


class PreparedCharges:
    """Charges in a certain state, of which each request or transaction uses up one: with numbers, from which their ids and
    merchants follow, one half for requests, the other for pgbench. They are written into the tables, as a processor that has
    no state doesn't miss them."""

    # The number in the ids, as the scripts of pgbench have it, and the state.
    KINDS = {"capture": (1, "requires_capture"), "refund": (2, "succeeded"), "patch": (3, "succeeded"),
             "inbound_event": (4, "processing")}

    def __init__(self, service, kind, merchants):
        self.service, self.kind, self.merchants = service, kind, merchants
        self.number, self.status = self.KINDS[kind]

    def _id_prefix(self):
        return f"019000000{self.number:03x}70008000"

    def id(self, number):
        """As in the API, without its prefix."""
        return f"{self._id_prefix()}{number:012x}"

    def merchant(self, number):
        """Id and API key of the merchant of a charge."""
        return self.merchants[number % len(self.merchants)]

    def _merchant_sql(self, is_pgbench):
        if is_pgbench:
            return pgbench_merchant("n")
        ids = ", ".join(f"'{id}'" for id, _ in self.merchants)
        return f"(ARRAY[{ids}]::uuid[])[n % {len(self.merchants)} + 1]"

    def provide(self, count, is_pgbench):
        """The number of the first of so many charges that nothing has used. Those that are there already are used first."""
        used, last = map(int, self.service.sql(
            f"SELECT coalesce(max(n) FILTER (WHERE status <> '{self.status}'), 0), coalesce(max(n), 0) "
            "FROM charges c, LATERAL split_part(authorization_id, ' ', 3) AS part, LATERAL (SELECT part::bigint AS n) AS number "
            f"WHERE authorization_id LIKE 'prepared {self.kind} %' AND c.merchant_id = {self._merchant_sql(is_pgbench)}"
        ).split("|"))
        first = used + 1 + UNDER_WAY_MAX if used else 1
        if last < first + count - 1:
            self._insert(max(last + 1, first), first + count - 1, self._merchant_sql(is_pgbench))
        return first

    def _insert(self, first, last, merchant):
        is_captured = self.status == "succeeded"
        amounts = "12.50, 0.66, now()" if is_captured else "0, 0, NULL"
        payment_method = "pm_card_async" if self.status == "processing" else "pm_card_visa"
        capture = "false" if self.kind == "capture" else "true"
        self.service.sql(
            "INSERT INTO charges (merchant_id, id, status, currency, amount, amount_captured, fee, captured_at, payment_method, "
            "capture, authorization_id, created_at) "
            f"SELECT {merchant}, ('{self._id_prefix()}' || lpad(to_hex(n), 12, '0'))::uuid, '{self.status}', 'USD', 12.50, "
            f"{amounts}, '{payment_method}', {capture}, 'prepared {self.kind} ' || n, now() "
            f"FROM generate_series({first}, {last}) n"
        )
        if is_captured:
            source = f"'ch_{self._id_prefix()}' || lpad(to_hex(n), 12, '0') || ':capture'"
            post_entries(self.service, merchant, source, CAPTURE_LINES, first, last)
