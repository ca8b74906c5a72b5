import os
import sys

from oncepay_client.retries import Oncepay, Refused, SqliteStore

oncepay = Oncepay(os.environ["ONCEPAY_URL"], os.environ["ONCEPAY_API_KEY"], SqliteStore("payments.db"))
order = sys.argv[1] if sys.argv[1:] else "order-1001"
try:
    charge = oncepay.charges_create(
        order, {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "reference": order}
    )
    print(f"{order} is paid: {charge['id']} is {charge['status']}")
except Refused as refusal:
    print(f"{order} isn't paid: {refusal}")
