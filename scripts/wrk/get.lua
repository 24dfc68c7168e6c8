-- The plain case: the same GET over and over, rendered once.
--
--   wrk -t1 -c64 -d10s --latency -s scripts/wrk/get.lua http://127.0.0.1:8000/v1/proxy/user-service/ [-- PATH]
--
-- PATH takes the place of the URL's path, for example /v1/proxy/user-service/bytes/1000.
--
-- It must not know what it measures: any HTTP/1.1 server will do.

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
local common = dofile(here .. "common.lua")
common.report()

local rendered

function init(args)
   local _, plain = common.arguments(args)
   rendered = wrk.format("GET", plain[1] or wrk.path)
end

function request()
   return rendered
end
