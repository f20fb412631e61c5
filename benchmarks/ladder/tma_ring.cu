// Rung 3: a warp of its own keeps a ring of document tiles full through TMA; the warpgroup multiplies and takes maxima
// in turns.
#include "ring.cuh"

namespace ladder {
namespace {

__device__ __forceinline__ void in_turns(const Consumer& consumer) {
  RowMax rows[2];
  rows[0].reset();
  rows[1].reset();
  Place place;
  for (int document = blockIdx.y; document < consumer.problem.document_count; document += gridDim.y) {
    for (int tile = 0; tile < kTilesADocument; ++tile) {
      consumer.wait(place);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Products c;
        consumer.start(c, r, place);
        ptx::wgmma_wait<0>();
        ptx::wgmma_settled(c);
        rows[r].take(c);
      }
      consumer.release(place);
      place.advance();
    }
    finish(consumer.problem, rows, consumer.query, document);
  }
}

}  // namespace

void tma_ring(const Problem& problem) { launch_ring<1, in_turns>(problem); }

}  // namespace ladder
