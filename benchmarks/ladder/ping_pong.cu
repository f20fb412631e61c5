// Rung 4: one warpgroup with two products in flight.
#include "ping_pong.cuh"

namespace ladder {

void ping_pong(const Problem& problem) { launch_ring<1, overlapped>(problem); }

}  // namespace ladder
