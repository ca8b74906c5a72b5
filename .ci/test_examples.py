"""Plants mistakes in pages, and sees that examples.py finds each, at its line, and nothing else: test_examples.py FOLDER ONCEPAY."""

import shutil
import sys
import unittest

import examples

CHARGE = """$ curl -i $ONCEPAY_URL/v1/charges -H "Authorization: Bearer $ONCEPAY_API_KEY" -H 'Idempotency-Key: order-1' \\
    -H 'Content-Type: application/json' -d '{"amount":"12.50","currency":"USD","payment_method":"pm_card_visa"}'
"""
SOURCE = "$ source .oncepay/dev.env\n"
BALANCE = '$ curl $ONCEPAY_URL/v1/balance -H "Authorization: Bearer $ONCEPAY_API_KEY"\n'
ENVIRONMENTS = None


def block(language, text, *comments):
    return "".join(f"<!-- {comment} -->\n" for comment in comments) + f"```{language}\n{text}\n```\n"


class Mistakes(unittest.TestCase):
    def found(self, page):
        run = examples.Run(ENVIRONMENTS)
        run.spans(run.page("page.md", page))
        run.promql()
        return run.wrong

    def assert_found(self, page, at, *said):
        wrong = self.found(page)
        self.assertEqual(len(wrong), 1, wrong)
        self.assertTrue(wrong[0].startswith(f"page.md:{at}: "), wrong[0])
        for part in said:
            self.assertIn(part, wrong[0])

    def test_nothing_is_found_where_nothing_is_wrong(self):
        page = "# A page\n\n## One\n\n" + block("console", SOURCE + CHARGE + "HTTP/1.1 201 Created\nidempotent-replayed: false\n…\n"
                                                '{"id":"ch_…","object":"charge",…,"fee":"0.66",…}')
        page += block("console", "HTTP/1.1 201 Created\nidempotent-replayed: true\n…", "shows: again")
        page += block("console", "HTTP/1.1 422 Unprocessable Entity\n…", "shows: again, with 99.00 for 12.50")
        page += block("console", BALANCE + '{"balances":[{"currency":"USD","available":"11.84","pending":"0.00","in_transit":"0.00"}]}')
        page += block("sh", "oncepay keys list --status parked", "not run: for the test")
        page += block("json", '{"amount":"1.00","currency":"USD","payment_method":"pm_card_visa"}', "request: POST /v1/charges")
        page += block("sql", "SELECT 1;") + block("ini", "archive_mode = on") + block("yaml", "a: [1]") + block("toml", "a = 1")
        page += "`oncepay policies list`, `POST /v1/charges/{id}/capture`, `.ci/run --list`, `cargo test faults::`\n"
        self.assertEqual(self.found(page), [])

    def test_each_section_has_a_merchant(self):
        page = block("console", SOURCE + CHARGE + "HTTP/1.1 201 Created\nidempotent-replayed: false")
        self.assertEqual(self.found(f"## One\n\n{page}\n## Two\n\n{page}"), [])

    def test_commands(self):
        self.assert_found(block("sh", "true\noncepay nonsense"), 3, "`oncepay nonsense` isn't a command")
        self.assert_found(block("sh", "oncepay keys list --nonsense", "not run: for the test"), 3, "--nonsense")
        self.assert_found(block("sh", "cargo run -- dev --nonsense", "not run: for the test"), 3, "--nonsense")
        self.assert_found(block("sh", "python3 load/shards.py --nonsense", "not run: for the test"), 3, "no option --nonsense")
        self.assert_found(block("sh", "python3 load/nonsense.py", "not run: for the test"), 3, "there is no load/nonsense.py")
        self.assert_found(block("sh", "cargo test nonsense::", "not run: for the test"), 3, "there is no test")
        self.assert_found(block("sh", "cargo test api::payou::", "not run: for the test"), 3, "there is no test")
        self.assert_found(block("sh", "for i in 1 2; do\n"), 2, "bash can't read this")
        self.assert_found("Text,\nand `oncepay nonsense`.", 2, "isn't a command")
        self.assert_found("| `oncepay dev --nonsense` |\n", 1, "--nonsense")
        self.assert_found(block("sh", CHARGE[2:].replace("charges", "charge"), "not run: for the test"), 3, "the API has no POST /v1/charge")
        self.assert_found("Text, and `POST /v1/nonsense`.", 1, "the API has no")

    def test_what_fails(self):
        self.assert_found(block("sh", "true\nfalse"), 3, "`false` ends with 1, not 0")
        self.assert_found(block("console", "$ oncepay audit"), 2, "ends with 2, not 0")
        self.assert_found(block("console", SOURCE + BALANCE.replace("balance", "charges/ch_" + "0" * 32)), 3, "ends with 22", "404")
        self.assert_found(block("console", "$ echo ch_…"), 2, "nothing has printed what ch_…")
        self.assertIn("page.md:5: an example before", self.found(block("sh", "exit 3") + block("sh", "true"))[1])
        self.assert_found(block("sql", "SELECT nonsense;"), 1, "nonsense")

    def test_outputs(self):
        self.assert_found(block("console", "$ echo one; echo two\none\nthree"), 2, "- three", "+ two")
        self.assert_found(block("console", "$ echo one; echo two\none"), 2, "+ two")
        self.assert_found(block("console", SOURCE + CHARGE + "HTTP/1.1 200 OK"), 3, "- HTTP/1.1 200 OK", "+ HTTP/1.1 201 Created")
        self.assert_found(block("console", SOURCE + CHARGE + "HTTP/1.1 201 Created\nidempotent-replayed: true"), 3, "+ idempotent-replayed: false")
        self.assert_found(block("console", SOURCE + CHARGE + 'HTTP/1.1 201 Created\n\n{"id":"ch_…",…,"fee":"0.67",…}'), 3, '"fee":"0.66"')
        self.assert_found(block("console", SOURCE + BALANCE + '{"balances":[…,"pending":"1.00",…]}'), 3, "+ ")
        self.assert_found(block("console", "one"), 2, "shows an output, and no command")

    def test_bodies(self):
        self.assert_found(block("json", "{"), 1, "isn't JSON")
        self.assert_found(block("json", '{"amount":12.5,"currency":"USD","payment_method":"x"}', "request: POST /v1/charges"), 2,
                          "the schema forbids amount")
        self.assert_found(block("json", '{"currency":"USD"}', "answer: 201 POST /v1/charges"), 2, "the schema forbids")
        self.assert_found(block("sh", CHARGE[2:].replace("12.50", "twelve"), "not run: for the test"), 3, "the schema forbids amount")

    def test_marks(self):
        self.assert_found(block("", "text"), 1, "has no language")
        self.assert_found(block("nonsense", "text"), 1, "nobody checks")
        self.assert_found(block("sh", "true", "not run:"), 2, "why is this not run?")
        self.assert_found("<!-- not run: for the test -->\nText.\n", 1, "isn't right before a block")
        self.assert_found(block("sh", "true", "run by: .ci/nonsense.sh"), 2, "there is no .ci/nonsense.sh")
        self.assert_found(block("sh", "python3 load/shards.py", "run by: .ci/otlp.sh"), 2, "doesn't name")

    def test_names(self):
        # In pieces, since a name that any file has is known.
        for prefix in ("ONCEPAY_", "oncepay_"):
            self.assert_found(f"Text.\n\n`{prefix}nonsense`\n", 3, f"nothing is called {prefix}nonsense")
        if shutil.which("promtool"):
            self.assert_found("`sum(rate(oncepay_http_requests_total[5m])`\n", 1, "isn't PromQL")

    def test_shortened_ids(self):
        ids = [f"ch_{digit * 32}" for digit in "12"]
        page = block("console", f"$ printf '%s\\n' {' '.join(ids)}\nch_1…\nch_2…\n$ echo ch_1… ch_2… ch_…\n{' '.join([*ids, ids[1]])}")
        self.assertEqual(self.found(page), [])

    def test_other_languages(self):
        for language, text in (("python", "def"), ("rust", "fn"), ("yaml", "a: ["), ("toml", "a ="), ("ini", "nonsense = on")):
            self.assert_found(block(language, text), 1)


if __name__ == "__main__":
    ENVIRONMENTS = examples.Environments(*sys.argv[1:])
    unittest.main(argv=sys.argv[:1])
