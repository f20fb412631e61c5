// Producer of the Hopper forward for padded documents with lengths or a mask: which tokens count has to be looked up,
// and nothing else. A copy brings whole tiles of 256-byte rows, as sm90_packed.cuh says.
#pragma once

#include "sm90_feed.cuh"

namespace maxsim {
namespace cuda {

// A page is the marks of so many tokens, 32 for each lane.
constexpr int kPageTokens = 1024;

// The documents that a thread block meets, as walk_padded says; their numbers are looked up. Two warps walk side by
// side.
template <class C, class Call>
__device__ __forceinline__ void walk_marked(const Sm90Args& args, const Call& call) {
  if (args.follows_table) ptx::wait_for_prior_kernel();
  uint32_t units = args.dense_units;
  if (args.problem.pairing == Pairing::cross)
    units = static_cast<uint32_t>(quotient(block_count(args) + C::kBlocks - 1, C::kBlocks) * args.count);
  walk_padded<C>(args, units, units / gridDim.x, blockIdx.x, gridDim.x, call);
}

// A warp of its own looks marks up, ahead of the producer: one after the other they would take longer than products.
template <class C>
struct Sm90Marker {
  const Sm90Args& args;
  Sm90Shared<C>& shared;
  int lane;

  __device__ __forceinline__ void run() const {
    Ring<Sm90Shared<C>::kPages> ring{0, 1};
    walk_marked<C>(args, [&](bool cross, uint32_t, int, uint32_t number, uint32_t unit, bool, bool) {
      const Span document = span_of(args.problem.documents, args.first + (cross ? number : unit));
      for (int page = 0; page < document.length; page += kPageTokens) {
        const uint32_t word = marks(document, page);
        ptx::mbarrier_wait(&shared.pages_empty[ring.at], ring.phase);
        shared.pages[ring.at][lane] = word;
        ptx::mbarrier_arrive(&shared.pages_full[ring.at]);
        ring.advance();
      }
    });
  }

  __device__ __forceinline__ uint32_t marks(const Span& document, int page) const {
    const Segments& side = args.problem.documents;
    const int left = document.length - page, own = left - lane * 32;
    if (!side.mask) return own >= 32 ? ~0u : own > 0 ? (1u << own) - 1 : 0;
    constexpr int kTogether = 16;  // bytes that are on their way before the first is looked at
    const auto* from = side.mask + document.mask_begin + (page + lane) * side.mask_token_stride;
    const int64_t step = 32 * side.mask_token_stride;
    uint32_t word = 0;
#pragma unroll 1
    for (int first = 0; first < 32 && first * 32 < left; first += kTogether) {
      int kept[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        kept[i] = ptx::load_byte_if((first + i) * 32 + lane < left, from);
        from += step;
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const uint32_t bits = __ballot_sync(~0u, kept[i]);
        if (lane == first + i) word = bits;
      }
    }
    return word;
  }
};

// Another one makes tiles of them.
template <class C>
struct Sm90TileMarker {
  static constexpr int kNarrow = kNarrowColumns<C>, kWords = (C::N + 31) / 32;
  static_assert(C::N <= 160, "five words of kept columns");

  const Sm90Args& args;
  Sm90Shared<C>& shared;
  int lane;
  Ring<Sm90Shared<C>::kPages> pages;
  Ring<Sm90Shared<C>::kMarkedTiles> tiles{0, 1};

  __device__ __forceinline__ void run() {
    walk_marked<C>(args, [&](bool cross, uint32_t group, int part, uint32_t document, uint32_t unit, bool new_queries,
                             bool release) {
      describe(group, part, args.first + (cross ? document : unit), new_queries, release);
    });
    write({0, 0, StageInfo::kEnd, 0, 0, {}}, 0);
  }

 private:
  __device__ __forceinline__ uint32_t next_page() {
    ptx::mbarrier_wait(&shared.pages_full[pages.at], pages.phase);
    const uint32_t word = shared.pages[pages.at][lane];
    ptx::mbarrier_arrive(&shared.pages_empty[pages.at]);
    pages.advance();
    return word;
  }

