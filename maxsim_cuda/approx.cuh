// PLAID's approximate scores: rows of similarities, one for each centroid, are looked up by the documents' codes.
#pragma once

#include "codes.cuh"
#include "device_problem.cuh"
#include "ptx/dependent_launch.cuh"
#include "row_max.cuh"

namespace maxsim {
namespace cuda {

constexpr int kApproxTeam = 2;    // warps that share a document of many tokens
constexpr int kApproxUnroll = 8;  // rows in flight a lane: the look-ups come from L2, half a microsecond away
constexpr int kProbeUnroll = 4;   // codes in flight a lane where only their marks are asked for
constexpr int kApproxPerSm = 8;   // times 128 threads: with more of them there are no registers for as many rows

template <int kTeam>
constexpr int kApproxThreads = kTeam == 1 ? 256 : 32 * kTeam;

struct ApproxArgs {
  Problem problem;  // queries [Nq, C, Lq]
  Approximation a;
  float* scores;
  // Or of each query's candidates alone, [Nq, documents] of which `counts` are filled in.
  const int32_t* candidates = nullptr;
  const int32_t* counts = nullptr;
};

// The codes of 32 tokens, one a lane. Behind the end is the last token again, which changes no maximum.
struct ApproxCodes {
  RawCode raw;

  __device__ __forceinline__ void load(const ApproxArgs& args, const Span& document, int first) {
    const int token = first + static_cast<int>(threadIdx.x % 32);
    raw.load(args.a.codes, document.first_row + min(token, document.length - 1));
  }
  // The first centroid for what is no centroid's number.
  __device__ __forceinline__ uint32_t get(const ApproxArgs& args) const {
    return raw.known(args.a.centroid_count) ? raw.low : 0;
  }
};

// Whether a token has a probed centroid.
__device__ __forceinline__ bool any_probed(const ApproxArgs& args, const Span& document, int64_t query) {
  const uint8_t* probed = args.a.probed + query * args.a.centroid_count;
  for (int base = 0; base < document.length; base += 32 * kProbeUnroll) {
    ApproxCodes codes[kProbeUnroll];
#pragma unroll
    for (int u = 0; u < kProbeUnroll; ++u) codes[u].load(args, document, base + 32 * u);
    bool hit = false;
#pragma unroll
    for (int u = 0; u < kProbeUnroll; ++u) hit |= __ldg(probed + codes[u].get(args)) != 0;
    if (__any_sync(~0u, hit)) return true;
  }
  return false;
}

// kTeam warps a pair: one, or all of a block where documents are long. A lane takes kWide neighbouring query tokens of
// a row, and 32 * kWide / width rows are read at once.
// kListed: of candidates, a row of blocks for each query.
template <int kWide, int kTeam, bool kListed = false>
__global__ void __launch_bounds__(kApproxThreads<kTeam>, kApproxPerSm * 128 / kApproxThreads<kTeam>)
    approx_scores(const __grid_constant__ ApproxArgs args) {
  static_assert(kTeam == 1 || kWide == 4, "one pass over the query tokens");
  constexpr int kTeams = kApproxThreads<kTeam> / 32 / kTeam;  // of a block
  __shared__ float met[kTeam > 1 ? kTeam : 1][32 * kWide];
  ptx::wait_for_prior_kernel();
  ptx::launch_dependents();
  const Problem& problem = args.problem;
  const int warp = threadIdx.x / 32, rank = kTeam > 1 ? warp : 0;
  const int lane = threadIdx.x % 32, width = static_cast<int>(problem.queries.dim);
  const int lanes = kWide == 1 ? 32 : (width + kWide - 1) / kWide;  // that share a row
  const int rows = kWide == 1 ? 1 : 32 / lanes;                     // at once
  const int row = kWide == 1 ? 0 : lane / lanes, part = kWide == 1 ? lane : lane % lanes;
  const int64_t listed = static_cast<int64_t>(blockIdx.y) * problem.documents.count;
  const int64_t items = kListed ? args.counts[blockIdx.y] : problem.pairs;
  for (int64_t item = blockIdx.x + static_cast<int64_t>(kTeam > 1 ? 0 : warp) * gridDim.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * kTeams) {
    const PairIds ids = kListed ? PairIds{blockIdx.y, args.candidates[listed + item]} : pair_ids(problem, item);
    const int64_t pair = kListed ? listed + ids.document : item;
    Span document = span_of(problem.documents, ids.document);
    const bool valid = document.valid && ids.query >= 0 && ids.query < problem.queries.count;
    if (!valid) document.length = 0;
    const int length = document.length;
    const float* table = args.a.centroid_scores + (valid ? ids.query : 0) * args.a.centroid_count * width;
    if (!kListed && args.a.probed && !any_probed(args, document, valid ? ids.query : 0)) {
      if (rank == 0 && lane == 0) args.scores[pair] = valid ? -INFINITY : __int_as_float(0x7fc00000);
      continue;
    }
    double total = 0;
    for (int first = part * kWide; first - part * kWide < width; first += 32 * kWide) {
      float best[kWide];
#pragma unroll
      for (int e = 0; e < kWide; ++e) best[e] = -INFINITY;
      const bool mine = row < rows && first < width;
      const float* column = table + (mine ? first : 0);
      ApproxCodes codes;
      if (32 * rank < length) codes.load(args, document, 32 * rank);
      for (int base = 32 * rank; base < length; base += 32 * kTeam) {
        const uint32_t known = codes.get(args);
        const int last = min(32, length - base) - 1;
        codes.load(args, document, base + 32 * kTeam);
#pragma unroll 1
        for (int t = 0; t <= last; t += kApproxUnroll * rows) {
          float value[kApproxUnroll][kWide];
#pragma unroll
          for (int u = 0; u < kApproxUnroll; ++u) {
            const uint32_t code = __shfl_sync(~0u, known, min(t + u * rows + row, last));
            const float* from = column + static_cast<uint64_t>(code) * width;
            if constexpr (kWide == 4) {
              const float4 four = __ldg(reinterpret_cast<const float4*>(from));
              value[u][0] = four.x, value[u][1] = four.y, value[u][2] = four.z, value[u][3] = four.w;
            } else {
              value[u][0] = __ldg(from);
            }
          }
#pragma unroll
          for (int u = 0; u < kApproxUnroll; ++u)
#pragma unroll
            for (int e = 0; e < kWide; ++e) best[e] = max_nan(best[e], value[u][e]);
        }
      }
      if (kWide > 1) {
#pragma unroll
        for (int e = 0; e < kWide; ++e) {
          float over = best[e];
          for (int other = 1; other < rows; ++other)
            over = max_nan(over, __shfl_sync(~0u, best[e], (lane + other * lanes) % (rows * lanes)));
          best[e] = over;
        }
      }
      if constexpr (kTeam > 1) {
#pragma unroll
        for (int e = 0; e < kWide; ++e) met[rank][lane * kWide + e] = best[e];
        __syncthreads();
#pragma unroll
        for (int e = 0; e < kWide && rank == 0; ++e)
#pragma unroll
          for (int other = 1; other < kTeam; ++other) best[e] = max_nan(best[e], met[other][lane * kWide + e]);
        __syncthreads();
      }
      double sum = 0;
#pragma unroll
      for (int e = 0; e < kWide; ++e)
        if (mine && row == 0) sum += static_cast<double>(best[e]);
      total += sum_lanes(sum);
    }
    if (rank == 0 && lane == 0)
      args.scores[pair] = valid ? (length ? static_cast<float>(total) : 0.f) : __int_as_float(0x7fc00000);
  }
}

}  // namespace cuda
}  // namespace maxsim
