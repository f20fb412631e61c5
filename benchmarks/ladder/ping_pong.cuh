// Two products in flight: while one row tile's maxima are taken, the other row tile is multiplied.
#pragma once

#include "ring.cuh"

namespace ladder {

// A document is straight code: ptxas waits for every product before a branch back that one would have to cross.
__device__ __forceinline__ void overlapped(const Consumer& consumer) {
  RowMax rows[2];
  rows[0].reset();
  rows[1].reset();
  Place place;
  for (int document = blockIdx.y; document < consumer.problem.document_count; document += gridDim.y) {
    Products c[2];
    consumer.wait(place);
    consumer.start(c[0], 0, place);
    consumer.start(c[1], 1, place);
#pragma unroll
    for (int tile = 0; tile < kTilesADocument; ++tile) {
      const bool last = tile + 1 == kTilesADocument;
      Place next = place;
      next.advance();
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (last && r == 1)
          ptx::wgmma_wait<0>();
        else
          ptx::wgmma_wait<1>();
        ptx::wgmma_settled(c[r]);
        rows[r].take(c[r]);
        if (last) continue;
        if (r == 0) consumer.wait(next);
        consumer.start(c[r], r, next);
      }
      consumer.release(place);
      place = next;
    }
    finish(consumer.problem, rows, consumer.query, document);
  }
}

}  // namespace ladder
