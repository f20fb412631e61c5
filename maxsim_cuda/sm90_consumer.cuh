// The math warpgroups of the Hopper forward: products of resident query rows and tiles as these arrive, and row maxima
// in registers.
#pragma once

#include "ptx/mma.cuh"
#include "ptx/wgmma.cuh"
#include "row_max.cuh"
#include "sm90_shared.cuh"
#include "sm90_turned.cuh"
#include "split.cuh"

namespace maxsim {
namespace cuda {

// What the documents' values were widened less of.
__device__ __forceinline__ float centre_of(const Problem& problem) {
  return problem.documents.dtype == DType::u8 ? kUnsignedCentre : 0.f;
}

template <class C, class T, bool kArgmax, Columns kColumns>
struct Sm90Consumer {
  const Sm90Args& args;
  Sm90Shared<C>& shared;
  uint32_t queries, tiles;  // wgmma operands: this warpgroup's rows of the first buffer, and the first stage
  const char* query_rows;   // and the former's address
  int group, warp, lane;
  uint32_t held_base;  // shared address of `shared`, which the compiler cannot put together anew at every use
  std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float> products[C::kTiles][C::N / 2];
  static constexpr bool kHolds = kStored<T> || (C::kHolds && !kArgmax);  // winners would not fit beside split ones
  uint32_t held[C::kTiles][kHolds ? C::kRowBytes / 32 : 1][4];           // query rows
  RowState<kArgmax> rows[C::kTiles];
  // Of the one document that ended in a tile, while another has begun in `rows`.
  std::conditional_t<kJoinsDocuments<C>, RowState<kArgmax>, Nothing> closing;
  float row_sums[C::kTiles][2];  // of the features of a thread's rows, where tokens have minima
  std::conditional_t<C::kTurned, TurnedRows<C, T, kArgmax, kColumns>, Nothing> turned;
  Ring<C::kQueryBuffers> buffer;
  Ring<Sm90Shared<C>::kFinished> finished{0, 1};
  bool any_token;  // the open document has kept one so far
  bool idle;       // this warp's rows belong to no query: what their memory holds is nobody's

  // Products of one width or another cannot be in flight where the two meet: the compiler would serialise them. Nor can
  // those of a warp, which are there at once.
  static constexpr bool kIssuesAhead = kNarrowColumns<C> == 0 && !C::kTurned;

  // Whether the first lane of a warp is the only one that reads anything of a stage, and so lets go of it for all.
  static constexpr bool kOneArrives = kOnlyDense<C> && kColumns == Columns::plain;

  // A document's or pair's number while maxima are taken, when registers are few.
  using Target = std::conditional_t<kOnlyPacked<C>, int32_t, int64_t>;

  // Whether threads are told which of their own columns count.
  static constexpr bool kOwnColumns = kOnlyMarked<C> && !kArgmax;

  // The first products of a row, which are all that a narrow tile has.
  template <int kColumnCount>
  __device__ __forceinline__ auto& first_products(int tile) {
    return reinterpret_cast<float (&)[kColumnCount / 2]>(products[tile]);
  }
  __device__ __forceinline__ static bool is_narrow(int flags) {
    return kNarrowColumns<C> > 0 && __shfl_sync(~0u, flags, 0) & StageInfo::kNarrow;
  }

