"""Measures what one merchant can cost another: the latency of one merchant's charges beside another merchant that sends twenty
times what its policy allows, and, without any limits, beside one with a thousand connections.

Builds the release binary and starts it with a fresh Postgres of its own. Charges of the first merchant are sent at a fixed rate,
in turn alone and beside the other's. Fails if one of them is refused, or if the ratio of the p99, the median of the rounds, is
above the limit. Needs wrk.

  python3 load/noisy_neighbor.py [--rounds 5] [--seconds 10] [--rate 40] [--ratio-max 1.5] [--ratio-max-unlimited 10]
      [--connections 1000] [--binary FILE]
"""

import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench"))

from charges import Charges
from programs import start_wrk, wrk_result
from service import Service, raise_file_limit, release_build

POLICY = "/v1/operator/idempotency-policies/charges.create"
# Requests per second that the policy allows, and how many times as many the noisy merchant sends.
LIMIT, TIMES = 50, 20


def new_merchant(service, name):
    """The API key of a new merchant, in the text and in a file."""
    merchant = {"name": name, "fee_rate": "0.029", "fee_fixed": "0.30"}
    key = service.request("POST", "/v1/operator/merchants", merchant)["api_key"]["key"]
    charge = {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"}
    service.request("POST", "/v1/charges", charge, key)
    file = os.path.join(service.folder, f"{name}.keys")
    with open(file, "w") as keys:
        keys.write(key + "\n")
    return key, file


def set_limit(service, rate):
    service.request("PUT", POLICY, {"rate_per_second": rate})
    # Every instance follows within two seconds.
    time.sleep(2)


def measure(service, name, quiet, noise, options):
    """The ratio of the quiet merchant's p99 beside the noise to that without it, and what became of the noise."""
    ratios, results = [], []
    for number in range(options.rounds):
        without = quiet.take(options.seconds)
        noisy = noise(number)
        time.sleep(1)
        beside = quiet.take(options.seconds)
        results.append(wrk_result(noisy, may_fail=True))
        p50, p99 = (lambda of: of[len(of) // 2] * 1000), (lambda of: of[int(len(of) * 0.99)] * 1000)
        ratios.append(p99(beside) / p99(without))
        print(
            f"  {name}: p50 {p50(without):.1f} and {p50(beside):.1f} ms, p99 {p99(without):.1f} and {p99(beside):.1f} ms: "
            f"{ratios[-1]:.2f}; the other sent {results[-1]['rate']:.0f}/s, {results[-1]['status'] / results[-1]['requests']:.0%} "
            f"of it was refused; memory {service.peak_rss_mib():.0f} MiB at most",
            flush=True,
        )
    return statistics.median(ratios), results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--rate", type=float, default=40, help="charges per second of the quiet merchant")
    parser.add_argument("--ratio-max", type=float, default=1.5, help="with limits")
    parser.add_argument("--ratio-max-unlimited", type=float, default=10)
    parser.add_argument("--connections", type=int, default=1000, help="of the noisy merchant without limits")
    parser.add_argument("--without-policy", action="store_true", help="for releases before there were limits")
    parser.add_argument("--binary", help="instead of a release build")
    options = parser.parse_args()
    raise_file_limit()
    if not options.binary:
        options.binary = release_build()
    service = Service(options.binary)
    failures = []
    try:
        key, _ = new_merchant(service, "quiet")
        _, noisy_keys = new_merchant(service, "noisy")
        quiet = Charges(service.url, key, options.rate)
        quiet.take(3)
        seconds = options.seconds + 2

        def beyond_limit(number):
            return start_wrk(service.url, 64, seconds, noisy_keys, f"limited-{number}", rate=LIMIT * TIMES)

        def unlimited(number):
            return start_wrk(service.url, options.connections, seconds, noisy_keys, f"unlimited-{number}")

        if not options.without_policy:
            set_limit(service, LIMIT)
            ratio, results = measure(service, f"{TIMES} times its limit", quiet, beyond_limit, options)
            passed = sum(result["requests"] - result["status"] for result in results) / len(results) / seconds
            print(f"Beside {TIMES} times the limit: p99 {ratio:.2f} times that without; {passed:.0f}/s of it got through")
            if ratio > options.ratio_max:
                failures.append(f"with limits {ratio:.2f}, more than {options.ratio_max}")
            # A burst at the beginning counts, too.
            if passed > 2 * LIMIT:
                failures.append(f"{passed:.0f}/s got through a limit of {LIMIT}/s")
            set_limit(service, 0)
        ratio, _ = measure(service, f"{options.connections} connections", quiet, unlimited, options)
        print(f"Beside {options.connections} connections without limits: p99 {ratio:.2f} times that without them")
        if ratio > options.ratio_max_unlimited:
            failures.append(f"without limits {ratio:.2f}, more than {options.ratio_max_unlimited}")
    finally:
        service.stop()
    if failures:
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main()
