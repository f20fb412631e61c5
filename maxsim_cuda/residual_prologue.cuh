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
// rows have, and as operands of mma.sync for the table. Asked for early, and used when everything else is on its way.
template <class E>
struct ColumnRows {
  Span query;
  int row, token;  // of the block and of the query
  bool inside, counts;
  RawQueryShare<E> raw;

  // A query's only block.
  __device__ __forceinline__ ColumnRows(const ResidualArgs& args, int query_number) {
    row = token = threadIdx.x / 4;
    query = span_of(args.problem.queries, query_number);
    load(args.problem.queries);
  }
  // One of `width` blocks, which have as many whole queries as fit.
  __device__ __forceinline__ ColumnRows(const ResidualArgs& args, int64_t block, int width) {
    const int per_group = width / args.chunks, in_group = static_cast<int>(block % width);
    const int64_t number = block / width * per_group + in_group / args.chunks;
    if (in_group < per_group * args.chunks) query = span_of(args.problem.queries, number);
    row = threadIdx.x / 4;
    token = in_group % args.chunks * 32 + row;
    load(args.problem.queries);
  }

  // kSide: lanes have 32 features side by side, else eight of every 32. Columns are multiplied by a power of two, which
  // `power` finds from the length of the longest row.
  template <bool kSide, class Power>
  __device__ __forceinline__ void stage(const ResidualArgs& args, int64_t block, bool writes, PrologueShared& shared,
                                        Power power) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const QueryShare share = query_share(raw, args.problem.queries, query, token, args.problem.normalize, inside);
    if (kSide) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        *reinterpret_cast<uint2*>(reinterpret_cast<char*>(staged_operand(shared.queries, warp / 2, s)) + warp % 2 * 8) =
            make_uint2(share.pairs[2 * s], share.pairs[2 * s + 1]);
    }
    const uint32_t fourth = __ballot_sync(~0u, counts && lane % 4 == 0);
    uint32_t eight = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) eight |= (fourth >> 4 * i & 1) << i;
    float longest = counts ? share.length : 0.f;
#pragma unroll
    for (int step = 4; step <= 16; step *= 2) longest = fmaxf(longest, __shfl_xor_sync(~0u, longest, step));
    if (lane == 0) shared.kept[warp] = static_cast<unsigned char>(eight), shared.longest[warp] = longest;
    __syncthreads();
    for (int w = 0; w < kResidualWarps; ++w) longest = fmaxf(longest, shared.longest[w]);
    const float up = power(longest);
    char* columns = reinterpret_cast<char*>(args.stream.columns) + block * kQueryBlockBytes;
#pragma unroll
    for (int p = 0; p < kShare / 2 && writes; ++p) {
      const int c = kSide ? lane % 4 : p / 4, t = kSide ? p / 4 : lane % 4, i = p % 4;
      const int k = 16 * (2 * c + i / 2) + 8 * (i % 2) + 2 * t;  // of the pair's first feature
      const int chunk = k % 64 / 8 ^ row % 8;
      const float2 pair = Pair<E>::unpack(share.pairs[p]);
      *reinterpret_cast<uint32_t*>(columns + k / 64 * 32 * 128 + row * 128 + chunk * 16 + k % 8 * 2) =
          Pair<E>::pack(pair.x * up, pair.y * up);
    }
    if (writes && lane % 4 == 0) args.stream.factors[block * 32 + row] = share.factor;
    if (threadIdx.x == 0 && writes) {
      args.stream.kept[block] = *reinterpret_cast<const uint32_t*>(shared.kept);
      args.stream.valid[block] = query.valid;
    }
    __syncthreads();
  }

 private:
  __device__ __forceinline__ void load(const Segments& side) {
    inside = token < query.length;
    counts = inside && token_kept(side, query, token);
    raw.load(side, query, inside ? token : 0, inside);
  }
};

