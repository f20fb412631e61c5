// Blocks of query rows: what they are, and how their sums become scores.
#pragma once

#include "forward_args.cuh"
#include "ptx/arrival.cuh"

namespace maxsim {
namespace cuda {

// Block `lane` of a group of kBlocks (cross) or of part `part` of one query.
template <int kBlocks>
__device__ __forceinline__ BlockInfo describe_block(const ForwardArgs& args, bool cross, int64_t group, int part,
                                                    int lane) {
  const Segments& side = args.problem.queries;
  BlockInfo info;
  if (lane >= kBlocks) return info;
  if (!cross) {
    info.query = group;
    info.chunk = part * kBlocks + lane;
  } else {
    const int64_t block = group * kBlocks + lane;
    if (block < block_count(args)) {
      info.query = args.blocks ? args.blocks[block].x : quotient(block, args.chunks);
      info.chunk = args.blocks ? args.blocks[block].y : static_cast<int>(block - info.query * args.chunks);
    }
  }
  const bool listed = info.chunk >= 0;
  if (!listed) info.chunk = 0;
  info.slot = cross ? group * kBlocks + lane : info.chunk;
  if (info.query < 0) return info;
  const Span span = span_of(side, info.query);
  info.valid = listed && span.valid && span.length <= args.problem.longest_query;
  const int length = info.valid ? span.length : 0;
  info.chunks = max(1, (length + kBlockTokens - 1) / kBlockTokens);
  if (info.chunk >= info.chunks) {
    info.query = -1;
    return info;
  }
  const int first = info.chunk * kBlockTokens, rows = min(kBlockTokens, length - first);
  info.kept = rows < 32 ? (1u << max(rows, 0)) - 1 : ~0u;
  if (side.mask)
    for (int t = 0; t < rows; ++t)
      if (!token_kept(side, span, first + t)) info.kept &= ~(1u << t);
  info.row = static_cast<int>(side.packed() ? span.first_row + first : first);
  info.begin = span.begin + first * side.token_stride;
  return info;
}

__device__ __forceinline__ int64_t pair_of(const ForwardArgs& args, const BlockInfo& owner, int64_t target) {
  return args.problem.pairing == Pairing::cross ? owner.query * args.problem.documents.count + target : target;
}

// A block's owner fills its 32 slots, one a lane; the query's last block also clears what lies behind it.
__device__ __forceinline__ void write_winners(const ForwardArgs& args, const BlockInfo& owner, int64_t pair, int lane,
                                              int32_t winner) {
  const int64_t width = args.problem.argmax_width;
  int32_t* out = args.argmax + pair * width;
  int64_t slot = owner.chunk * kBlockTokens + lane;
  if (slot < width) out[slot] = winner;
  if (owner.chunk + 1 == owner.chunks)
    for (slot += kBlockTokens; slot < width; slot += kBlockTokens) out[slot] = -1;
}

// Parts of a sum, one a lane: always the same tree over block numbers, wherever the parts come from.
__device__ __forceinline__ double add_parts(double part) {
#pragma unroll
  for (int step = 16; step; step /= 2) part += __shfl_xor_sync(~0u, part, step);
  return part;
}

__device__ __forceinline__ void write_score(const ForwardArgs& args, const BlockInfo& owner, int64_t target, double sum,
                                            bool valid, bool any_token) {
  const float nan = __int_as_float(0x7fc00000);
  args.scores[pair_of(args, owner, target)] =
      valid && owner.valid ? (any_token ? static_cast<float>(sum) : args.problem.empty_score) : nan;
}

// Sums of blocks on their way to scores, by a whole warp: each lane that `has` one brings its block. Of a query's
// blocks the last to arrive adds all of them: which one that is never shows.
__device__ __forceinline__ void write_sums(const ForwardArgs& args, const BlockInfo& owner, int64_t target, bool has,
                                           double sum, bool valid, bool any_token) {
  const bool cross = args.problem.pairing == Pairing::cross;
  const int lane = threadIdx.x % 32;
  const int64_t place = target - args.first;
  const double* partials = nullptr;
  bool last = has;
  if (__any_sync(~0u, has && owner.chunks > 1)) {
    int arrived = owner.chunks - 1;
    if (has && owner.chunks > 1) {
      double* own = args.partials + place * (cross ? args.block_count : args.chunks) + owner.slot;
      __stcg(own, sum);
      partials = own - owner.chunk;
      int32_t* arrivals = args.arrivals + (cross ? owner.query * args.count : 0) + place;
      arrived = ptx::arrive(arrivals);
    }
    last = has && arrived + 1 == owner.chunks;
    for (unsigned left = __ballot_sync(~0u, last && owner.chunks > 1); left; left &= left - 1) {
      const int from = __ffs(left) - 1, chunks = __shfl_sync(~0u, owner.chunks, from);
      const auto* parts =
          reinterpret_cast<const double*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(partials), from));
      __threadfence();
      double total = 0;
#pragma unroll 1  // seldom more than one step, in every kernel
      for (int first = 0; first < chunks; first += 32)
        total += add_parts(first + lane < chunks ? __ldcg(parts + first + lane) : 0);
      if (lane == from) sum = total;
    }
  }
  if (last) write_score(args, owner, target, sum, valid, any_token);
}

}  // namespace cuda
}  // namespace maxsim