  __device__ __forceinline__ void describe(int64_t group, int part, int64_t target, bool new_queries, bool release) {
    const Segments& side = args.problem.documents;
    const Span document = span_of(side, target);
    const int latest = static_cast<int>(side.extent) - C::N;  // where a tile may begin
    const int ends = StageInfo::kLast | (release ? StageInfo::kRelease : 0);
    const int always = document.valid ? 0 : StageInfo::kInvalid;
    int page = -kPageTokens;
    uint32_t word = 0, left = 0;  // a page's marks, and those that no tile has met
    const auto find = [&] {
      while (!__any_sync(~0u, left)) {
        page += kPageTokens;
        if (page >= document.length) return false;
        left = word = next_page();
      }
      return true;
    };
    bool more = find();
    const bool any = more;
    do {
      int begin = 0, flags = always | (new_queries ? StageInfo::kNewQueries : 0);
      uint32_t kept = 0;  // of the tile's columns, 32 for each lane
      if (any) {
        const unsigned lanes = __ballot_sync(~0u, left != 0);
        const int low = __ffs(lanes) - 1, high = 31 - __clz(lanes);
        const int first = page + low * 32 + __ffs(__shfl_sync(~0u, left, low)) - 1;
        const int last = page + high * 32 + 32 - __clz(__shfl_sync(~0u, left, high));
        const int end = min(first + C::N, last);
        // The last tile reaches back over tokens that were met, as Tile says; that of a shorter document over its end.
        const bool narrow = kNarrow && end - first <= kNarrow && end - kNarrow >= page && end - kNarrow <= latest;
        begin = min(latest, narrow ? end - kNarrow : max(page, min(first, end - C::N)));
        kept = kept_from(word, begin - page);
        const int columns = (narrow ? kNarrow : C::N) - lane * 32;
        const bool whole = __all_sync(~0u, columns <= 0 || !(~kept & (columns >= 32 ? ~0u : (1u << columns) - 1)));
        flags |= StageInfo::kAnyToken | (whole ? StageInfo::kFull | (narrow ? StageInfo::kNarrow : 0) : 0);
        const int met = end - page - lane * 32;
        left = met >= 32 ? 0 : met > 0 ? left & ~0u << met : left;
        more = find();
      }
      if (!more) flags |= ends;
      write({target, group, flags, begin, part, {}}, kept);
      new_queries = false;
    } while (more);
  }

  __device__ __forceinline__ void write(const MarkedTile& tile, uint32_t kept) {
    ptx::mbarrier_wait(&shared.marked_empty[tiles.at], tiles.phase);
    MarkedTile& out = shared.marked[tiles.at];
    if (lane == 0) out.target = tile.target, out.group = tile.group, out.flags = tile.flags;
    if (lane == 0) out.begin = tile.begin, out.part = tile.part;
    if (lane < kWords) out.kept[lane] = kept;
    const uint32_t own = own_columns(kept);
    if (lane < 4) out.own[lane] = own;
    ptx::mbarrier_arrive(&shared.marked_full[tiles.at]);
    tiles.advance();
  }

  // Of columns 8 i + 2 q and the next one, bits 2 i and 2 i + 1 of the word that lane q gets.
  __device__ __forceinline__ uint32_t own_columns(uint32_t kept) const {
    uint32_t out = 0;
    const int column = lane / 2 * 8 + lane % 2;
    const uint32_t word = __shfl_sync(~0u, kept, column / 32);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const uint32_t bits = __ballot_sync(~0u, column < C::N && (word >> (column % 32 + 2 * q) & 1));
      if (lane == q) out = bits;
    }
    return out;
  }

  // A page's marks from one of its tokens on: before the page and behind it there are none.
  __device__ __forceinline__ uint32_t kept_from(uint32_t word, int token) const {
    const int index = (token >> 5) + lane;
    const uint32_t low = __shfl_sync(~0u, word, index & 31), high = __shfl_sync(~0u, word, index + 1 & 31);
    const auto inside = [](int i) { return 0 <= i && i < 32; };
    return __funnelshift_r(inside(index) ? low : 0, inside(index + 1) ? high : 0, token & 31);
  }
};

template <class C, class T, Columns kColumns>
struct Sm90MarkedProducer : Sm90Feed<C, T, kColumns> {
  using Sm90Feed<C, T, kColumns>::Sm90Feed;
  static_assert(C::kTogether, "one copy a tile");

  __device__ __forceinline__ void run() {
    const bool cross = this->args.problem.pairing == Pairing::cross;
    Ring<Sm90Shared<C>::kMarkedTiles> tiles;
    while (true) {
      ptx::mbarrier_wait(&this->shared.marked_full[tiles.at], tiles.phase);
      const MarkedTile& tile = this->shared.marked[tiles.at];
      const int flags = tile.flags;
      if (flags & StageInfo::kEnd) break;
      const int64_t target = tile.target, group = tile.group;
      const int part = tile.part, begin = tile.begin;
      const bool any = flags & StageInfo::kAnyToken;
      this->acquire();
      if (!(flags & StageInfo::kFull) && this->lane == 0) {  // who also says that they are written
        for (int word = 0; word < (C::N + 31) / 32; ++word)
          this->shared.stages[this->ring.at].bits[word] = tile.kept[word];
        for (int q = 0; q < 4; ++q) this->shared.own[this->ring.at][q] = tile.own[q];
      }
      ptx::mbarrier_arrive(&this->shared.marked_empty[tiles.at]);
      this->publish(flags, begin, C::N - 8, target, any ? C::kTileBytes : 0);
      if (any && this->lane == 0) this->load_whole(begin, static_cast<int>(target));
      __syncwarp();
      this->ring.advance();
      tiles.advance();
      // Behind the tile that takes longer to come.
      if (flags & StageInfo::kNewQueries) this->look_up_queries(cross, group, part);
    }
    this->end();
  }
};

}  // namespace cuda
}  // namespace maxsim
