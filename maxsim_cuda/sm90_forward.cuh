// Forward on Hopper: a producer warpgroup streams document tiles through a ring in shared memory, math warpgroups
// multiply them with resident query rows and keep the row maxima in registers. No score tile is ever written.
#pragma once

#include "sm90_producer.cuh"

namespace maxsim {
namespace cuda {

__device__ __forceinline__ float max_nan(float a, float b) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}

// The two rows a thread holds of one 64-row tile: row lane / 4 and the one 8 below.
template <bool kArgmax>
struct RowState {
  float best[2];
  int32_t winner[2];

  __device__ __forceinline__ void reset() {
    best[0] = best[1] = -INFINITY;
    if (kArgmax) winner[0] = winner[1] = INT32_MAX;
  }
  __device__ __forceinline__ void take(int row, float value, int32_t token) {
    if (!kArgmax) {
      best[row] = max_nan(best[row], value);
    } else if (beats(value, token, best[row], winner[row])) {
      best[row] = value;
      winner[row] = token;
    }
  }
  // Over the four lanes that share a row.
  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int step = 1; step <= 2; step *= 2) {
        const float other = __shfl_xor_sync(~0u, best[row], step);
        const int32_t token = kArgmax ? __shfl_xor_sync(~0u, winner[row], step) : 0;
        take(row, other, token);
      }
  }
};

template <class C, class T, bool kArgmax, bool kNormalize>
struct Sm90Consumer {
  const Sm90Args& args;
  Sm90Shared<C>& shared;
  uint32_t queries, tiles;  // shared addresses
  int group, warp, lane;
  float products[C::kTiles][C::N / 2];
  RowState<kArgmax> rows[C::kTiles];
  bool any_token;  // the open document has kept one so far

