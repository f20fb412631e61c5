// Host side of the tiled forwards: the problem cut into launches that stay within the scratch memory.
#include "forward_launch.h"

#include <algorithm>

#include "check.h"
#include "forward_args.cuh"
#include "mma_select.h"
#include "ptx/dependent_launch.cuh"
#include "sm90_deep_select.h"
#include "sm90_select.h"

namespace maxsim {
namespace cuda {
namespace {

constexpr int64_t kScratchBytes = 1 << 20;

// Of a warp's values, those of the lanes up to this one.
__device__ __forceinline__ int64_t sum_up_to(int lane, int64_t value) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t below = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

// (query, chunk) of each block of packed queries, in token order, behind one entry that counts them. Offsets that run
// backwards can name more blocks than there is room for: from the first query that does not fit on, each gets one block
// at the table's end, of chunk -1, which makes its scores NaN.
__global__ void __launch_bounds__(1024) list_blocks(const __grid_constant__ Segments queries, int2* out,
                                                    int64_t block_count, int32_t* arrivals, int64_t arrival_count) {
  __shared__ int64_t warp_sums[32];
  __shared__ int64_t base;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  ptx::launch_dependents();
  for (int64_t i = threadIdx.x; i < arrival_count; i += 1024) arrivals[i] = 0;
  if (threadIdx.x == 0) base = 0;
  for (int64_t first = 0; first < queries.count; first += 1024) {
    const int64_t query = first + threadIdx.x;
    const int length = query < queries.count ? span_of(queries, query).length : 0;
    const int64_t chunks = query < queries.count ? max(1, (length + kBlockTokens - 1) / kBlockTokens) : 0;
    const int64_t scan = sum_up_to(lane, chunks);
    if (lane == 31) warp_sums[warp] = scan;
    __syncthreads();
    const int64_t warps = sum_up_to(lane, warp_sums[lane]);
    const int64_t before = __shfl_sync(~0u, warps, max(warp - 1, 0)), all = __shfl_sync(~0u, warps, 31);
    const int64_t place = base + (warp ? before : 0) + scan - chunks;
    const int64_t reserved = block_count - queries.count + query;  // each query behind this one needs a place too
    if (query < queries.count && place + chunks <= reserved + 1) {
      for (int64_t c = 0; c < chunks; ++c) out[1 + place + c] = make_int2(static_cast<int>(query), static_cast<int>(c));
    } else if (query < queries.count) {
      for (int64_t gap = place; gap < reserved; ++gap) out[1 + gap] = make_int2(-1, 0);
      out[1 + reserved] = make_int2(static_cast<int>(query), -1);
    }
    __syncthreads();
    if (threadIdx.x == 0) base += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) out[0] = make_int2(static_cast<int>(min(base, block_count)), 0);
}

struct Layout {
  bool cross;
  int64_t chunks;       // blocks a query can have
  int64_t block_count;  // cross: blocks of all queries
  int64_t table_bytes;
  int64_t per_item;  // scratch bytes of one document (cross) or pair (else)
  int64_t items;     // documents (cross) or pairs (else)
  int64_t per_launch;
};

// Whether the blocks of packed queries have to be listed: else as many are reserved for each query, as if it were
// padded, which takes no more of them than a list has to have room for.
bool lists_blocks(const Segments& queries, int64_t chunks) {
  return queries.packed() && queries.count * chunks > queries.extent / kBlockTokens + queries.count;
}

// Whether all blocks of a query pass one warp, one after the other or side by side, so that their sums need no memory.
// On Hopper: those of a candidate do, and of a query of a cross product where every tile shape that meets so many
// blocks takes a multiple of them. Long rows may have to take mma.sync after all, where only padded problems do.
bool sums_together(const Problem& problem, Path path, int64_t chunks) {
  if (path != Path::sm90) return mma_sums_together(problem, chunks);
  if (sm90_takes_deep(problem)) return false;
  return problem.pairing != Pairing::cross || (!lists_blocks(problem.queries, chunks) && (chunks == 2 || chunks == 4));
}

Layout lay_out(const Problem& problem, Path path) {
  const Segments& queries = problem.queries;
  Layout out{};
  out.cross = problem.pairing == Pairing::cross;
  out.chunks = std::max<int64_t>(1, ceil_div(std::min(queries.extent, problem.longest_query), kBlockTokens));
  out.items = out.cross ? problem.documents.count : problem.pairs;
  out.block_count = queries.count * out.chunks;
  if (lists_blocks(queries, out.chunks)) {
    out.block_count = queries.extent / kBlockTokens + queries.count;
    if (out.cross) out.table_bytes = ceil_div((out.block_count + 1) * sizeof(int2), 256) * 256;
  }
  if (out.chunks > 1 && !sums_together(problem, path, out.chunks))
    out.per_item = out.cross ? out.block_count * 8 + queries.count * 4 : out.chunks * 8 + 4;
  out.per_launch = out.per_item ? std::max<int64_t>(1, std::min(out.items, kScratchBytes / out.per_item)) : out.items;
  return out;
}

}  // namespace

int64_t tiled_workspace(const Problem& problem, Path path) {
  const Layout layout = lay_out(problem, path);
  return layout.table_bytes + layout.per_launch * layout.per_item;
}

void tiled_forward(const Problem& problem, Path path, bool allow_tf32, float* scores, int32_t* argmax, void* workspace,
                   cudaStream_t stream) {
  const Layout layout = lay_out(problem, path);
  ForwardArgs args{};
  args.problem = problem;
  args.scores = scores;
  args.argmax = argmax;
  args.block_count = layout.block_count;
  args.chunks = static_cast<int32_t>(layout.chunks);
  args.allow_tf32 = allow_tf32;
  args.pieces = 1;
  auto* table = static_cast<int2*>(workspace);
  char* scratch = static_cast<char*>(workspace) + layout.table_bytes;
  if (layout.table_bytes) args.blocks = table + 1;
  for (args.first = 0; args.first < layout.items; args.first += args.count) {
    args.count = std::min(layout.per_launch, layout.items - args.first);
    int64_t arrivals = 0;
    if (layout.per_item) {
      arrivals = args.count * (layout.cross ? problem.queries.count : 1);
      args.partials = reinterpret_cast<double*>(scratch);
      args.arrivals =
          reinterpret_cast<int32_t*>(args.partials + args.count * (layout.cross ? layout.block_count : layout.chunks));
    }
    args.follows_table = layout.table_bytes && args.first == 0;
    if (args.follows_table) {
      list_blocks<<<1, 1024, 0, stream>>>(problem.queries, table, layout.block_count, args.arrivals, arrivals);
      check(cudaGetLastError(), "list_blocks");
    } else if (arrivals) {
      check(cudaMemsetAsync(args.arrivals, 0, arrivals * sizeof(int32_t), stream), "cudaMemsetAsync");
    }
    if (path != Path::sm90)
      mma_select(args, stream);
    else
      sm90_takes_deep(problem) ? sm90_select_deep(args, stream) : sm90_select(args, stream);
  }
}

}  // namespace cuda
}  // namespace maxsim
