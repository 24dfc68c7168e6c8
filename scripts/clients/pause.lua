-- A GET, and a pause of 40 to 60 ms before the next one on the same connection: about as long as the upstream keeps
-- an idle connection.
--
--   wrk -t1 -c64 -d5s -s scripts/clients/pause.lua URL
--
-- It must not know what answers.

function delay()
   return math.random(40, 60)
end
