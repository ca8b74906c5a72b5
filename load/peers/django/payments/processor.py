"""The payment processor: a sandbox in this process that approves everything."""


def authorize(key, amount, currency, payment_method):
    """Holds the money, and returns the id of the authorization: the same one for the same `key`."""
    return f"auth_{key}:authorize"


def capture(key, authorization_id, amount):
    """Takes the money that is held."""
