// Rung 5: a second warpgroup with queries of its own reads the same document tiles: 256 query rows for each tile.
#include "ping_pong.cuh"

namespace ladder {

void query_reuse(const Problem& problem) { launch_ring<2, overlapped>(problem); }

}  // namespace ladder
