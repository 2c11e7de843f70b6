-- What wrk sends, and one line of JSON with what it saw. Arguments after `--`: from when on requests are counted (seconds
-- since the epoch), the method, and the size of a body.
local ffi = require("ffi")
ffi.cdef [[
  struct timeval { long seconds; long micros; };
  int gettimeofday(struct timeval *now, void *zone);
]]
local clock = ffi.new("struct timeval")

local function now()
  ffi.C.gettimeofday(clock, nil)
  return tonumber(clock.seconds) + tonumber(clock.micros) / 1e6
end

local thread

function setup(only)
  thread = only
end

function init(args)
  since = tonumber(args[1])
  counted = 0
  local body
  if args[3] then
    body = string.rep("x", tonumber(args[3]))
    wrk.headers["Content-Type"] = "application/json"
  end
  text = wrk.format(args[2], nil, nil, body)
end

function request()
  if now() >= since then counted = counted + 1 end
  return text
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "all": %d, "bytes": %d, "ended": %f, "p50": %f, "p99": %f, "errors": ' ..
    '{"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
    thread:get("counted"), summary.requests, summary.bytes, now(), latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
