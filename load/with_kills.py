"""Runs a load script against several instances, and kills one after the other with SIGKILL while it runs.

  python3 load/with_kills.py [--script retry_storm.js] [--instances 2] [--every 6] [--down 3] [--binary FILE] [NAME=VALUE ...]

Starts a Postgres of its own with `oncepay dev`, and the instances beside it. From then on it kills an instance every `--every` seconds, and
starts it again `--down` seconds later, until the script ends. Settings like CLIENTS=20 go to the script. Needs k6; ends with its status.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench"))

from service import LOAD, Service, find, release_build, stop_all

# With a short lease, the requests of a killed instance are taken over while the script runs.
SETTINGS = {"ONCEPAY_PROCESSOR_TIMEOUT_MS": "3000", "ONCEPAY_LEASE_MS": "4000"}


def ended(process, seconds):
    """Whether a process ends within that time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    return False


def kill_in_turn(start, instances, script, arguments):
    """Kills and restarts instances until the script ends; returns how many were killed."""
    kills = 0
    while not ended(script, arguments.every - (arguments.down if kills else 0)):
        number = kills % len(instances)
        instances[number].process.kill()
        instances[number].process.wait()
        kills += 1
        print(f"killed instance {number + 1}", flush=True)
        has_ended = ended(script, arguments.down)
        instances[number] = start(number)
        if has_ended:
            break
    return kills


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--script", default="retry_storm.js")
    options.add_argument("--instances", type=int, default=2)
    options.add_argument("--every", type=float, default=6, help="seconds from one kill to the next")
    options.add_argument("--down", type=float, default=3, help="seconds until an instance is started again")
    options.add_argument("--binary", help="by default, a release build")
    options.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings of the script")
    arguments = options.parse_args()
    if arguments.instances < 2 or not 0 < arguments.down < arguments.every:
        options.error("It needs two instances or more, and less time down than from kill to kill.")

    service = Service(os.path.abspath(arguments.binary) if arguments.binary else release_build())
    secret = service.settings["ONCEPAY_WEBHOOK_SECRET"]
    instances = []

    def start(number):
        return service.another(number, ONCEPAY_WEBHOOK_SECRET=secret, **SETTINGS)

    try:
        for number in range(arguments.instances):
            instances.append(start(number))
        urls = ",".join(instance.url for instance in instances)
        environment = os.environ | {"ONCEPAY_URLS": urls, "ONCEPAY_DATA_DIR": os.path.join(service.folder, "data")}
        flags = [part for setting in arguments.settings for part in ("-e", setting)]
        command = [find("k6"), "run", "-q", *flags, os.path.join(LOAD, arguments.script)]
        script = subprocess.Popen(command, env=environment)
        kills = kill_in_turn(start, instances, script, arguments)
    finally:
        stop_all(*instances, service)
    if kills == 0:
        sys.exit("The script ended before an instance was killed: give it more time.")
    sys.exit(script.returncode)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
