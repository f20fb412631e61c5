// From row maxima to scores: one warp of the Hopper forward adds, scales and writes while the math goes on.
#pragma once

#include "blocks.cuh"
#include "ptx/cluster.cuh"
#include "ptx/dependent_launch.cuh"
#include "row_max.cuh"
#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, bool kArgmax, Columns kColumns>
struct Sm90Finisher {
  static constexpr int kFinished = Sm90Shared<C>::kFinished;
  static constexpr int kLanes = 4, kTokens = kBlockTokens / kLanes;  // lanes a block, tokens a lane
  static_assert(C::kBlocks * kLanes <= 32, "a warp takes all blocks at once");
  static constexpr bool kFactored =
      kStored<T> || C::kWidens || C::kTurned;  // factors come from the caller, if there are any

  // Whether documents are in one piece, known when this is compiled. Those of Sm90Packed are too: without the code for
  // pieces, which never runs there, the assembler finds no registers for products in flight and serialises them.
  static constexpr bool kWhole = kOnlyDense<C> || kOnlyMarked<C>;

  const ForwardArgs& args;
  Sm90Shared<C>& shared;
  int lane;
  float all_columns;   // the factor of all document tokens, where they share one
  double part, total;  // of a pair whose query has several blocks: a lane's block, and those already added

  __device__ __forceinline__ void run() {
    const bool shares = !kWhole && args.pieces > 1;
    if (shares) ptx::cluster_wait();  // everyone's barriers are there
    if (shares && blockIdx.x % args.pieces)
      pass_on();
    else
      finish();
    if (!shares) return;
    ptx::cluster_arrive();
    ptx::cluster_wait();  // no one reads this block's memory any more
  }

  // Of the blocks that share documents, the first fetches the maxima of the others and lets go of them.
  __device__ __forceinline__ void pass_on() {
    Ring<kFinished> ring;
    while (true) {
      ptx::mbarrier_wait(&shared.finished_full[ring.at], ring.phase);
      const Finished done = shared.finished[ring.at];
      if (done.flags & StageInfo::kEnd) return;
      if (done.flags & StageInfo::kRelease) ptx::mbarrier_arrive(&shared.queries_empty[done.buffer]);
      if constexpr (C::kTurned) merge_warps(ring.at);
      __syncwarp();
      if (lane == 0) ptx::arrive_at(ptx::address_in(0, &shared.pieces_full[ring.at]));
      ring.advance();
    }
  }

  // Of turned products each math warp has met its own document tokens: a lane merges the maxima of one column.
  __device__ __forceinline__ void merge_warps(int slot) {
    static_assert(C::kRows == 32 && C::kMaxima == 4 * C::kRows);
    RowState<kArgmax> state;
    state.reset();
#pragma unroll
    for (int row = lane; row < C::kMaxima; row += 32)
      state.take(0, shared.maxima[slot][row], kArgmax ? shared.winners[slot][row] : 0);
    shared.maxima[slot][lane] = state.best[0];
    if (kArgmax) shared.winners[slot][lane] = state.winner[0];
    __syncwarp();
  }

  // Merges the other pieces' maxima into this block's; true if one of them has kept a token.
  __device__ __forceinline__ bool merge_pieces(const Ring<kFinished>& ring) {
    ptx::wait_for_cluster(&shared.pieces_full[ring.at], ring.phase);
    int flags = 0;
    for (int rank = 1; rank < args.pieces; ++rank) {
      flags |= ptx::load_word(ptx::address_in(rank, &shared.finished[ring.at].flags));
#pragma unroll
      for (int row = lane; row < C::kRows; row += 32) {
        RowState<kArgmax> state;
        state.best[0] = shared.maxima[ring.at][row];
        state.winner[0] = kArgmax ? shared.winners[ring.at][row] : 0;
        state.take(0, __uint_as_float(ptx::load_word(ptx::address_in(rank, &shared.maxima[ring.at][row]))),
                   kArgmax ? ptx::load_word(ptx::address_in(rank, &shared.winners[ring.at][row])) : 0);
        shared.maxima[ring.at][row] = state.best[0];
        if (kArgmax) shared.winners[ring.at][row] = state.winner[0];
      }
      ptx::arrive_at(ptx::address_in(rank, &shared.finished_empty[ring.at]));
    }
    __syncwarp();
    return flags & StageInfo::kAnyToken;
  }