  __device__ __forceinline__ void issue(int tile, int stage) {
    const uint32_t a = queries + (group * C::kTiles + tile) * 64 * C::kAtoms * 128;
    const uint32_t b = tiles + stage * C::kTileBytes;
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::kAtoms * 4; ++k)
      ptx::Wgmma<T, C::N>::run(products[tile], ptx::wgmma_descriptor(a + k / 4 * 64 * 128 + k % 4 * 32),
                               ptx::wgmma_descriptor(b + k / 4 * C::N * 128 + k % 4 * 32), k > 0);
    ptx::wgmma_commit();
  }

  // Columns 8j + 2 (lane % 4) and the next one of both rows sit in products[4j .. 4j + 3].
  __device__ __forceinline__ void take_maxima(int tile, int flags, int stage) {
    const StageInfo& info = shared.stages[stage];
    const float (&c)[C::N / 2] = products[tile];
    RowState<kArgmax>& row = rows[tile];
    const int column0 = lane % 4 * 2;
    const int32_t token0 = info.first_token + column0;
    const bool full = __shfl_sync(~0u, flags, 0) & StageInfo::kFull;
    if (kArgmax && full)
      if (take_winners(c, row, token0, stage, column0)) return;
    if (!kArgmax && full) {
      float odd[2] = {-INFINITY, -INFINITY};  // a second chain for each row hides the latency of max
#pragma unroll
      for (int j = 0; j < C::N / 8; ++j) {
        const float2 scale = token_scale(stage, j * 8 + column0);
        row.best[0] = max_nan(row.best[0], scaled(c[4 * j], scale.x));
        odd[0] = max_nan(odd[0], scaled(c[4 * j + 1], scale.y));
        row.best[1] = max_nan(row.best[1], scaled(c[4 * j + 2], scale.x));
        odd[1] = max_nan(odd[1], scaled(c[4 * j + 3], scale.y));
      }
      row.best[0] = max_nan(row.best[0], odd[0]);
      row.best[1] = max_nan(row.best[1], odd[1]);
    } else {
#pragma unroll
      for (int j = 0; j < C::N / 8; ++j) {
        const float2 scale = token_scale(stage, j * 8 + column0);
        const uint32_t bits = full ? ~0u : info.bits[j / 4] >> column0;
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (bits >> (j % 4 * 8 + e % 2) & 1)
            row.take(e / 2, scaled(c[4 * j + e], e % 2 ? scale.y : scale.x), token0 + j * 8 + e % 2);
      }
    }
  }

  // Winners of a full tile by plain comparison, which passes over NaN: false, with nothing taken, where there may be
  // one.
  __device__ __forceinline__ bool take_winners(const float (&c)[C::N / 2], RowState<kArgmax>& row, int32_t token0,
                                               int stage, int column0) {
    float best[2] = {row.best[0], row.best[1]}, probe = 0.f;  // v * 0 is NaN for NaN and for infinity
    int32_t column[2] = {-1, -1};
#pragma unroll
    for (int j = 0; j < C::N / 8; ++j) {
      const float2 scale = token_scale(stage, j * 8 + column0);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float value = scaled(c[4 * j + e], e % 2 ? scale.y : scale.x);
        probe = fmaf(value, 0.f, probe);
        if (value > best[e / 2]) best[e / 2] = value, column[e / 2] = j * 8 + e % 2;
      }
    }
    const bool exact = __any_sync(~0u, probe != probe || !(best[0] > -INFINITY) || !(best[1] > -INFINITY));
    if (__shfl_sync(~0u, exact, 0)) return false;  // shuffled for the compiler, as `follows` is
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row.best[r] = best[r];
      if (column[r] >= 0) row.winner[r] = token0 + column[r];
    }
    return true;
  }

  __device__ __forceinline__ float2 token_scale(int stage, int column) const {
    if (!kNormalize) return make_float2(1.f, 1.f);
    return *reinterpret_cast<const float2*>(&shared.token_scale[stage][column]);
  }
  __device__ __forceinline__ float scaled(float value, float scale) const { return kNormalize ? value * scale : value; }

  // Sum of the 16 rows of one tile that this warp holds. In double, where 24-bit terms add without rounding unless they
  // lie 2^20 apart: so the order, which holes in a query mask change, does not show.
  __device__ __forceinline__ double sum_rows(float low, float high) {
    double sum = static_cast<double>(low) + high;
#pragma unroll
    for (int step = 4; step <= 16; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }

  __device__ __forceinline__ void finish(int64_t target, bool valid) {
    const int block = C::kTiles == 1 ? group * 2 + warp / 2 : group * 4 + warp;
    const BlockInfo& owner = shared.blocks[block];
    const int64_t pair =
        args.problem.pairing == Pairing::cross ? owner.query * args.problem.documents.count + target : target;
    double sums[C::kTiles];
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) {
      rows[tile].reduce();
      float value[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int token = (C::kTiles == 1 ? warp % 2 : tile) * 16 + lane / 4 + r * 8;
        const bool counts = owner.kept >> token & 1;
        const float scale = kNormalize ? shared.row_scale[block_row<C>(block, token)] : 1.f;
        value[r] = counts ? rows[tile].best[r] * scale : 0.f;
        if (kArgmax && owner.query >= 0 && lane % 4 == 0)
          write_winner(owner, pair, token, counts && any_token ? rows[tile].winner[r] : -1);
      }
      sums[tile] = sum_rows(value[0], value[1]);
    }
    double sum = sums[0];
    if (C::kTiles == 2) {
      sum += sums[C::kTiles - 1];
    } else {
      const int barrier = 1 + group * 2 + warp / 2;
      if (lane == 0) shared.halves[group * 4 + warp] = sum;
      asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory");
      sum = shared.halves[group * 4 + warp / 2 * 2] + shared.halves[group * 4 + warp / 2 * 2 + 1];
      asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory");
      if (warp % 2) return;
    }
    if (owner.query >= 0) write_sum(owner, target, pair, sum, valid && owner.valid);
  }

  // A block's owner fills its 32 slots; the query's last block also clears what lies behind it.
  __device__ __forceinline__ void write_winner(const BlockInfo& owner, int64_t pair, int token, int32_t winner) {
    const int64_t width = args.problem.argmax_width;
    int32_t* out = args.argmax + pair * width;
    int64_t slot = owner.chunk * kBlockTokens + token;
    if (slot < width) out[slot] = winner;
    if (owner.chunk + 1 == owner.chunks)
      for (slot += kBlockTokens; slot < width; slot += kBlockTokens) out[slot] = -1;
  }

  // `sum` is in lane 0.
  __device__ __forceinline__ void write_sum(const BlockInfo& owner, int64_t target, int64_t pair, double sum,
                                            bool valid) {
    const float nan = __int_as_float(0x7fc00000);
    if (owner.chunks > 1 && !add_blocks(owner, target, sum)) return;
    if (lane == 0) args.scores[pair] = valid ? (any_token ? static_cast<float>(sum) : args.problem.empty_score) : nan;
  }

  // The last block of a query to arrive adds all of them, by a tree over block numbers: which one that is never shows.
  __device__ __forceinline__ bool add_blocks(const BlockInfo& owner, int64_t target, double& sum) {
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

  __device__ __forceinline__ void wait_stage(const Ring& ring) {
    ptx::mbarrier_wait(&shared.full[ring.stage], ring.phase);
    if (kNormalize && args.tma) ptx::mbarrier_wait(&shared.scaled[ring.stage], ring.phase);
  }

  // The same in every lane: what makes control flow around wgmma uniform for the compiler too.
  __device__ __forceinline__ int flags_of(int stage) const { return __shfl_sync(~0u, shared.stages[stage].flags, 0); }

  // The tile of `stage` has met every row: let it go, and close its document if it was the last.
  __device__ __forceinline__ void leave(int stage, int flags) {
    any_token |= (flags & StageInfo::kAnyToken) != 0;
    const int64_t target = shared.stages[stage].target;
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.empty[stage]);
    if (!(flags & StageInfo::kLast)) return;
    finish(target, !(flags & StageInfo::kInvalid));
    any_token = false;
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) rows[tile].reset();
  }

  __device__ __forceinline__ void run() {
    Ring ring;
    int query_phase = 0;
    any_token = false;
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) rows[tile].reset();
    bool primed = false;
    int flags = 0;
    while (true) {
      if (!primed) {
        wait_stage(ring);
        flags = flags_of(ring.stage);
        if (flags & StageInfo::kEnd) return;
        if (flags & StageInfo::kNewQueries) {
          ptx::mbarrier_wait(&shared.queries_full, query_phase);
          query_phase ^= 1;
        }
#pragma unroll
        for (int tile = 0; tile < C::kTiles; ++tile) issue(tile, ring.stage);
      }
      Ring next = ring;
      next.advance<C::kStages>();
      int ahead = 0;
      bool follows = false;
      // Each row tile's next product is in flight while the other tile's max is taken. `follows` is shuffled where it
      // is used: carried through the loop, the compiler takes it for divergent and serialises every product.
#pragma unroll
      for (int tile = 0; tile < C::kTiles; ++tile) {
        ptx::wgmma_wait<C::kTiles - 1>();
        ptx::wgmma_settled(products[tile]);
        take_maxima(tile, flags, ring.stage);
        if (tile == 0) {
          follows = !(__shfl_sync(~0u, flags, 0) & StageInfo::kRelease);
          const Ring look = follows ? next : ring;
          wait_stage(look);
          ahead = flags_of(look.stage);
        }
        if (follows)
          issue(tile, next.stage);
        else
          ptx::wgmma_commit();
      }
      leave(ring.stage, flags);
      if (!follows) {
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.queries_empty);
      }
      primed = follows;
      flags = ahead;
      ring = next;
    }
  }
};