  __device__ __forceinline__ void issue(int tile, int stage, int flags) {
    if constexpr (!C::kTurned)
      issue_rows(tile, stage, flags);
    else if (turned.has(stage, warp))
      turned.multiply(stage_rows(stage), warp, lane);
  }
  __device__ __forceinline__ void issue_rows(int tile, int stage, int flags) {
    const uint32_t a = queries + buffer.at * (C::kQueryBytes / 16) + tile * (64 * C::kRowBytes / 16);
    const uint32_t b = tiles + stage * (C::kTileBytes / 16);
    ptx::wgmma_fence();
    if constexpr (C::kSplit) {
      multiply_halves(args.allow_tf32, [&](auto query_low, auto low, bool adds) {
        multiply_parts<decltype(query_low)::value, decltype(low)::value>(tile, a, b, adds);
      });
    } else if (is_narrow(flags)) {
      if constexpr (kNarrowColumns<C> > 0) {
#pragma unroll
        for (int k = 0; k < C::kRowBytes / 32; ++k) multiply<kNarrowColumns<C>>(tile, a, b, k / 4, k % 4, k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        ptx::wgmma_settled(first_products<kNarrowColumns<C>>(tile));
        return;
      }
    } else {
#pragma unroll
      for (int k = 0; k < C::kRowBytes / 32; ++k) {
        if constexpr (kStored<T>)
          ptx::WgmmaHeld<T, C::N>::run(products[tile], held[tile][k], ptx::wgmma_descriptor<C::kAtomBytes>(b, k * 32),
                                       k > 0);
        else
          multiply(tile, a, b, k / 4, k % 4, k > 0);
      }
    }
    ptx::wgmma_commit();
    if constexpr (!kIssuesAhead) {
      ptx::wgmma_wait<0>();
      ptx::wgmma_settled(products[tile]);
    }
  }

  // Behind the query buffers; of turned products there is one warpgroup.
  __device__ __forceinline__ const char* stage_rows(int stage) const {
    return query_rows + C::kQueryBuffers * C::kQueryBytes + stage * C::kTileBytes;
  }

  // Eight-bit rows and those of one split query fit in registers beside the products, which then read a third less of
  // shared memory.
  __device__ __forceinline__ void hold_queries() {
    int place = lane;
    asm volatile("" : "+r"(place));  // as above: addresses of rare loads would be kept
    const int row = warp * 16 + place % 16;
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile)
#pragma unroll
      for (int k = 0; k < C::kRowBytes / 32; ++k)
        ptx::ldmatrix(held[tile][k], query_rows + buffer.at * C::kQueryBytes + tile * 64 * C::kRowBytes +
                                         swizzled<C::kAtomBytes>(64, row, k * 2 + place / 16));
  }

  // Four lanes share a row.
  __device__ __forceinline__ void sum_rows() {
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const char* from = query_rows + buffer.at * C::kQueryBytes + tile * 64 * C::kRowBytes;
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < C::kAtoms * 2; ++i) {
          const uint4 chunk = *reinterpret_cast<const uint4*>(
              from + swizzled<C::kAtomBytes>(64, warp * 16 + r * 8 + lane / 4, i * 4 + lane % 4));
          const T* value = reinterpret_cast<const T*>(&chunk);
#pragma unroll
          for (int k = 0; k < 8; ++k) sum += static_cast<float>(value[k]);
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        row_sums[tile][r] = sum + __shfl_xor_sync(~0u, sum, 2);
      }
  }

  template <int kColumnCount = C::N>
  __device__ __forceinline__ void multiply(int tile, uint32_t a, uint32_t b, int atom, int k, bool adds) {
    ptx::Wgmma<T, kColumnCount>::run(first_products<kColumnCount>(tile),
                                     ptx::wgmma_descriptor(a, atom * 64 * 128 + k * 32),
                                     ptx::wgmma_descriptor<128, C::kGroupStep>(b, atom * C::kAtomStep + k * 32), adds);
  }
  // The high or the low parts of query rows by those of a tile: atoms of both alternate.
  template <int kQueryLow, int kLow>
  __device__ __forceinline__ void multiply_parts(int tile, uint32_t a, uint32_t b, bool adds) {
#pragma unroll
    for (int k = 0; k < C::kAtoms * 2; ++k) {
      const int query_atom = k / 4 * 2 + kQueryLow, atom = k / 4 * 2 + kLow;
      const uint64_t document = ptx::wgmma_descriptor(b, atom * C::kAtomStep + k % 4 * 32);
      if constexpr (kHolds)
        ptx::WgmmaHeld<T, C::N>::run(products[tile], held[tile][query_atom * 4 + k % 4], document, k > 0 || adds);
      else
        ptx::Wgmma<T, C::N>::run(products[tile], ptx::wgmma_descriptor(a, query_atom * 64 * 128 + k % 4 * 32), document,
                                 k > 0 || adds);
    }
  }

