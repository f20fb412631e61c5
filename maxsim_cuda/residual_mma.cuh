// MaxSim over residual documents on mma.sync: queries are the rows, tokens the columns, decompressed in registers.
#pragma once

#include "residual_step.cuh"
#include "row_max.cuh"

namespace maxsim {
namespace cuda {

struct Best {
  float value;
  int32_t winner;
};

// From the layout of the products to one row a lane.
template <bool kArgmax>
__device__ __forceinline__ Best row_of_lane(RowState<kArgmax> (&rows)[2]) {
  const int lane = threadIdx.x % 32;
  Best best{-INFINITY, INT32_MAX};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i % 2 == 0) rows[i / 2].reduce();
    const float value = __shfl_sync(~0u, rows[i / 2].best[i % 2], lane % 8 * 4);
    const int32_t winner = kArgmax ? __shfl_sync(~0u, rows[i / 2].winner[i % 2], lane % 8 * 4) : 0;
    if (lane / 8 == i) best = {value, winner};
  }
  return best;
}

// Products of a step's tokens with 16 rows, as they enter the running maxima.
template <class E, int kBits, int kTiles, bool kWhole, bool kArgmax>
__device__ __forceinline__ void multiply_step(const Step<E, kBits, kTiles, kWhole>& step, unsigned char* queries,
                                              int tile, const float* factors, int first, RowState<kArgmax>& row) {
  float c[2 * kTiles][4] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const uint4 a = *staged_operand(queries, tile, s);
    const uint32_t rows[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int j = 0; j < 2 * kTiles; ++j) {
      uint32_t columns[2];
      step.operand(j, s, columns);
      ptx::mma<E>(c[j], rows, columns);
    }
  }
  const int column0 = threadIdx.x % 4 * 2;
  const bool full = step.kept == (kTiles == 2 ? ~0u : 0xffffu);
#pragma unroll
  for (int j = 0; j < 2 * kTiles; ++j) {
    const int column = column0 + 8 * j;
    const float2 factor = *reinterpret_cast<const float2*>(factors + column);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (full || step.kept >> (column + e % 2) & 1)
        row.take(e / 2, c[j][e] * (e % 2 ? factor.y : factor.x), first + column + e % 2);
  }
}

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
  __shared__ float factors[kResidualWarps][16 * C::kTiles];
  __shared__ ResidualExchange exchange;
  const Problem& problem = args.problem;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned char* queries = memory + kLookupBytes + warp * kQueryBlockBytes;
  const float multiplier = Lookup<kBits>::template build<E>(memory, args.index);
  const bool squared = args.index.normalize && !args.index.inverse_norms;
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
      RowState<kArgmax> rows[2];
      rows[0].reset(), rows[1].reset();
      const int stride = 16 * C::kTiles * args.team;
      int first = 16 * C::kTiles * rank;
      Step<E, kBits, C::kTiles, kWhole> step;
      step.start(args, document, first, stride);
      for (; first < document.length; first += stride) {
        step.describe(args, document, first);
        step.add(args, memory, own, multiplier);
        step.load_packed(args, document, first + stride);
        Squares<C::kTiles> squares{};
        if (squared)
#pragma unroll
          for (int s = 0; s < kSteps; ++s) squares.multiply(step, s);
        write_factors(squared, squares, step, factors[warp]);
        multiply_step(step, queries, 0, factors[warp], first, rows[0]);
        multiply_step(step, queries, 1, factors[warp], first, rows[1]);
        any |= step.kept != 0;
        step.advance(args, document, first + stride, stride);
      }
      const Best best = meet<kArgmax>(exchange, args.team, row_of_lane(rows), any);
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
