"""Checks the dashboards of ops/grafana: against the published model of Grafana's dashboards, as far as they use it, and against
a Prometheus that has watched a load of half a minute. Every query of every panel must return data.

  python3 ops/drills/dashboard.py [--binary target/debug/oncepay] [--seconds 30] [--picture docs/dashboard.svg]

`--picture` draws the data of all panels, from the series that Prometheus has. Grafana itself isn't run: whether it draws the
panels as they are meant is for somebody to see who starts it (docker compose --profile observability up).
"""

import argparse
import glob
import json
import os
import re
import sys
import time
import urllib.parse
import uuid


from alerts import BRISK, Receiver, shorten
from picture import draw
from drill import ROOT, free_port
from stack import OPS, Stack, Traffic, prometheus_binaries, request

# The members that the model (kinds/dashboard/dashboard_kind.cue of Grafana) knows; those that it demands are marked with !.
MODEL = {
    "dashboard": "uid! title! description tags style timezone editable! graphTooltip! time timepicker fiscalYearStartMonth liveNow "
                 "weekStart refresh schemaVersion! version panels! templating annotations links snapshot revision gnetId id",
    "row": "type! collapsed! title datasource gridPos id! panels! repeat",
    "panel": "type! id pluginVersion tags targets! title! description transparent datasource gridPos! links repeat repeatDirection "
             "repeatPanelId maxDataPoints thresholds timeRegions transformations interval timeFrom timeShift libraryPanel options! "
             "fieldConfig!",
    "fieldConfig": "defaults! overrides!",
    "field": "displayName displayNameFromDS description filterable unit decimals min max mappings thresholds color "
             "links noValue custom",
    "thresholds": "mode! steps!",
    "gridPos": "h! w! x! y! static",
    "datasource": "type uid!",
    # These are the query's and the variable's own, from the plugin of Prometheus and the model's open part.
    "target": "refId! expr! datasource! legendFormat range instant format interval hide editorMode exemplar",
    "variable": "type! name! label datasource query! definition hide current options refresh regex sort skipUrlSync multi includeAll",
}
# Grafana migrates older ones; 36 is the model's, 41 that of Grafana 12.
SCHEMA_VERSIONS = range(36, 43)


def members(value, kind, where, problems):
    known = {name.rstrip("!"): name.endswith("!") for name in MODEL[kind].split()}
    for name in value:
        if name not in known:
            problems.append(f"{where}: {name} isn't in the model of a {kind}")
    for name, is_needed in known.items():
        if is_needed and name not in value:
            problems.append(f"{where}: {name} is missing")


def check_model(dashboard):
    """Sentences about what the model doesn't allow."""
    problems = []
    members(dashboard, "dashboard", "dashboard", problems)
    if dashboard["schemaVersion"] not in SCHEMA_VERSIONS:
        problems.append(f"schemaVersion {dashboard['schemaVersion']} isn't in {SCHEMA_VERSIONS}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", dashboard["uid"]):
        problems.append(f"{dashboard['uid']} is no uid")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for variable in dashboard["templating"]["list"]:
        members(variable, "variable", f"variable {variable['name']}", problems)
    ids, taken = set(), {}
    for panel in dashboard["panels"]:
        where = f"panel {panel.get('title')}"
        if panel["id"] in ids:
            problems.append(f"{where}: its id is taken")
        ids.add(panel["id"])
        members(panel["gridPos"], "gridPos", where, problems)
        place = panel["gridPos"]
        if not (0 < place["w"] <= 24 and 0 <= place["x"] < 24 and place["x"] + place["w"] <= 24 and place["h"] > 0):
            problems.append(f"{where}: it isn't within the grid")
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if taken.setdefault((x, y), panel["id"]) != panel["id"]:
                    problems.append(f"{where}: it lies on another panel")
                    break
        if panel["type"] == "row":
            members(panel, "row", where, problems)
            continue
        members(panel, "panel", where, problems)
        members(panel["fieldConfig"], "fieldConfig", where, problems)
        defaults = panel["fieldConfig"]["defaults"]
        members(defaults, "field", where, problems)
        if "thresholds" in defaults:
            members(defaults["thresholds"], "thresholds", where, problems)
        if not panel.get("description"):
            problems.append(f"{where}: it doesn't say what it shows")
        references = [target.get("refId") for target in panel["targets"]]
        if len(set(references)) != len(references):
            problems.append(f"{where}: two queries have one name")
        for target in panel["targets"]:
            members(target, "target", where, problems)
            members(target["datasource"], "datasource", where, problems)
            for name in re.findall(r"\$\{?(\w+)", target["expr"] + target["datasource"]["uid"]):
                if name not in variables and name != "__rate_interval":
                    problems.append(f"{where}: there is no variable {name}")
    return problems


