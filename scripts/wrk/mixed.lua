-- Several services at once: GET and POST in a random order that is the same in every run with the same seed.
--
--   wrk -t2 -c64 -d10s --latency -s scripts/wrk/mixed.lua http://127.0.0.1:8000 \
--       -- [seed=1] [post=20] [size=1024] user-service order-service …
--
-- `post` is the share of POST in percent, `size` the size of their bodies in bytes. GET goes to
-- /v1/proxy/{service}/, POST to /v1/proxy/{service}/echo.
--
-- Of the gateway it must know no more than the form of its paths.

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
local common = dofile(here .. "common.lua")
common.number_threads()
common.report()

local gets, posts = {}, {}
local share

function init(args)
   local named, services = common.arguments(args)
   if #services == 0 then
      error("mixed.lua takes the names of services, after --", 0)
   end
   share = common.number(named.post, 20, "post")
   local body = string.rep("x", common.number(named.size, 1024, "size"))
   math.randomseed(common.number(named.seed, 1, "seed") + thread_number)
   for i, service in ipairs(services) do
      local base = "/v1/proxy/" .. service .. "/"
      gets[i] = wrk.format("GET", base)
      posts[i] = wrk.format("POST", base .. "echo", { ["Content-Type"] = "application/octet-stream" }, body)
   end
end

function request()
   local from = math.random(100) <= share and posts or gets
   return from[math.random(#from)]
end
