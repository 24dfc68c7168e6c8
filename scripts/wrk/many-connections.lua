-- Many connections, some of them short-lived: each request is a GET, a share of them asks for the connection to be
-- closed, and wrk opens a new one.
--
--   wrk -t2 -c1000 -d10s --latency -s scripts/wrk/many-connections.lua http://127.0.0.1:8000/v1/proxy/user-service/ \
--       -- [close=10] [seed=1] [PATH]
--
-- `close` is the share of `Connection: close` in percent; 0 keeps every connection, 100 none. The limit of
-- descriptors (ulimit -n) must allow for the connections.
--
-- It must not know what it measures: any HTTP/1.1 server will do.

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
local common = dofile(here .. "common.lua")
common.number_threads()
common.report()

local kept, closed, share

function init(args)
   local named, plain = common.arguments(args)
   local path = plain[1] or wrk.path
   share = common.number(named.close, 10, "close")
   math.randomseed(common.number(named.seed, 1, "seed") + thread_number)
   kept = wrk.format("GET", path)
   closed = wrk.format("GET", path, { ["Connection"] = "close" })
end

function request()
   return math.random(100) <= share and closed or kept
end
