// What comes before the Hopper kernel on residual documents: everything that its warps would else each work out for
// themselves, one after another, before the first token.
#pragma once

#include "centroid_tile.cuh"
#include "residual_stream.cuh"
#include "residual_table.cuh"

namespace maxsim {
namespace cuda {

struct PrologueShared {
  alignas(128) unsigned char queries[kQueryBlockBytes];
  uint64_t scratch[kResidualWarps];
  alignas(4) unsigned char kept[kResidualWarps];  // a bit for each of a warp's eight rows
  float longest[kResidualWarps];
};

// One block of query rows, eight a warp: as columns of wgmma for the kernel behind, in the order of features that its
// rows have, and as operands of mma.sync for the table.
// kSide: lanes have 32 features side by side, else eight of every 32.
template <class E, bool kSide>
__device__ __forceinline__ void stage_columns(const ResidualArgs& args, int64_t block, int width, bool writes,
                                              PrologueShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = 8 * warp + lane / 4;
  const Segments& side = args.problem.queries;
  const int per_group = width / args.chunks, in_group = static_cast<int>(block % width);
  const int64_t number = block / width * per_group + in_group / args.chunks;
  Span query;
  if (in_group < per_group * args.chunks) query = span_of(side, number);
  const int token = in_group % args.chunks * 32 + row;
  const bool inside = token < query.length, counts = inside && token_kept(side, query, token);
  const QueryShare share = load_query_share<E>(side, query, inside ? token : 0, args.problem.normalize, inside);
  char* columns = reinterpret_cast<char*>(args.stream.columns) + block * kQueryBlockBytes;
#pragma unroll
  for (int p = 0; p < kShare / 2 && writes; ++p) {
    const int c = kSide ? lane % 4 : p / 4, t = kSide ? p / 4 : lane % 4, i = p % 4;
    const int k = 16 * (2 * c + i / 2) + 8 * (i % 2) + 2 * t;  // of the pair's first feature
    const int chunk = k % 64 / 8 ^ row % 8;
    *reinterpret_cast<uint32_t*>(columns + k / 64 * 32 * 128 + row * 128 + chunk * 16 + k % 8 * 2) = share.pairs[p];
  }
  if (kSide) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      *reinterpret_cast<uint2*>(reinterpret_cast<char*>(staged_operand(shared.queries, warp / 2, s)) + warp % 2 * 8) =
          make_uint2(share.pairs[2 * s], share.pairs[2 * s + 1]);
  }
  if (writes && lane % 4 == 0) args.stream.factors[block * 32 + row] = share.factor;
  const uint32_t fourth = __ballot_sync(~0u, counts && lane % 4 == 0);
  uint32_t eight = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) eight |= (fourth >> 4 * i & 1) << i;
  float longest = counts ? share.length : 0.f;
#pragma unroll
  for (int step = 4; step <= 16; step *= 2) longest = fmaxf(longest, __shfl_xor_sync(~0u, longest, step));
  if (lane == 0) shared.kept[warp] = static_cast<unsigned char>(eight), shared.longest[warp] = longest;
  __syncthreads();
  if (threadIdx.x == 0 && writes) {
    args.stream.kept[block] = *reinterpret_cast<const uint32_t*>(shared.kept);
    args.stream.valid[block] = query.valid;
  }
  __syncthreads();
}

