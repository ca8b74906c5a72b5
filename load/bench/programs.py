"""The programs that measure: wrk through the API, pgbench on the database."""

import glob
import json
import os
import subprocess
import sys

from service import LOAD, find, run


def start_wrk(url, clients, seconds, requests, prefix, **settings):
    """Starts wrk; `wrk_result` waits for it. `requests` is a file, and `settings` are those of `wrk/requests.lua`, in lower
    case."""
    environment = os.environ | {"REQUESTS": requests, "PREFIX": prefix}
    environment |= {name.upper(): str(value) for name, value in settings.items()}
    # Longer than any answer takes: what comes late isn't lost.
    command = [find("wrk"), "-t", "1", "-c", str(clients), "-d", f"{seconds}s", "--timeout", "60s"]
    command += ["-s", os.path.join(LOAD, "wrk", "requests.lua"), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wrk_result(process, may_fail=False):
    """What wrk measured. Ends this program if requests failed, since failures are faster than what is to be measured."""
    lines = process.communicate()[0].strip().splitlines()
    result = json.loads(lines[-1])
    if result["has_run_out"]:
        sys.exit(f"The prepared requests ran out after {result['requests']}: raise PREPARED_PER_S_MAX. No measurement.")
    if result["bad"] and not may_fail:
        answers = "\n".join(line for line in lines if line.startswith("answered: "))
        sys.exit(f"{result['bad']} of {result['requests']} requests failed: no measurement. {answers}")
    result["rate"] = result["requests"] / result["seconds"]
    return result


def wrk(*arguments, **settings):
    return wrk_result(start_wrk(*arguments, **settings))


def pgbench(service, script, clients, seconds, rate=None, **variables):
    """What pgbench measures with one of our scripts, in the same terms as wrk, as fast as it can or at a rate."""
    log = os.path.join(service.folder, "pgbench-latencies")
    # Of short transactions, a tenth is plenty, and writing down more would cost.
    sampling = ["--sampling-rate", "0.1"] if script == "select" else []
    defined = [part for name, value in variables.items() for part in ("-D", f"{name}={value}")]
    output = run(
        find("pgbench"), "-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(seconds),
        "-l", "--log-prefix", log, *sampling, *(["-R", f"{rate:.0f}"] if rate else []), *defined, "-f", os.path.join(LOAD, "pgbench", f"{script}.sql"),
        service.settings["ONCEPAY_OWNER_DATABASE_URL"],
    )
    if "tps = " not in output:
        sys.exit(f"pgbench finished no transaction of {script}.sql in {seconds} s:\n{output}")
    latencies = sorted(latencies_ms(log))
    return {
        "rate": float(output.split("tps = ")[1].split()[0]),
        "requests": int(output.split("actually processed: ")[1].split()[0].split("/")[0]),
        "p50_ms": latencies[len(latencies) // 2],
        "p99_ms": latencies[int(len(latencies) * 0.99)],
    }


def latencies_ms(log):
    """Those that pgbench wrote down, with a file per thread. Removes the files."""
    for file in glob.glob(f"{log}.*"):
        with open(file) as lines:
            yield from (int(line.split()[2]) / 1e3 for line in lines)
        os.remove(file)