  __device__ __forceinline__ static bool is_full(int flags) {
    return kOnlyDense<C> || __shfl_sync(~0u, flags, 0) & StageInfo::kFull;
  }
  __device__ __forceinline__ int32_t first_lanes(const int32_t& value) const {
    return __shfl_sync(~0u, !kFirstReads<C> || lane == 0 ? value : 0, 0);
  }
  __device__ __forceinline__ TileTokens tokens_of(int stage) const {
    const StageInfo& info = shared.stages[stage];
    if (!kFirstReads<C>) return {info.first_token, info.last_eight};
    if (!kArgmax) return {};
    return {first_lanes(info.first_token), kOnlyDense<C> ? C::N - 8 : first_lanes(info.last_eight)};
  }

  __device__ __forceinline__ void take_maxima(int tile, int flags, int stage, const TileTokens& tokens, bool full) {
    const StageInfo& info = shared.stages[stage];
    if constexpr (C::kTurned) {
      if (turned.has(stage, warp))
        turned.take(warp, lane, tokens, full, info.bits, shared.token_scale[stage], shared.token_minimum[stage]);
    } else {
      take_row_maxima(tile, flags, stage, tokens, full);
    }
  }
  __device__ __forceinline__ void take_row_maxima(int tile, int flags, int stage, const TileTokens& tokens, bool full) {
    const StageInfo& info = shared.stages[stage];
    int column0 = lane % 4 * 2;
    // What follows from a column's number is rarely asked for: it must not occupy registers that factors wait in.
    if constexpr (kStored<T>) asm volatile("" : "+r"(column0));
    if constexpr (kColumns == Columns::affine)
      take_products(products[tile], rows[tile], tokens, column0, full, info.bits,
                    ColumnAffine{shared.token_scale[stage], shared.token_minimum[stage], centre_of(args.problem),
                                 row_sums[tile]});
    else if (is_narrow(flags)) {
      if constexpr (kNarrowColumns<C> > 0)
        take_products(first_products<kNarrowColumns<C>>(tile), rows[tile], tokens, column0, true, info.bits,
                      ColumnScale<false>{});
    } else if constexpr (kOwnColumns)
      take_own_products<false>(products[tile], rows[tile], tokens, full, shared.own[stage][lane % 4]);
    else
      take_products(products[tile], rows[tile], tokens, column0, full, info.bits,
                    ColumnScale<kColumns != Columns::plain>{shared.token_scale[stage]});
  }

  // Maxima of a tile that documents share, each of which but for the last one ends in it.
  __device__ __forceinline__ void take_joined(int stage, int flags, bool skips) {
    if (!(__shfl_sync(~0u, flags, 0) & StageInfo::kAnyToken)) return;
    const StageInfo& info = shared.stages[stage];
    const auto bound = [&](int k) { return *(reinterpret_cast<const uint32_t*>(&shared.bounds[stage][k]) + lane % 4); };
    if (__shfl_sync(~0u, flags, 0) & StageInfo::kEights) {
      const uint32_t met = bound(1), all = bound(2);
      if (!skips) take_own_products<true, true>(products[0], rows[0], TileTokens{}, false, met);
      closing = rows[0];
      rows[0].reset();
      if (!skips) take_own_products<true, true>(products[0], rows[0], TileTokens{}, false, all & ~met);
      return;
    }
    const int ends = first_lanes(info.last_eight);
    uint32_t met = bound(0);
    for (int k = 0;; ++k) {
      const uint32_t until = bound(k + 1);
      if (!skips) take_own_products<true>(products[0], rows[0], TileTokens{}, false, until & ~met);
      if (k == ends) return;
      met = until;
      any_token = true;
      hand_over(static_cast<Target>(info.target) + k, k + 1 == ends ? flags & StageInfo::kRelease : 0);
    }
  }