template <class E, int kBits, bool kTable, int kBlocks>
__global__ void __launch_bounds__(kResidualThreads) residual_prologue(const __grid_constant__ ResidualArgs args) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  using Table = Lookup<kBits, kTable || kBits <= 2>;
  __shared__ PrologueShared shared;
  const Problem& problem = args.problem;
  const StreamPlan& plan = args.stream;
  const int64_t number = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t thread = number * kResidualThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.y) * gridDim.x * kResidualThreads;
  const int64_t last = args.index.centroid_count - 1;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kResidualWarps + threadIdx.x / 32) * 16;
  // Everything comes from memory at first: it is all asked for at once.
  const IndexView& offsets = problem.documents.offsets;
  if (thread < problem.documents.count)
    prefetch_l2(static_cast<const char*>(offsets.data) + thread * offsets.stride * (offsets.wide ? 8 : 4));
  const float weight = load_element(args.index.weights, args.index.weight_type, threadIdx.x % (1 << kBits));
  CentroidTile<E> tile;
  if (kTable && first <= last) tile.load(static_cast<const E*>(args.index.centroids), first, last);

  // Each query has a table of its own, and blocks of the prologue.
  const int group = kTable ? blockIdx.y : 0;
  if constexpr (kTable) {
    stage_columns<E, true>(args, group, 1, blockIdx.x == 0, shared);
  } else {
    for (int64_t block = blockIdx.x; block < static_cast<int64_t>(plan.groups) * kBlocks; block += gridDim.x)
      stage_columns<E, false>(args, block, kBlocks, true, shared);
  }
  asm volatile("" ::"f"(weight));  // it is in a cache by now
  float multiplier = 1.f;
  if (kTable || blockIdx.x == 0) {
    if constexpr (kTable || kBits <= 2)
      multiplier = Weight<E, kBits, true>::shared_multiplier(args.index, shared.scratch);
  }
  float unit = multiplier;  // of products
  if constexpr (kTable) {
    float longest = 0.f;
    for (int w = 0; w < kResidualWarps; ++w) longest = fmaxf(longest, shared.longest[w]);
    const SimilarityScale scale(longest, args.index.centroid_norm, multiplier);
    unit /= scale.up;
    const float down = 1.f / multiplier;
    uint4* const table = plan.table + 4 * group * args.index.centroid_count;
    for (; first <= last; first += static_cast<int64_t>(gridDim.x) * kResidualWarps * 16) {
      float sums[4][4] = {};
      tile.multiply(shared.queries, sums);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t words[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) words[n] = scale.write(sums[n][2 * half] * down, sums[n][2 * half + 1] * down);
        const int64_t row = min(first + 8 * half + threadIdx.x % 32 / 4, last);
        table[4 * row + threadIdx.x % 4] = make_uint4(words[0], words[1], words[2], words[3]);
      }
      const int64_t next = first + static_cast<int64_t>(gridDim.x) * kResidualWarps * 16;
      if (next <= last) tile.load(static_cast<const E*>(args.index.centroids), next, last);
    }
  }
  if (blockIdx.x == 0) {
    const auto* best = Table::template products<E>(args.index);
    uint32_t* const entries = plan.entries + group * 256 * Table::kWords;
    for (int byte = threadIdx.x; byte < 256; byte += kResidualThreads) {
      uint32_t entry[Table::kWords];
      Table::template entry_of<E>(byte, args.index, unit, best, entry);
#pragma unroll
      for (int word = 0; word < Table::kWords; ++word) entries[byte * Table::kWords + word] = entry[word];
    }
    if (threadIdx.x == 0) plan.units[group] = unit;
  }

  bool out_of_order = false;
  const StreamParts parts(problem.documents, plan.warps, kTable ? 16 : 1);
  for (int64_t i = thread; i < problem.documents.count; i += threads) {
    const Span document = span_of(problem.documents, i);
    out_of_order |= !document.valid;
    if (document.valid && document.length) {
      const int64_t offset = parts.base < 0 ? 0 : document.first_row - parts.base;
      if (offset < 0) continue;  // out of order
      for (int64_t w = quotient(offset + parts.rows - 1, parts.rows);
           w < plan.warps && w * parts.rows < offset + document.length; ++w)
        plan.first_document[w] = static_cast<int32_t>(i);
      continue;
    }
    for (int64_t q = 0; q < problem.queries.count; ++q)
      args.scores[q * problem.documents.count + i] =
          document.valid && span_of(problem.queries, q).valid ? problem.empty_score : __int_as_float(0x7fc00000);
  }
  const bool any = __syncthreads_or(out_of_order);
  if (threadIdx.x == 0) plan.out_of_order[number] = any;
  for (int64_t i = thread; i < static_cast<int64_t>(plan.groups) * plan.warps; i += threads) plan.arrivals[i] = 0;
  for (int64_t i = thread; i < plan.warps; i += threads)
    if (parts.base + i * parts.rows >= parts.end) plan.first_document[i] = 0;  // nothing is left for this warp
}

}  // namespace cuda
}  // namespace maxsim
