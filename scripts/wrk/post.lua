-- Bodies on their way up: the same POST over and over, rendered once.
--
--   wrk -t1 -c64 -d10s --latency -s scripts/wrk/post.lua http://127.0.0.1:8000/v1/proxy/user-service/echo [-- SIZE [PATH]]
--
-- SIZE is the body's in bytes, 16384 when nothing is said. PATH takes the place of the URL's path.
--
-- It must not know what it measures: any HTTP/1.1 server will do.

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
local common = dofile(here .. "common.lua")
common.report()

local rendered

function init(args)
   local _, plain = common.arguments(args)
   local size = common.number(plain[1], 16384, "SIZE")
   local headers = { ["Content-Type"] = "application/octet-stream" }
   rendered = wrk.format("POST", plain[2] or wrk.path, headers, string.rep("x", size))
end

function request()
   return rendered
end