  __device__ __forceinline__ void finish() {
    Ring<kFinished> ring;
    const TokenFactor& shared_factor = args.problem.documents.scale;
    part = total = 0;
    if (args.follows_table) ptx::wait_for_prior_kernel();
    all_columns = kFactored && kColumns == Columns::plain && shared_factor ? *shared_factor.data : 1.f;
    while (true) {
      ptx::mbarrier_wait(&shared.finished_full[ring.at], ring.phase);
      const Finished done = shared.finished[ring.at];
      if (done.flags & StageInfo::kEnd) return;
      const bool valid = !(done.flags & StageInfo::kInvalid);
      bool any_token = done.flags & StageInfo::kAnyToken;
      if constexpr (C::kTurned) merge_warps(ring.at);
      if (!kWhole && args.pieces > 1 && merge_pieces(ring)) any_token = true;
      if (kArgmax) write_all_winners(done, ring.at, valid && any_token);
      const int block = min(lane / kLanes, C::kBlocks - 1);
      const BlockInfo owner = shared.blocks[done.buffer][block];
      double sum = add_tokens(owner, block, done.buffer, ring.at);
      ptx::mbarrier_arrive(&shared.finished_empty[ring.at]);
      if (done.flags & StageInfo::kRelease) ptx::mbarrier_arrive(&shared.queries_empty[done.buffer]);
      const bool has = lane % kLanes == 0 && lane < C::kBlocks * kLanes && owner.query >= 0;
      if (!kOnlyDense<C> && args.partials)
        write_sums(args, owner, done.target, has, sum, valid, any_token);
      else
        finish_sums(owner, done.target, has, sum, valid, any_token);
      ring.advance();
    }
  }

  // Where all blocks of a query come past here, their sums need no memory.
  __device__ __forceinline__ void finish_sums(const BlockInfo& owner, int64_t target, bool has, double sum, bool valid,
                                              bool any_token) {
    if (!__any_sync(~0u, has && owner.chunks > 1)) {
      if (has) write_score(args, owner, target, sum, valid, any_token);
    } else if (args.problem.pairing == Pairing::cross) {  // side by side, at a multiple of their number
      for (int step = args.chunks / 2; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step * kLanes);
      if (has && owner.chunk == 0) write_score(args, owner, target, sum, valid, any_token);
    } else {  // one query's, event after event: each is kept by the lane of its number
      const int first = __shfl_sync(~0u, owner.chunk, 0), chunks = __shfl_sync(~0u, owner.chunks, 0);
      const int block = lane - first % 32;
      const double found = __shfl_sync(~0u, sum, max(0, min(block, C::kBlocks - 1)) * kLanes);
      if (block >= 0 && block < min(C::kBlocks, chunks - first)) part = found;
      const bool last = first + C::kBlocks >= chunks;
      if (!last && (first + C::kBlocks) % 32) return;
      total += add_parts(part);
      part = 0;
      if (!last) return;
      if (lane == 0) write_score(args, owner, target, total, valid, any_token);
      total = 0;
    }
  }

  __device__ __forceinline__ double add_tokens(const BlockInfo& owner, int block, int buffer, int slot) const {
    const int first = lane % kLanes * kTokens;
    const float4* from = reinterpret_cast<const float4*>(&shared.maxima[slot][block * kBlockTokens + first]);
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) {
      const float4 four = from[i];
      const float value[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int token = first + i * 4 + k;
        const bool scaled = kFactored ? static_cast<bool>(args.problem.queries.scale) : kColumns != Columns::plain;
        const float scale = scaled ? shared.row_scale[buffer][block_row<C>(block, token)] : 1.f;
        const float best = kFactored ? value[k] * all_columns : value[k];
        sum += owner.kept >> token & 1 ? static_cast<double>(best * scale) : 0.;
      }
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }

  __device__ __forceinline__ void write_all_winners(const Finished& done, int slot, bool has_winners) const {
    for (int block = 0; block < C::kBlocks; ++block) {
      const BlockInfo& owner = shared.blocks[done.buffer][block];
      if (owner.query < 0) continue;
      const bool counts = owner.kept >> lane & 1;
      write_winners(args, owner, pair_of(args, owner, done.target), lane,
                    counts && has_winners ? shared.winners[slot][block * kBlockTokens + lane] : -1);
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
