// The same for several blocks of query rows: a step decompresses 32 tokens once for all of them, and reads the rows'
// operands from shared memory.
#pragma once

#include "residual_mma.cuh"

namespace maxsim {
namespace cuda {

struct BatchShared {
  float query_factor[ResidualBatch::kBlocks][32];
  uint32_t query_kept[ResidualBatch::kBlocks];
  float best[kResidualWarps][ResidualBatch::kBlocks][32];
  bool any[kResidualWarps];
};

// Queries of one block of threads: `queries_per_group` of them, whole.
struct BatchGroup {
  int64_t first_query;
  int blocks;
};

template <class E>
__device__ __forceinline__ void stage_queries(const ResidualArgs& args, const BatchGroup& group, unsigned char* staged,
                                              BatchShared& shared) {
  const int lane = threadIdx.x % 32;
  for (int b = threadIdx.x / 32; b < group.blocks; b += kResidualWarps) {
    const Segments& side = args.problem.queries;
    const Span query = span_of(side, group.first_query + b / args.chunks);
    const QueryRows rows =
        stage_query_block<E>(staged + b * kQueryBlockBytes, side, query, b % args.chunks, args.problem.normalize);
    shared.query_factor[b][lane] = rows.factor;
    if (lane == 0) shared.query_kept[b] = rows.kept;
  }
}

// The maxima of one document become scores: a warp adds up whole queries, block after block.
__device__ __forceinline__ void write_batch_scores(const ResidualArgs& args, const BatchGroup& group,
                                                   const BatchShared& shared, int64_t document, bool valid, bool any,
                                                   int first_warp, int rank) {
  const int lane = threadIdx.x % 32, queries = group.blocks / args.chunks;
  for (int q = rank; q < queries; q += args.team) {
    double total = 0;
    for (int chunk = 0; chunk < args.chunks; ++chunk) {
      const int b = q * args.chunks + chunk;
      float best = shared.best[first_warp][b][lane];
      for (int other = 1; other < args.team; ++other) best = max_nan(best, shared.best[first_warp + other][b][lane]);
      const bool counts = shared.query_kept[b] >> lane & 1;
      total += sum_lanes(counts ? static_cast<double>(best * shared.query_factor[b][lane]) : 0.0);
    }
    if (lane == 0)
      args.scores[(group.first_query + q) * args.problem.documents.count + document] =
          valid ? (any ? static_cast<float>(total) : args.problem.empty_score) : __int_as_float(0x7fc00000);
  }
}

template <class E, int kBits, bool kWhole>
__global__ void __launch_bounds__(kResidualThreads, ResidualBatch::kPerSm)
    residual_batch(const __grid_constant__ ResidualArgs args) {
  using C = ResidualBatch;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ BatchShared shared;
  unsigned char* staged = memory + kLookupBytes;
  const Problem& problem = args.problem;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float multiplier = Lookup<kBits>::template build<E>(memory, args.index);
  ptx::wait_for_prior_kernel();
  ptx::launch_dependents();
  const bool squared = args.index.normalize;
  const uint32_t own = Lookup<kBits>::own();
  const int64_t per_group = C::kBlocks / args.chunks;
  BatchGroup group;
  group.first_query = blockIdx.y * per_group;
  group.blocks = static_cast<int>(min(per_group, problem.queries.count - group.first_query)) * args.chunks;
  stage_queries<E>(args, group, staged, shared);
  __syncthreads();

  const int teams = kResidualWarps / args.team, rank = warp % args.team;
  for (int64_t item = blockIdx.x + static_cast<int64_t>(warp / args.team) * gridDim.x; item < problem.documents.count;
       item += static_cast<int64_t>(teams) * gridDim.x) {
    const Span document = span_of(problem.documents, item);  // of no tokens where it is not valid
    const int length = document.length;
    bool any = false;
    ColumnState<false> columns[C::kBlocks];
#pragma unroll
    for (int b = 0; b < C::kBlocks; ++b) columns[b].reset();
    const int step_tokens = 16 * C::kTiles, stride = step_tokens * args.team;
    Step<E, kBits, C::kTiles, kWhole> step;
    step.start(args, document, step_tokens * rank, stride);
    for (int first = step_tokens * rank; first < length; first += stride) {
      step.gather(args);  // maxima leave no registers for the next step's rows: the SM's other warps multiply meanwhile
      step.describe(args, document, first);
      step.add(args, memory, own, multiplier);
      step.advance(args, document, first + stride, stride);
      Factors<C::kTiles> factors;
      factors.take(squared, step);
      any |= step.kept != 0;
#pragma unroll
      for (int b = 0; b < C::kBlocks; ++b) {
        if (b >= group.blocks) break;
        multiply_step(step, factors, staged + b * kQueryBlockBytes, first, columns[b]);
      }
    }
    if (args.team > 1) __syncthreads();  // everybody has read the maxima of the document before
#pragma unroll
    for (int b = 0; b < C::kBlocks; ++b) {
      if (b >= group.blocks) break;
      shared.best[warp][b][lane] = columns[b].gather().value;
    }
    shared.any[warp] = any;
    if (args.team > 1)
      __syncthreads();
    else
      __syncwarp();
    const int first_warp = warp - rank;
    for (int other = 0; other < args.team; ++other) any |= shared.any[first_warp + other];
    write_batch_scores(args, group, shared, item, document.valid, any, first_warp, rank);
    if (args.team == 1) __syncwarp();
  }
}

}  // namespace cuda
}  // namespace maxsim
