// MaxSim over residual documents on mma.sync: tokens, decompressed in registers, are the rows, and queries the columns.
#pragma once

#include "residual_step.cuh"
#include "row_max.cuh"

namespace maxsim {
namespace cuda {

struct Best {
  float value;
  int32_t winner;
};

// Running maxima of 32 query rows: a lane has those of 8n + 2 (lane % 4) and the next, over its own tokens.
template <bool kArgmax>
struct ColumnState {
  float best[4][2];
  int32_t winner[4][2];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        best[n][e] = -INFINITY;
        if (kArgmax) winner[n][e] = INT32_MAX;
      }
  }
  __device__ __forceinline__ void take(int n, int e, float value, int32_t token) {
    if (!kArgmax) {
      best[n][e] = max_nan(best[n][e], value);
    } else if (beats(value, token, best[n][e], winner[n][e])) {
      best[n][e] = value;
      winner[n][e] = token;
    }
  }
  // Over all tokens, with query row l in lane l.
  __device__ __forceinline__ Best gather() {
    const int lane = threadIdx.x % 32;
    Best out{-INFINITY, INT32_MAX};
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int step = 4; step <= 16; step *= 2) {
          const float other = __shfl_xor_sync(~0u, best[n][e], step);
          const int32_t token = kArgmax ? __shfl_xor_sync(~0u, winner[n][e], step) : 0;
          take(n, e, other, token);
        }
        const float value = __shfl_sync(~0u, best[n][e], lane % 8 / 2);
        const int32_t token = kArgmax ? __shfl_sync(~0u, winner[n][e], lane % 8 / 2) : 0;
        if (lane / 8 == n && lane % 2 == e) out = {value, token};
      }
    return out;
  }
};

// Products of 16 tokens with 32 query rows enter the running maxima; of tokens that count, by the bits of `kept`.
template <bool kArgmax>
__device__ __forceinline__ void take_tile(const float (&c)[4][4], float low_factor, float high_factor, uint32_t kept,
                                          int first, ColumnState<kArgmax>& columns) {
  const int token = threadIdx.x % 32 / 4;
  const bool full = (kept & 0xffffu) == 0xffffu;
  const bool low = full || kept >> token & 1, high = full || kept >> (token + 8) & 1;
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (low) columns.take(n, e, c[n][e] * low_factor, first + token);
      if (high) columns.take(n, e, c[n][2 + e] * high_factor, first + token + 8);
    }
}

// Products of a step's tokens with 32 query rows, as they enter the running maxima.
template <class E, int kBits, int kTiles, bool kWhole, bool kArgmax>
__device__ __forceinline__ void multiply_step(const Step<E, kBits, kTiles, kWhole>& step,
                                              const Factors<kTiles>& factors, unsigned char* queries, int first,
                                              ColumnState<kArgmax>& columns) {
  float c[kTiles][4][4] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 b = *staged_operand(queries, half, s);
      const uint32_t low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        ptx::mma<E>(c[tile][2 * half], step.rows[tile][s], low);
        ptx::mma<E>(c[tile][2 * half + 1], step.rows[tile][s], high);
      }
    }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    take_tile(c[tile], factors.low[tile], factors.high[tile], step.kept >> 16 * tile, first + 16 * tile, columns);
}

// The same for documents of unit length: with something added to the products that makes all of them positive, their
// bits are ordered as integers, of which three are compared at once. NaN is above all of them, and costs nothing
// either.
struct PositiveColumns {
  static constexpr float kAbove = 1.625f;
  static_assert(kAbove > kMostLength, "rounding included");
  int32_t best[4][2];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int n = 0; n < 4; ++n) best[n][0] = best[n][1] = INT32_MIN;
  }
  __device__ __forceinline__ void take(const float (&c)[16], float low_factor, float high_factor) {
    take_some(c, low_factor, high_factor, kAbove, kAbove, true, true);
  }
  // Of tokens that count, with something else added: kAbove less what products of zero are.
  __device__ __forceinline__ void take_some(const float (&c)[16], float low_factor, float high_factor, float low_above,
                                            float high_above, bool low, bool high) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        best[n][e] =
            __vimax3_s32(best[n][e], low ? __float_as_int(fmaf(c[4 * n + e], low_factor, low_above)) : INT32_MIN,
                         high ? __float_as_int(fmaf(c[4 * n + 2 + e], high_factor, high_above)) : INT32_MIN);
  }
  // Over all tokens, with query row l in lane l.
  __device__ __forceinline__ float gather() const {
    const int lane = threadIdx.x % 32;
    int32_t out = INT32_MIN;
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        int32_t most = best[n][e];
#pragma unroll
        for (int step = 4; step <= 16; step *= 2) most = max(most, __shfl_xor_sync(~0u, most, step));
        most = __shfl_sync(~0u, most, lane % 8 / 2);
        if (lane / 8 == n && lane % 2 == e) out = most;
      }
    return __int_as_float(out) - kAbove;
  }
};

