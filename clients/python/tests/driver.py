"""Charges orders, several at a time, and writes a line for each: the charge, or what was raised. .ci/clients.py runs and
kills it.

ONCEPAY_URL=… ONCEPAY_API_KEY=… python driver.py FOLDER WORKERS SECONDS AMOUNT ORDER…
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from oncepay_client.retries import Oncepay, SqliteStore

folder, workers, seconds, amount, *orders = sys.argv[1:]
store = SqliteStore(f"{folder}/payments.db")
oncepay = Oncepay(os.environ["ONCEPAY_URL"], os.environ["ONCEPAY_API_KEY"], store, 3, float(seconds))


def pay(order: str) -> None:
    line: dict[str, object] = {"order": order}
    try:
        line["charge"] = oncepay.charges_create(
            order, {"amount": amount, "currency": "USD", "payment_method": "pm_card_visa", "reference": order}
        )
    except Exception as error:
        line |= {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


with ThreadPoolExecutor(int(workers)) as pool:
    list(pool.map(pay, orders))
