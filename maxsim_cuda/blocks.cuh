// Blocks of query rows: what they are, and how their sums become scores.
#pragma once

#include "forward_args.cuh"

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
    if (block < (args.blocks ? args.blocks[-1].x : args.block_count)) {
      info.query = args.blocks ? args.blocks[block].x : quotient(block, args.chunks);
      info.chunk = args.blocks ? args.blocks[block].y : static_cast<int>(block - info.query * args.chunks);
    }
  }
  const bool listed = info.chunk >= 0;
  if (!listed) info.chunk = 0;
  info.slot = cross ? group * kBlocks + lane : info.chunk;
  if (info.query < 0) return info;
  const Span span = span_of(side, info.query);
  info.valid = listed && span.valid && (!args.argmax || span.length <= args.problem.argmax_width);
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

// A block's owner fills its 32 slots; the query's last block also clears what lies behind it.
__device__ __forceinline__ void write_winner(const ForwardArgs& args, const BlockInfo& owner, int64_t pair, int token,
                                             int32_t winner) {
  const int64_t width = args.problem.argmax_width;
  int32_t* out = args.argmax + pair * width;
  int64_t slot = owner.chunk * kBlockTokens + token;
  if (slot < width) out[slot] = winner;
  if (owner.chunk + 1 == owner.chunks)
    for (slot += kBlockTokens; slot < width; slot += kBlockTokens) out[slot] = -1;
}

// The last block of a query to arrive adds all of them, by a tree over block numbers: which one that is never shows.
__device__ __forceinline__ bool add_blocks(const ForwardArgs& args, const BlockInfo& owner, int64_t target, int lane,
                                           double& sum) {
  const bool cross = args.problem.pairing == Pairing::cross;
  const int64_t place = target - args.first;
  double* partials = args.partials + place * (cross ? args.block_count : args.chunks) + owner.slot - owner.chunk;
  int32_t* arrivals = args.arrivals + (cross ? owner.query * args.count : 0) + place;
  int arrived = 0;
  if (lane == 0) {
    __stcg(partials + owner.chunk, sum);
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(arrived) : "l"(arrivals) : "memory");
  }
  if (__shfl_sync(~0u, arrived, 0) + 1 != owner.chunks) return false;
  __threadfence();
  sum = 0;
  for (int first = 0; first < owner.chunks; first += 32) {
    double part = first + lane < owner.chunks ? __ldcg(partials + first + lane) : 0;
#pragma unroll
    for (int step = 16; step; step /= 2) part += __shfl_xor_sync(~0u, part, step);
    sum += part;
  }
  return true;
}

// By a whole warp, with the block's sum in lane 0.
__device__ __forceinline__ void write_sum(const ForwardArgs& args, const BlockInfo& owner, int64_t target, int64_t pair,
                                          int lane, double sum, bool valid, bool any_token) {
  if (owner.chunks > 1 && !add_blocks(args, owner, target, lane, sum)) return;
  const float nan = __int_as_float(0x7fc00000);
  if (lane == 0) args.scores[pair] = valid ? (any_token ? static_cast<float>(sum) : args.problem.empty_score) : nan;
}

}  // namespace cuda
}  // namespace maxsim
