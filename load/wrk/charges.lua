-- First-time charges, or replays of the first thousand keys.
--
-- KEYS     file with an API key per line; requests go to them in turn
-- PREFIX   what this run's idempotency keys start with
-- REPLAY   if set, keys repeat after that many requests
local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init()
  keys = {}
  for key in io.lines(os.getenv("KEYS")) do keys[#keys + 1] = key end
  prefix = os.getenv("PREFIX") .. "-" .. number .. "-"
  replay = tonumber(os.getenv("REPLAY") or "")
  count = 0
  body = '{"amount":"12.50","currency":"USD","payment_method":"pm_card_visa"}'
end

function request()
  count = count + 1
  local n = replay and count % replay or count
  local headers = {
    ["Authorization"] = "Bearer " .. keys[n % #keys + 1],
    ["Content-Type"] = "application/json",
    ["Idempotency-Key"] = prefix .. n,
  }
  return wrk.format("POST", "/v1/charges", headers, body)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "bad": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
