"""Tests of the figures in RESULTS.md: what is divided by what, by number of clients, and what counts as met.

  python3 -m unittest discover load/bench
"""

import os
import statistics
import subprocess
import sys
import tempfile
import types
import unittest

import compare
import goals
import programs
import report
from goals import BEST, Ratio


def rates(**values):
    """Samples of rates, by `name_clients`."""
    samples = {}
    for name, rounds in values.items():
        case, clients = name.rsplit("_", 1)
        samples[f"{case.replace('_', ' ')}, {clients} clients: per s"] = rounds
    return samples


class RatioTest(unittest.TestCase):
    def test_a_ratio_is_the_median_of_the_rounds_and_not_that_of_the_medians(self):
        samples = rates(ours_8=[100, 300, 200], theirs_8=[100, 100, 400])
        self.assertEqual(goals.ratio_values(samples, Ratio("", "ours", "theirs")), {8: 1.0})
        self.assertEqual(statistics.median([100, 300, 200]) / statistics.median([100, 100, 400]), 2.0)

    def test_both_have_the_same_number_of_clients_or_each_its_best(self):
        samples = rates(ours_1=[10], ours_8=[40], ours_256=[90], theirs_1=[20], theirs_8=[10], theirs_16=[1_000])
        self.assertEqual(
            goals.ratio_values(samples, Ratio("", "ours", "theirs")),
            # What theirs does with 16 clients wasn't measured of ours.
            {1: 0.5, 8: 4.0, BEST: 90 / 20},
        )

    def test_one_number_of_clients_has_no_best_and_what_was_not_measured_no_ratio(self):
        self.assertEqual(goals.ratio_values(rates(ours_8=[2], theirs_8=[1]), Ratio("", "ours", "theirs")), {8: 2.0})
        self.assertEqual(goals.ratio_values(rates(ours_8=[2], theirs_1=[1]), Ratio("", "ours", "theirs")), {})
        self.assertEqual(list(goals.ratio_rows({})), [])

    def row(self, **values):
        rows = [row for row in goals.ratio_rows(rates(**values)) if row[0] == "first-time charge ÷ its natural transaction"]
        return rows[0][1:]

    def test_a_row_shows_each_goal_and_is_met_only_if_all_are(self):
        self.assertEqual(
            self.row(charge_1=[80], charge_8=[120], charge_64=[240], pgbench_natural_1=[100], pgbench_natural_8=[100],
                     pgbench_natural_64=[100]),
            ("0.80 (≥ 0.8)", "1.20 (≥ 1.2)", "", "2.40 (≥ 2.4)", "", "2.40 (≥ 1.8)", "yes"),
        )
        one_below = self.row(charge_1=[80], charge_8=[119], charge_64=[240], pgbench_natural_1=[100],
                             pgbench_natural_8=[100], pgbench_natural_64=[100])
        self.assertEqual((one_below[1], one_below[-1]), ("1.19 (≥ 1.2)", "**no**"))
        # A number of clients without a goal is shown, and decides nothing.
        self.assertEqual(self.row(charge_16=[1], pgbench_natural_16=[100]), ("", "", "0.01", "", "", "", ""))

    def test_a_goal_for_every_number_of_clients_is_not_one_for_the_best(self):
        samples = rates(**{"charge-reference_1": [90], "charge-reference_8": [95], "charge_1": [100], "charge_8": [100]})
        rows = {row[0]: row[1:] for row in goals.ratio_rows(samples)}
        self.assertEqual(
            rows["charge with a reference ÷ without"], ("0.90 (≥ 0.9)", "0.95 (≥ 0.9)", "", "", "", "0.95", "yes")
        )

    def test_each_ratio_is_of_something_that_is_measured(self):
        # An operation or script under another name would leave its row out without a word.
        from measure import PEERS
        from operations import OPERATIONS

        scripts = {script for operation in OPERATIONS.values() for script in operation.scripts}
        known = {*OPERATIONS, *(f"pgbench {script}" for script in scripts), "charge beside"}
        known |= {f"{name} behind" for name in OPERATIONS} | {f"{peer} {name}" for peer in PEERS for name in OPERATIONS}
        for ratio in goals.RATIOS:
            self.assertIn(ratio.ours, known)
            self.assertIn(ratio.theirs, known)
        for script in scripts:
            self.assertTrue(os.path.exists(os.path.join(programs.LOAD, "pgbench", f"{script}.sql")), script)


