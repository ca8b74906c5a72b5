"""The peer with `django-idempotency-key`, set up as its README says for several processes: with Redis."""

import os

from payments.settings import *  # noqa: F403

ROOT_URLCONF = "library.urls"
# The one in which views opt in with a decorator.
MIDDLEWARE = ["idempotency_key.middleware.ExemptIdempotencyKeyMiddleware"]

CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": os.environ["REDIS_URL"],
        "TIMEOUT": 24 * 60 * 60,
    }
}

IDEMPOTENCY_KEY = {
    "STORAGE": {"CLASS": "idempotency_key.storage.CacheKeyStorage"},
    # The default. The README's lock for several processes, MultiProcessRedisLock, is one for all requests: with eight
    # clients it refuses a tenth to a third of them with 423. Either is held for the lookup only, so that duplicates
    # run at the same time with both.
    "LOCK": {"CLASS": "idempotency_key.locks.basic.ThreadLock"},
    # Replays with the status of the first answer. The default is 409, with the first answer's body.
    "CONFLICT_STATUS_CODE": None,
}