// Fills the stages' and the rows' factors while the math warpgroups are busy with earlier tiles.
template <class C, class T>
__device__ __forceinline__ void scale_stages(Sm90Shared<C>& shared, const char* queries, const char* tiles,
                                             int thread) {
  constexpr int kThreads = 96;
  Ring ring;
  int query_phase = 0;
  while (true) {
    ptx::mbarrier_wait(&shared.full[ring.stage], ring.phase);
    const int flags = shared.stages[ring.stage].flags;
    if (flags & StageInfo::kNewQueries) {
      ptx::mbarrier_wait(&shared.queries_full, query_phase);
      query_phase ^= 1;
      for (int row = thread; row < C::kRows; row += kThreads)
        shared.row_scale[row] = inverse_norm_of<C, T>(queries + row / 64 * 64 * C::kAtoms * 128, 64, row % 64);
    }
    for (int row = thread; row < C::N; row += kThreads)
      shared.token_scale[ring.stage][row] = inverse_norm_of<C, T>(tiles + ring.stage * C::kTileBytes, C::N, row);
    ptx::mbarrier_arrive(&shared.scaled[ring.stage]);
    if (flags & StageInfo::kEnd) return;
    ring.advance<C::kStages>();
  }
}

template <class C, class T, bool kArgmax, bool kNormalize>
__global__ void __launch_bounds__(C::kThreads, C::kPerSm)
    sm90_forward(const __grid_constant__ Sm90Args args, const __grid_constant__ CUtensorMap query_map,
                 const __grid_constant__ CUtensorMap document_map, const __grid_constant__ CUtensorMap tail_map) {
  extern __shared__ char dynamic[];
  __shared__ Sm90Shared<C> shared;
  static_assert((C::kSharedBytes + sizeof(Sm90Shared<C>) + 1024) * C::kPerSm <= 228 * 1024, "what a block can have");
  char* queries = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(dynamic) + 1023) & ~uintptr_t{1023});
  char* tiles = queries + C::kQueryBytes;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == C::kGroups * 128 && args.tma) {
    ptx::tma_prefetch(&document_map);
    ptx::tma_prefetch(&query_map);
    ptx::tma_prefetch(&tail_map);
  }
  if (threadIdx.x == 0) {
    const int loaders = args.tma ? 1 : 4;
    for (int i = 0; i < C::kStages; ++i) {
      ptx::mbarrier_init(&shared.full[i], loaders);
      ptx::mbarrier_init(&shared.empty[i], C::kGroups * 4);
      ptx::mbarrier_init(&shared.scaled[i], 96);
    }
    ptx::mbarrier_init(&shared.queries_full, loaders);
    ptx::mbarrier_init(&shared.queries_empty, C::kGroups * 4);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (group == C::kGroups) {
    if (C::kGroups == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (warp == 0 || !args.tma) {
      Sm90Producer<C, T, kNormalize>{args, query_map, document_map, tail_map, shared, queries, tiles, warp, lane}.run();
    } else if (kNormalize) {
      scale_stages<C, T>(shared, queries, tiles, threadIdx.x % 128 - 32);
    }
  } else {
    if (C::kGroups == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    Sm90Consumer<C, T, kArgmax, kNormalize>{
        args, shared, ptx::shared_address(queries), ptx::shared_address(tiles), group, warp, lane}
        .run();
  }
}

}  // namespace cuda
}  // namespace maxsim