class FigureTest(unittest.TestCase):
    def test_a_figure_is_divided_by_its_own_base_and_compared_in_its_own_direction(self):
        samples = {
            "charge at half of the peak: per s": [1_000],
            "charge at half of the peak: p50, ms": [2, 9, 4],
            "charge at half of the peak: p99, ms": [10, 11, 8],
            "storm: others' p99 without it, ms": [10],
            "storm: others' p99 with it, ms": [13],
            "large storm: others' p99 with it, ms": [15],
            "large storm: duplicates per s": [12_000],
            "charge, 1 instances, 48 clients: per s": [100],
            "charge, 3 instances, 48 clients: per s": [150],
            "charge with few keys, 64 clients: per s": [100],
            "charge with 5 million keys, 64 clients: per s": [94],
            "charge with 20 million keys, 64 clients: per s": [86],
            "executions in excess": [1],
        }
        self.assertEqual(list(goals.figure_rows(samples)), [
            ("p99 at half of the peak rate (1,000/s), ms", "10", "≤ 10", "yes"),
            ("that ÷ the median there", "2.50", "≤ 3", "yes"),
            ("others' p99 during a storm of 5,000 duplicates on one key ÷ without", "1.30", "≤ 1.2", "**no**"),
            ("the same with 12,000 duplicates per second", "1.50", "≤ 1.5", "yes"),
            ("3 instances ÷ 1, on the same cores", "1.50", "", ""),
            ("charges with 5 million keys and 15 million postings ÷ with few", "0.94", "≥ 0.95", "**no**"),
            ("charges with 20 million keys and 60 million postings ÷ with few", "0.86", "≥ 0.85", "yes"),
            ("executions in excess of keys", "1", "≤ 0", "**no**"),
        ])


class CompareTest(unittest.TestCase):
    def test_each_binary_is_compared_with_the_first_round_by_round(self):
        samples = {}
        for name, rate in (("before", [100, 200, 300]), ("now", [110, 180, 330])):
            for unit, values in (("per s", rate), ("p99, ms", [1]), ("CPU, us each", [2]), ("Postgres' CPU, us each", [3])):
                samples[f"{name}: charge, 8 clients: {unit}"] = values
        first, second = compare.lines(samples, ["before", "now"], "charge, 8 clients")
        self.assertIn("ratio 1.000 (1.000, 1.000, 1.000)", first)
        self.assertIn("180/s", second)
        self.assertIn("ratio 1.100 (1.100, 0.900, 1.100)", second)


class ReportTest(unittest.TestCase):
    def test_a_case_has_one_row_and_other_samples_one_each(self):
        samples = {
            "charge, 8 clients: per s": [300, 100, 200],
            "charge, 8 clients: p50, ms": [1.5],
            "charge, 8 clients: p99, ms": [9.25],
            "charge, 8 clients: CPU, us each": [120.4],
            "memory at the peak, MiB": [33, 35],
            "charge, 1 instances, 48 clients: per s": [50],
        }
        self.assertEqual(
            list(report.case_rows(samples)), [("charge, 8 clients", "200", "100 – 300", "1.50", "9.2", "120", "")]
        )
        self.assertEqual(list(report.other_rows(samples)), [
            ("memory at the peak, MiB", "34.0", "33.0 – 35.0"),
            ("charge, 1 instances, 48 clients: per s", "50.0", "50.0 – 50.0"),
        ])


class ProgramsTest(unittest.TestCase):
    def wrk(self, result, **options):
        command = [sys.executable, "-c", f"print('answered: 503'); print('{result}')"]
        return programs.wrk_result(subprocess.Popen(command, stdout=subprocess.PIPE, text=True), **options)

    def test_failed_requests_are_no_measurement(self):
        good = '{"requests": 300, "seconds": 1.5, "bad": 0, "has_run_out": false}'
        self.assertEqual(self.wrk(good)["rate"], 200)
        bad = good.replace('"bad": 0', '"bad": 3')
        with self.assertRaisesRegex(SystemExit, "3 of 300 requests failed: no measurement. answered: 503"):
            self.wrk(bad)
        self.assertEqual(self.wrk(bad, may_fail=True)["rate"], 200)
        with self.assertRaisesRegex(SystemExit, "ran out after 300"):
            self.wrk(good.replace("false", "true"), may_fail=True)

    def test_pgbench_is_read_in_the_same_terms(self):
        with tempfile.TemporaryDirectory() as folder:
            program = os.path.join(folder, "pgbench")
            with open(program, "w") as file:
                # A file of latencies per thread, in microseconds: 1 to 100 ms.
                file.write("#!/bin/sh\nprefix=\nwhile [ $# -gt 0 ]; do [ \"$1\" = --log-prefix ] && prefix=$2; shift; done\n"
                           "seq 50 100 | sed 's/.*/0 1 &000 0 0 0/' >$prefix.1\n"
                           "seq 1 49 | sed 's/.*/0 1 &000 0 0 0/' >$prefix.1.1\n"
                           "echo 'number of transactions actually processed: 100/100'\n"
                           "echo 'tps = 50.5 (without initial connection time)'\n")
            os.chmod(program, 0o755)
            before, os.environ["PATH"] = os.environ["PATH"], f"{folder}:{os.environ['PATH']}"
            self.addCleanup(os.environ.__setitem__, "PATH", before)
            service = types.SimpleNamespace(folder=folder, settings={"ONCEPAY_OWNER_DATABASE_URL": "postgres://"})
            result = programs.pgbench(service, "natural", 8, 1)
            self.assertEqual(result, {"rate": 50.5, "requests": 100, "p50_ms": 51.0, "p99_ms": 100.0})
            self.assertEqual(os.listdir(folder), ["pgbench"])


if __name__ == "__main__":
    unittest.main()
