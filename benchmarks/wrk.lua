-- What wrk sends, and one line of JSON with what it saw. Arguments after `--`: the method, and the size of a body.
function init(args)
  wrk.method = args[1] or "GET"
  if args[2] then
    wrk.body = string.rep("x", tonumber(args[2]))
    wrk.headers["Content-Type"] = "application/json"
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "bytes": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": {"connect": %d, "read": %d, ' ..
    '"write": %d, "timeout": %d, "status": %d}}\n',
    summary.requests, summary.bytes, summary.duration / 1e6, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
