-- What the wrk scripts of this directory share: arguments and the report. Not a script of its own.
--
-- It must not know what is requested; that is what the scripts differ in.

local common = {}

-- `key=value` words become fields, all other words a list, in order. args[0] is the URL.
function common.arguments(args)
   local named, plain = {}, {}
   for i = 1, #args do
      local key, value = args[i]:match("^([%a_]+)=(.*)$")
      if key then
         named[key] = value
      else
         plain[#plain + 1] = args[i]
      end
   end
   return named, plain
end

function common.number(text, default, what)
   if text == nil then
      return default
   end
   local number = tonumber(text)
   if not number or number < 0 then
      error(what .. " is a number, not '" .. text .. "'", 0)
   end
   return number
end

-- Each thread has a Lua state of its own: without a number of their own all of them would draw the same.
function common.number_threads()
   local count = 0
   setup = function(thread)
      thread:set("thread_number", count)
      count = count + 1
   end
end

-- One line of JSON behind wrk's own report; latencies in milliseconds.
function common.report()
   done = function(summary, latency)
      local function ms(microseconds)
         return string.format("%.3f", microseconds / 1000)
      end
      local errors = summary.errors
      io.write(string.format(
         '{"requests": %d, "seconds": %.3f, "requests_per_second": %.1f, "bytes": %.0f, '
            .. '"latency_ms": {"p50": %s, "p90": %s, "p99": %s, "p99.9": %s, "max": %s}, '
            .. '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
         summary.requests,
         summary.duration / 1e6,
         -- wrk stopped before anything was measured: 0 is no number of seconds to divide by
         summary.duration > 0 and summary.requests / (summary.duration / 1e6) or 0,
         summary.bytes,
         ms(latency:percentile(50)),
         ms(latency:percentile(90)),
         ms(latency:percentile(99)),
         ms(latency:percentile(99.9)),
         ms(latency.max),
         errors.connect,
         errors.read,
         errors.write,
         errors.timeout,
         errors.status
      ))
   end
end

return common
