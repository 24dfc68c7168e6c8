-- A GET of what the URL says, and a pause of 5 to 15 ms before the next one on the same connection: load whose rate is
-- bounded by the number of connections.
--
-- It must not know what answers.

function delay()
   return math.random(5, 15)
end