// Which document each warp's part begins with, and the scores of those without a token. True if offsets are not in
// order.
template <int kGrain>
__device__ __forceinline__ bool place_documents(const ResidualArgs& args, int64_t thread, int64_t threads) {
  const Problem& problem = args.problem;
  const StreamPlan& plan = args.stream;
  const StreamParts parts(problem.documents, plan.warps, kGrain);
  bool out_of_order = false;
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
  for (int64_t i = thread; i < static_cast<int64_t>(plan.groups) * plan.warps; i += threads) plan.arrivals[i] = 0;
  for (int64_t i = thread; i < plan.warps; i += threads)
    if (parts.base + i * parts.rows >= parts.end) plan.first_document[i] = 0;  // nothing is left for this warp
  return out_of_order;
}

// Whether a word that this thread looks at says so. Nearly always there are fewer than threads, and one load, for which
// nobody waits before all threads meet.
__device__ __forceinline__ bool placed_out_of_order(const StreamPlan& plan) {
  int any = threadIdx.x < plan.placing ? __ldcg(plan.out_of_order + threadIdx.x) : 0;
#pragma unroll 1
  for (int i = threadIdx.x + kResidualThreads; i < plan.placing; i += kResidualThreads)
    any |= __ldcg(plan.out_of_order + i);
  return any;
}

template <class E, int kBits, bool kTable, int kBlocks>
__global__ void __launch_bounds__(kResidualThreads) residual_prologue(const __grid_constant__ ResidualArgs args) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  __shared__ PrologueShared shared;
  const Problem& problem = args.problem;
  const StreamPlan& plan = args.stream;
  const int64_t number = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t thread = number * kResidualThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.y) * gridDim.x * kResidualThreads;
  bool out_of_order = false;
  // Everything comes from memory at first, so all of it is asked for before anything is waited for: centroids, which
  // take longest, ahead of query rows, which take a hundred instructions to ask for.
  const IndexView& offsets = problem.documents.offsets;
  if (thread < problem.documents.count)
    prefetch_l2(static_cast<const char*>(offsets.data) + thread * offsets.stride * (offsets.wide ? 8 : 4));
  if constexpr (kTable) {
    // Each query has a table of its own, and blocks of the prologue, the last of which has no centroids, or fewer.
    const int group = blockIdx.y;
    const bool writes = blockIdx.x + 1 == gridDim.x;
    using Table = Lookup<kBits, true>;
    const float weight = Table::own_weight(args.index);
    const int64_t last = args.index.centroid_count - 1, step = static_cast<int64_t>(gridDim.x) * kResidualWarps * 16;
    int64_t first = (static_cast<int64_t>(blockIdx.x) * kResidualWarps + threadIdx.x / 32) * 16;
    CentroidTile<E> tile;
    if (first <= last) tile.load(static_cast<const E*>(args.index.centroids), first, last);
    ColumnRows<E> rows(args, group);
    const float multiplier = Weight<E, kBits, true>::shared_multiplier(weight, shared.scratch);
    if (writes && group == 0) {
      for (int byte = threadIdx.x; byte < 256; byte += kResidualThreads) {
        uint32_t entry[Table::kWords];
        Table::template entry_of<E>(byte, args.index, weight, multiplier, nullptr, entry);
#pragma unroll
        for (int word = 0; word < Table::kWords; ++word) plan.entries[byte * Table::kWords + word] = entry[word];
      }
    }
    out_of_order = place_documents<16>(args, thread, threads);
    SimilarityScale scale;
    rows.template stage<true>(args, group, writes, shared, [&](float longest) {
      scale = SimilarityScale(longest, args.index.centroid_norm, multiplier);
      return scale.up;
    });
    if (writes && threadIdx.x == 0) plan.units[group] = multiplier / scale.up;
    const float down = 1.f / multiplier;
    uint4* const table = plan.table + 4 * group * args.index.centroid_count;
    for (; first <= last; first += step) {
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
      if (first + step <= last) tile.load(static_cast<const E*>(args.index.centroids), first + step, last);
    }
  } else {
    out_of_order = place_documents<1>(args, thread, threads);
    for (int64_t block = blockIdx.x; block < static_cast<int64_t>(plan.groups) * kBlocks; block += gridDim.x)
      ColumnRows<E>(args, block, kBlocks).template stage<false>(args, block, true, shared, [](float) { return 1.f; });
  }
  const bool any = __syncthreads_or(out_of_order);
  if (threadIdx.x == 0 && number < plan.placing) plan.out_of_order[number] = any;
}

}  // namespace cuda
}  // namespace maxsim