  // Hands the open document's maxima to the finisher, each block's 32 tokens together.
  __device__ __forceinline__ void hand_over(int64_t target, int flags) {
    ptx::mbarrier_wait(&shared.finished_empty[finished.at], finished.phase);
    if constexpr (C::kTurned)
      turned.hand_over(shared.maxima[finished.at] + warp * 32, shared.winners[finished.at] + warp * 32, lane);
    else
      hand_rows_over();
    close(target, flags | (any_token ? StageInfo::kAnyToken : 0));
    any_token = false;
  }
  __device__ __forceinline__ void hand_rows_over() {
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) {
      rows[tile].reduce();
      const int first = C::kTiles == 1 ? group * 64 + warp * 16 : (group * 4 + warp) * kBlockTokens + tile * 16;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (lane % 4 == 0) {
          shared.maxima[finished.at][first + r * 8 + lane / 4] = rows[tile].best[r];
          if (kArgmax) shared.winners[finished.at][first + r * 8 + lane / 4] = rows[tile].winner[r];
        }
      rows[tile].reset();
    }
  }
  __device__ __forceinline__ void close(int64_t target, int flags) {
    if (group == 0 && warp == 0 && lane == 0) shared.finished[finished.at] = {target, flags, buffer.at};
    ptx::mbarrier_arrive(&shared.finished_full[finished.at]);
    finished.advance();
  }

  // Where tiles have two widths there is no register for it.
  __device__ __forceinline__ uint32_t base() const {
    return kNarrowColumns<C> > 0 ? ptx::shared_address(&shared) : held_base;
  }

  __device__ __forceinline__ void wait_stage(const Ring<C::kStages>& ring) {
    if (!C::kLoose) ptx::mbarrier_wait_at(base() + offsetof(Sm90Shared<C>, full) + ring.at * 8, ring.phase);
    if (C::kLoose || C::kSplit || ((C::kSpreads || C::kWidens || kColumns != Columns::plain) && args.tma))
      ptx::mbarrier_wait_at(base() + offsetof(Sm90Shared<C>, scaled) + ring.at * 8, ring.phase);
  }

  // The same in every lane: what makes control flow around wgmma uniform for the compiler too.
  __device__ __forceinline__ int flags_of(int stage) const { return first_lanes(shared.stages[stage].flags); }

  // Lets the tile of `stage` go, which has met every row, and tells the first lane whose it was.
  __device__ __forceinline__ Target leave(int stage) {
    Target target = kFirstReads<C> ? 0 : static_cast<Target>(shared.stages[stage].target);
    __syncwarp();
    if (kFirstReads<C> && lane == 0) target = static_cast<Target>(shared.stages[stage].target);
    if (!kOneArrives || lane == 0) ptx::mbarrier_arrive_at(base() + offsetof(Sm90Shared<C>, empty) + stage * 8);
    return target;
  }

  __device__ __forceinline__ void take_queries() {
    ptx::mbarrier_wait(&shared.queries_full[buffer.at], buffer.phase);
    const int block = C::kTurned ? 0 : C::kTiles == 1 ? group * 2 + warp / 2 : group * 4 + warp;
    idle = shared.blocks[buffer.at][block].kept == 0;
    if constexpr (kHolds) hold_queries();
    if constexpr (C::kTurned)
      turned.take_queries(ptx::shared_address(query_rows) + buffer.at * C::kQueryBytes, shared.row_scale[buffer.at],
                          warp, lane);
    else if constexpr (kColumns == Columns::affine)
      sum_rows();
  }
  __device__ __forceinline__ void finish_tile(int64_t target, int flags) {
    if constexpr (kJoinsDocuments<C>) {
      if (flags & StageInfo::kEights) {
        const RowState<kArgmax> next = rows[0];
        rows[0] = closing;
        any_token = true;
        hand_over(target, flags & StageInfo::kRelease);
        rows[0] = next;
      }
    } else {
      any_token |= (flags & StageInfo::kAnyToken) != 0;
    }
    if (flags & StageInfo::kLast) hand_over(target, flags & (StageInfo::kInvalid | StageInfo::kRelease));
  }

