-- First-time charges, or replays of the first thousand keys.
--
-- KEYS     file with an API key per line; requests go to them in turn
-- PREFIX   what this run's idempotency keys start with
-- REPLAY   if set, keys repeat after that many requests
-- RATE     if set, requests per second of all connections together, sent at times that don't depend on answers (as
--          long as a connection is free); else each connection sends as soon as it has its answer
-- REPEAT   if set, each key is sent that many times before the next one comes
local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long s; long ns; } timespec_t;
  int clock_gettime(int clock, timespec_t *time);
]])
local time = ffi.new("timespec_t")
local function now_ms()
  ffi.C.clock_gettime(1, time)
  return tonumber(time.s) * 1e3 + tonumber(time.ns) / 1e6
end

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
  times = tonumber(os.getenv("REPEAT") or "")
  rate = tonumber(os.getenv("RATE") or "")
  count, due = 0, now_ms()
  body = '{"amount":"12.50","currency":"USD","payment_method":"pm_card_visa"}'
  -- Its mere presence makes wrk send later than it could.
  if rate then
    function delay()
      -- Exponential gaps, as between the clicks of people who don't know of each other.
      due = due - math.log(1 - math.random()) * 1e3 / rate
      return math.max(0, math.floor(due - now_ms() + 0.5))
    end
  end
end

function request()
  count = count + 1
  local n = replay and count % replay or times and math.floor(count / times) or count
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
    '{"requests": %d, "seconds": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "bad": %d, '
    .. '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
