-- Requests from a file, in turn: each a first-time request, or replays of the first thousand keys.
--
-- REQUESTS  file with a request per line: API key, method, path, body, and any number of further headers, separated by
--           tabs. All but the key can be missing: then it's a charge. {n} in the body stands for the request's number.
--           Without an API key, there is no idempotency key either: the headers say who sends it.
-- PREFIX    what this run's idempotency keys start with
-- ONCE      if set, each line is sent once, and the result says whether they ran out
-- REPLAY    if set, keys repeat after that many requests
-- RATE      if set, requests per second of all connections together, sent at times that don't depend on answers (as
--           long as a connection is free); else each connection sends as soon as it has its answer
-- REPEAT    if set, each key is sent that many times before the next one comes
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

local CHARGE = '{"amount":"12.50","currency":"USD","payment_method":"pm_card_visa"}'

-- A line of the file. Its headers are used again for each time that it's sent.
local function parse(line)
  local fields = {}
  for field in (line .. "\t"):gmatch("([^\t]*)\t") do fields[#fields + 1] = field end
  local key, method, path, body = unpack(fields, 1, 4)
  local headers = {}
  if method ~= "GET" then headers["Content-Type"] = "application/json" end
  if key ~= "" then headers["Authorization"] = "Bearer " .. key end
  for place = 5, #fields do
    local name, value = fields[place]:match("^([^:]+): (.*)$")
    headers[name] = value
  end
  if not method then method, path, body = "POST", "/v1/charges", CHARGE end
  local is_numbered = body ~= nil and body:find("{n}", 1, true) ~= nil
  return { key = key, method = method, path = path, body = body, headers = headers, is_numbered = is_numbered }
end

local threads = {}
function setup(thread)
  thread:set("number", #threads)
  threads[#threads + 1] = thread
end

function init()
  lines = {}
  for line in io.lines(os.getenv("REQUESTS")) do lines[#lines + 1] = parse(line) end
  prefix = os.getenv("PREFIX") .. "-" .. number .. "-"
  once = os.getenv("ONCE")
  replay = tonumber(os.getenv("REPLAY") or "")
  times = tonumber(os.getenv("REPEAT") or "")
  rate = tonumber(os.getenv("RATE") or "")
  count, due = 0, now_ms()
  -- Their mere presence costs: that of `delay` makes wrk send later than it could, and that of `response` copies each
  -- answer, which matters only for replays.
  if rate then
    function delay()
      -- Exponential gaps, as between the clicks of people who don't know of each other.
      due = due - math.log(1 - math.random()) * 1e3 / rate
      return math.max(0, math.floor(due - now_ms() + 0.5))
    end
  end
  if not replay then
    function response(status, _, body)
      if status >= 400 and not refusal then refusal = status .. " " .. body end
    end
  end
end

function request()
  count = count + 1
  local n = replay and count % replay or times and math.floor(count / times) or count
  if once and n > #lines then ran_out = true end
  local line = lines[(n - 1) % #lines + 1]
  if line.key ~= "" then line.headers["Idempotency-Key"] = prefix .. n end
  return wrk.format(line.method, line.path, line.headers, line.is_numbered and line.body:gsub("{n}", n) or line.body)
end

function done(summary, latency)
  local errors, has_run_out = summary.errors, false
  for _, thread in ipairs(threads) do
    has_run_out = has_run_out or thread:get("ran_out") == true
    local refusal = thread:get("refusal")
    if refusal then io.write("answered: ", refusal, "\n") end
  end
  io.write(string.format(
    '{"requests": %d, "seconds": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "bad": %d, '
    .. '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d, "has_run_out": %s}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout, has_run_out))
end
