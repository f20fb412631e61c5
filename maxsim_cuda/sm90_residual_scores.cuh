// From a warp's maxima to scores: of documents that it has alone, and of those whose parts other warps have.
#pragma once

#include "ptx/arrival.cuh"
#include "residual_mma.cuh"
#include "residual_stream.cuh"

namespace maxsim {
namespace cuda {

template <int kBlocks>
struct Sm90ResidualShared {
  float factors[kBlocks][32];
  uint32_t kept[kBlocks];
  int32_t valid[kBlocks];
  int steps[kResidualWarps];
  // Maxima of the documents that a warp shares with those before it and those behind it.
  float split[kResidualWarps][2][kBlocks][32];
};

// A warp's maxima become scores.
template <int kBlocks>
struct Sm90ResidualScores {
  const ResidualArgs& args;
  Sm90ResidualShared<kBlocks>& shared;
  int64_t first_query;
  int queries;  // of this group

  __device__ __forceinline__ void write(int64_t document, const float (&best)[kBlocks]) const {
    const int lane = threadIdx.x % 32;
    double total = 0;
    int query = 0, chunk = 0;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (query >= queries) return;
      const bool counts = shared.kept[b] >> lane & 1;
      total += sum_lanes(counts ? static_cast<double>(best[b] * shared.factors[b][lane]) : 0.0);
      if (++chunk < args.chunks) continue;
      if (lane == 0)
        args.scores[(first_query + query) * args.problem.documents.count + document] =
            shared.valid[b] ? static_cast<float>(total) : __int_as_float(0x7fc00000);
      total = 0, chunk = 0, ++query;
    }
  }

  __device__ __forceinline__ float* slot(int64_t warp, bool behind) const {
    const int64_t at = (int64_t{blockIdx.y} * args.stream.warps + warp) * 2 + behind;
    return args.stream.partials + at * kBlocks * 32 + threadIdx.x % 32;
  }

  // A document's maxima in this warp's part. `others` gets a document that other warps have a part of too: [0] one that
  // `began` in front of the part, [1] one that begins in it.
  __device__ __forceinline__ void finish(PositiveColumns (&columns)[kBlocks], int32_t document, bool split, bool began,
                                         int32_t (&others)[2]) {
    float best[kBlocks];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      best[b] = columns[b].gather();
      columns[b].reset();
    }
    if (!split) return write(document, best);
    (began ? others[0] : others[1]) = document;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) shared.split[threadIdx.x / 32][!began][b][threadIdx.x % 32] = best[b];
  }

  // The parts of documents that this warp has in front of its other tokens [0] and behind them [1], -1 where there is
  // none: whoever comes last of those that have a part brings all of them together.
  __device__ __forceinline__ void meet(const StreamParts& parts, int number, const int32_t (&documents)[2]) const {
    const Segments& side = args.problem.documents;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first[2] = {}, last[2] = {};
#pragma unroll
    for (int behind = 0; behind < 2; ++behind)
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
        if (documents[behind] >= 0) __stcg(slot(number, behind) + 32 * b, shared.split[warp][behind][b][lane]);
#pragma unroll
    for (int behind = 0; behind < 2; ++behind) {  // while these are on their way
      if (documents[behind] < 0) continue;
      first[behind] = parts.of(side.offsets[documents[behind]]);
      last[behind] = parts.of(side.offsets[documents[behind] + 1] - 1);
    }
    __syncwarp();
    int before = -1;
    if (lane < 2 && (lane ? documents[1] : documents[0]) >= 0)
      before =
          ptx::arrive(args.stream.arrivals + int64_t{blockIdx.y} * args.stream.warps + (lane ? first[1] : first[0]));
    __syncwarp();
#pragma unroll
    for (int behind = 0; behind < 2; ++behind) {
      if (documents[behind] < 0 || __shfl_sync(~0u, before, behind) != last[behind] - first[behind]) continue;
      float best[kBlocks];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) best[b] = -INFINITY;
      constexpr int kAtOnce = kBlocks > 1 ? 1 : 8;  // on their way: a long document has many parts
#pragma unroll kAtOnce
      for (int other = first[behind]; other <= last[behind]; ++other)
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          best[b] = max_nan(best[b], __ldcg(slot(other, other == first[behind]) + 32 * b));
      write(documents[behind], best);
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