struct ResidualItem {
  int64_t query, document, pair;
};

// Neighbouring items of a cross product share the document, whose rows then lie in a cache.
__device__ __forceinline__ ResidualItem residual_item(const Problem& problem, int64_t item) {
  if (problem.pairing == Pairing::list) return {problem.query_ids[item], problem.document_ids[item], item};
  const int64_t document = quotient(item, problem.queries.count), query = item - document * problem.queries.count;
  return {query, document, query * problem.documents.count + document};
}

// A team's maxima of one block of rows come together in its first warp.
struct ResidualExchange {
  float best[kResidualWarps][32];
  int32_t winner[kResidualWarps][32];
  bool any[kResidualWarps];
};

template <bool kArgmax>
__device__ __forceinline__ Best meet(ResidualExchange& exchange, int team, Best best, bool& any) {
  if (team == 1) return best;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  exchange.best[warp][lane] = best.value;
  if (kArgmax) exchange.winner[warp][lane] = best.winner;
  exchange.any[warp] = any;
  __syncthreads();
  for (int other = 0; other < kResidualWarps; ++other) {
    const Best there{exchange.best[other][lane], kArgmax ? exchange.winner[other][lane] : 0};
    if (!kArgmax)
      best.value = max_nan(best.value, there.value);
    else if (beats(there.value, there.winner, best.value, best.winner))
      best = there;
    any |= exchange.any[other];
  }
  return best;
}

template <class E, int kBits, bool kArgmax, bool kWhole>
__global__ void __launch_bounds__(kResidualThreads, ResidualSingle::kPerSm)
    residual_single(const __grid_constant__ ResidualArgs args) {
  using C = ResidualSingle;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ ResidualExchange exchange;
  const Problem& problem = args.problem;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned char* queries = memory + kLookupBytes + warp * kQueryBlockBytes;
  const float multiplier = Lookup<kBits>::template build<E>(memory, args.index);
  ptx::wait_for_prior_kernel();
  ptx::launch_dependents();
  const bool squared = args.index.normalize;
  const uint32_t own = Lookup<kBits>::own();
  __syncthreads();

  const int teams = kResidualWarps / args.team, rank = warp % args.team;
  QueryRows block{};
  int64_t loaded_query = -1;
  int loaded_chunk = -1;
  // Teams of one block take items far apart: neighbours go to different SMs.
  for (int64_t item = blockIdx.x + static_cast<int64_t>(warp / args.team) * gridDim.x; item < problem.pairs;
       item += static_cast<int64_t>(teams) * gridDim.x) {
    const ResidualItem at = residual_item(problem, item);
    const Span query = span_of(problem.queries, at.query);
    Span document = span_of(problem.documents, at.document);
    const bool valid = query.valid && document.valid;
    if (!valid) document.length = 0;
    double total = 0;
    bool any = false;
    for (int chunk = 0; chunk < args.chunks; ++chunk) {
      if (at.query != loaded_query || chunk != loaded_chunk) {
        __syncwarp();
        block = stage_query_block<E>(queries, problem.queries, query, chunk, problem.normalize);
        __syncwarp();
        loaded_query = at.query, loaded_chunk = chunk;
      }
      ColumnState<kArgmax> columns;
      columns.reset();
      const int stride = 16 * C::kTiles * args.team;
      int first = 16 * C::kTiles * rank;
      Step<E, kBits, C::kTiles, kWhole> step;
      step.start(args, document, first, stride);
      if (first < document.length) step.gather(args);
      for (; first < document.length; first += stride) {
        step.describe(args, document, first);
        step.add(args, memory, own, multiplier);
        step.advance(args, document, first + stride, stride);
        if (first + stride < document.length) step.gather(args);
        Factors<C::kTiles> factors;
        factors.take(squared, step);
        multiply_step(step, factors, queries, first, columns);
        any |= step.kept != 0;
      }
      const Best best = meet<kArgmax>(exchange, args.team, columns.gather(), any);
      const bool counts = block.kept >> lane & 1;
      total += sum_lanes(counts ? static_cast<double>(best.value * block.factor) : 0.0);
      if (kArgmax && args.argmax && rank == 0) {
        const int64_t slot = static_cast<int64_t>(chunk) * 32 + lane;
        if (slot < problem.argmax_width)
          args.argmax[at.pair * problem.argmax_width + slot] = valid && any && counts ? best.winner : -1;
      }
    }
    if (rank == 0 && lane == 0)
      args.scores[at.pair] =
          valid ? (any ? static_cast<float>(total) : problem.empty_score) : __int_as_float(0x7fc00000);
  }
}

}  // namespace cuda
}  // namespace maxsim