def load(stack, traffic, instances):
    """Something of everything that the panels show."""
    first, second = instances
    stack.faults({"fault": "drop_answer", "kinds": ["capture"], "percent": 3}, {"fault": "error_before", "kinds": ["refund"], "percent": 5})
    body = lambda method, **more: {"amount": "12.50", "currency": "USD", "payment_method": method} | more

    def pay():
        key = str(uuid.uuid4())
        status, charge = stack.send(first, "/v1/charges", body("pm_card_visa"), key)
        stack.send(second, "/v1/charges", body("pm_card_visa"), key)
        if status == 201:
            stack.send(second, "/v1/refunds", {"charge_id": charge["id"], "amount": "1.00"})
        request(f"{second.url}/v1/charges?limit=5", key=stack.api_key)

    def err():
        stack.send(second, "/v1/charges", body("pm_card_declined"))
        stack.send(first, "/v1/charges", body("pm_card_error_once"))
        stack.send(first, "/v1/charges", body("pm_card_visa", amount="99.00"), "used-before")
        stack.send(first, "/v1/charges", body("pm_card_visa", reference="order-1"))
        stack.send(first, "/v1/payouts", {"amount": "1.00", "currency": "USD", "destination": "ba_main"})
        request(f"{first.url}/v1/webhooks/acquirer", "POST", {"type": "payout.paid", "data": {}})

    stack.send(first, "/v1/charges", body("pm_card_visa"), "used-before")
    for _ in range(3):
        traffic.keep(pay)
    traffic.keep(err, 0.3)

    def wait():
        key = str(uuid.uuid4())
        runs = Traffic()
        runs.keep(lambda: stack.send(first, "/v1/charges", body("pm_card_slow"), key), 60)
        time.sleep(0.4)
        stack.send(second, "/v1/charges", body("pm_card_slow"), key)
        request(f"{second.url}/v1/charges", "POST", body("pm_card_slow"), stack.api_key,
                {"Idempotency-Key": key, "Prefer": "wait=10"})
        runs.end()

    traffic.keep(wait)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(ROOT, "target", "debug", "oncepay"))
    parser.add_argument("--seconds", type=float, default=30, help="of load")
    parser.add_argument("--picture", help="file for a picture of the panels' data")
    options = parser.parse_args()
    dashboards = [json.load(open(path)) for path in sorted(glob.glob(os.path.join(OPS, "grafana", "dashboards", "*.json")))]
    problems = [problem for dashboard in dashboards for problem in check_model(dashboard)]
    if problems or not dashboards:
        sys.exit("the dashboards don't fit the model:\n" + "\n".join(problems))
    binaries = prometheus_binaries()

    stack, traffic = Stack(options.binary, binaries[0]), Traffic()
    try:
        ports = free_port(), free_port()
        stack.start_simulator(ports[0])
        brisk = {"recovery_interval_ms": 500, "recovery_delay_ms": 500, "reaper_interval_ms": 500, "reconcile_interval_ms": 3_000,
                 "audit_interval_s": 3}
        instances = [stack.serve(f"api-{number}", port, **BRISK | brisk) for number, port in enumerate(ports, 1)]
        receiver = Receiver()
        receiver.is_slow.clear()
        stack.send(instances[0], "/v1/webhook-endpoints", {"url": receiver.url, "event_types": ["*"]})
        rules = os.path.join(stack.folder, "alerts.yml")
        with open(rules, "w") as file:
            file.write(shorten(open(os.path.join(OPS, "alerts.yml")).read()))
        stack.watch(rules, "1s")
        load(stack, traffic, instances)
        time.sleep(options.seconds / 2)
        # The cleanup has something to do, and the planner something to estimate.
        stack.postgres.sql("UPDATE idempotency_keys SET created_at = created_at - interval '26 hours', "
                           "expires_at = expires_at - interval '26 hours' WHERE key IN (SELECT key FROM idempotency_keys "
                           "WHERE state = 'completed' ORDER BY created_at LIMIT 50); "
                           "UPDATE merchant_pricing SET effective_at = effective_at - interval '27 hours'", guards=False)
        stack.postgres.sql("ANALYZE idempotency_keys")
        time.sleep(options.seconds / 2)
        traffic.end()
        end = time.time()
        drawn, empty, queries = [], [], 0
        for dashboard in dashboards:
            for panel in dashboard["panels"]:
                series = []
                for target in panel.get("targets", []):
                    expression = target["expr"].replace("$__rate_interval", "5s").replace("$job", "oncepay")
                    parameters = {"query": expression, "start": end - options.seconds, "end": end, "step": "1s"}
                    status, answer = request(f"{stack.prometheus_url}/api/v1/query_range?" + urllib.parse.urlencode(parameters))
                    if status != 200:
                        sys.exit(f"{panel['title']}: Prometheus refuses {expression}: {answer}")
                    queries += 1
                    found = [one for one in answer["data"]["result"] if any(value != "NaN" for _, value in one["values"])]
                    if not found:
                        empty.append(f"{panel['title']}: {expression}")
                    series += [(target.get("legendFormat") or "", one["metric"], one["values"]) for one in found]
                drawn.append((panel, series))
        if empty:
            sys.exit("these queries return no data:\n" + "\n".join(empty))
        if options.picture:
            with open(options.picture, "w") as file:
                file.write(draw(dashboards[0]["title"], drawn, end - options.seconds, end))
        print(f"All {queries} queries of {sum(1 for panel, _ in drawn if panel['type'] != 'row')} panels return data.")
    finally:
        traffic.ended.set()
        stack.stop()


if __name__ == "__main__":
    main()