  __device__ __forceinline__ void run() {
    Ring<C::kStages> ring;
    any_token = idle = false;
#pragma unroll
    for (int tile = 0; tile < C::kTiles; ++tile) rows[tile].reset();
    if constexpr (C::kTurned) turned.reset();
    // With two row tiles a product is in flight on every path, and the loop is one; with one, nothing may join what
    // follows a product but more of the same.
    bool primed = false;
    int flags = 0;
    while (true) {
      if (!primed) {
        wait_stage(ring);
        flags = flags_of(ring.at);
        if (flags & StageInfo::kEnd) break;
        if (flags & StageInfo::kNewQueries) take_queries();
#pragma unroll
        for (int tile = 0; tile < C::kTiles; ++tile) issue(tile, ring.at, flags);
      }
      bool follows = false;
      int ahead = 0;
      Target target = 0;
      while (true) {
        Ring<C::kStages> next = ring;
        next.advance();
        // Each row tile's next product is in flight while the other tile's max is taken. `follows` is shuffled where it
        // is used: carried through the loop, the compiler takes it for divergent and serialises every product.
#pragma unroll
        for (int tile = 0; tile < C::kTiles; ++tile) {
          const bool skips = __shfl_sync(~0u, idle, 0), full = is_full(flags);
          if constexpr (kIssuesAhead) {
            ptx::wgmma_wait<C::kTiles - 1>();
            ptx::wgmma_settled(products[tile]);
          }
          // A tile's place is free as soon as the products are there, or where maxima need more of it, after those; in
          // any case before the wait for the next one.
          const bool met = tile == C::kTiles - 1;
          const bool early = kColumns == Columns::plain && full;
          const TileTokens tokens = tokens_of(ring.at);
          if (met && early) target = leave(ring.at);
          if (kJoinsDocuments<C> && !full) {
            if constexpr (kJoinsDocuments<C>) take_joined(ring.at, flags, skips);
          } else if (!skips) {
            take_maxima(tile, flags, ring.at, tokens, full);
          }
          if (met && !early) target = leave(ring.at);
          if (tile == 0) {
            follows = !(__shfl_sync(~0u, flags, 0) & StageInfo::kRelease);
            if (kIssuesAhead && follows) {
              wait_stage(next);
              if (C::kTiles > 1) ahead = flags_of(next.at);
            }
          }
          if (kIssuesAhead && C::kTiles > 1) {
            if (follows)
              issue(tile, next.at, ahead);
            else
              ptx::wgmma_commit();
          }
        }
        ring = next;
        if (!kIssuesAhead || C::kTiles > 1 || !follows) break;
        // What comes in between does not wait for this product, as long as no path joins that has none in flight.
        issue(C::kTiles - 1, ring.at, ahead);
        ahead = flags_of(ring.at);
        finish_tile(target, flags);
        flags = ahead;
      }
      finish_tile(target, flags);
      if (!follows) {
        ptx::mbarrier_arrive(&shared.queries_empty[buffer.at]);
        buffer.advance();
      }
      primed = kIssuesAhead && C::kTiles > 1 && follows;
      flags = ahead;
    }
    ptx::mbarrier_wait(&shared.finished_empty[finished.at], finished.phase);
    close(0, StageInfo::kEnd);
  }
};

}  // namespace cuda
}  // namespace maxsim
