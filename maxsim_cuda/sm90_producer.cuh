// Producer of the Hopper forward for every layout: which tiles a block meets, in which order, and how they get into
// shared memory.
#pragma once

#include "sm90_feed.cuh"
#include "sm90_unmapped.cuh"
#include "sm90_widen.cuh"

namespace maxsim {
namespace cuda {

// Walks over the kept tokens of a document, by a whole warp: each lane holds the mask of 32 tokens of a page.
struct KeptTokens {
  const Segments& side;
  const Span& document;
  int lane;
  int page = 0, next = 0;
  uint32_t word = 0;

  // Whether there is one more.
  __device__ __forceinline__ bool find() {
    while (!__any_sync(~0u, word)) {
      if (next >= document.length) return false;
      page = next;
      next += 1024;
      load(min(32, (document.length - page + 31) / 32));
    }
    return true;
  }

  // The next one, of which there is one.
  __device__ __forceinline__ int first() const {
    const int from = __ffs(__ballot_sync(~0u, word != 0)) - 1;
    return page + from * 32 + __ffs(__shfl_sync(~0u, word, from)) - 1;
  }

  // How many tokens there are from `first` on up to the last kept one that this page knows of.
  __device__ __forceinline__ int extent(int first) const {
    const int last = 31 - __clz(__ballot_sync(~0u, word != 0));
    return page + last * 32 + 32 - __clz(__shfl_sync(~0u, word, last)) - first;
  }

  // Whether a token of this page counts, which each lane may ask of another one.
  __device__ __forceinline__ bool keeps(int token) const {
    return __shfl_sync(~0u, word, (token - page) / 32) >> (token & 31) & 1;
  }

  // Forgets all before `end`.
  __device__ __forceinline__ void pass(int end) {
    const int below = end - page - lane * 32;
    word = below >= 32 ? 0 : below > 0 ? word & ~0u << below : word;
  }

 private:
  __device__ __forceinline__ void load(int words) {
    constexpr int kTogether = 16;  // bytes that are on their way before the first is looked at
#pragma unroll 1
    for (int first = 0; first < words; first += kTogether) {
      int kept[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int token = page + (first + i) * 32 + lane;
        kept[i] = mask_byte(side, document, token, token < document.length);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const uint32_t bits = __ballot_sync(~0u, kept[i]);
        if (lane == first + i) word = bits;
      }
    }
  }
};

// The producer warp drives the copy engine alone; without tensor maps the loader warps run this too.
template <class C, class T, Columns kColumns>
struct Sm90Producer : Sm90Feed<C, T, kColumns> {
  using Sm90Feed<C, T, kColumns>::Sm90Feed;
  // As many pairs of chunks on their way as there are registers for, of which factors of columns want some.
  static constexpr int kRegisters = C::kMathRegisters ? C::kOtherRegisters : 65536 / (C::kThreads * C::kPerSm);
  static constexpr int kBatch = kRegisters > 100   ? (has_factors(kColumns) ? 3 : 4)
                                : kRegisters >= 80 ? 3
                                : kRegisters > 60  ? 2
                                                   : 1;
  using Rows = UnmappedRows<kLoaderThreads, kBatch>;

  __device__ __forceinline__ bool copies() const { return kOnlyCopies<C> || this->args.tma; }
  __device__ __forceinline__ int loader() const {
    return this->lane + (this->warp == kProducerWarp ? 0 : (this->warp - kFinisherWarp) * 32);
  }

  __device__ __forceinline__ void run() {
    if (this->args.follows_table) ptx::wait_for_prior_kernel();
    UnitWalk<C::kBlocks, C::N> walk(this->args, this->shared.ahead);
    const auto sync = [&] { copies() ? __syncwarp() : sync_loaders(); };
    int64_t resident = -1;
    Unit unit;
    while (walk.next(unit, sync)) {
      if (const Unit* next = this->args.masked ? walk.peek() : nullptr) prefetch_mask(next->document);
      for (int part = 0; part < unit.parts; ++part) {
        const int64_t key = unit.group << 32 | part;
        stream(walk.cross(), unit, part, key != resident);
        resident = key;
      }
    }
    this->end();
  }

  __device__ __forceinline__ void prefetch_mask(const Span& document) {
    const Segments& side = this->args.problem.documents;
    const int64_t offset = int64_t{this->lane} * 128;
    if (offset < document.length * side.mask_token_stride)
      ptx::prefetch_to_l2(side.mask + document.mask_begin + offset);
  }

  __device__ __forceinline__ void load_queries(bool cross, int64_t group, int part) {
    const Segments& side = this->args.problem.queries;
    const BlockInfo info = describe_block<C::kBlocks>(this->args, cross, group, part, this->lane);
    this->acquire_queries();
    if (copies())
      this->copy_queries(info, side.packed());
    else
      copy_queries_by_hand(info);
    this->buffer.advance();
  }

  // Where UnmappedRows puts chunks.
  struct DocumentPlace {
    uint32_t address;
    __device__ __forceinline__ uint32_t operator()(int row, int chunk) const {
      return address + swizzled<C::kAtomBytes>(C::N, row, chunk);
    }
  };

  __device__ __forceinline__ void copy_queries_by_hand(const BlockInfo& info) {
    const Segments& side = this->args.problem.queries;
    const int buffer = this->buffer.at, chunks = this->atoms(side) * (C::kQueryAtomBytes / 16);
    char* to = this->query_buffer();
    if (this->warp == kProducerWarp && this->lane < C::kBlocks) this->shared.blocks[buffer][this->lane] = info;
    if (!splitters_load<C>(side)) copy_query_rows<C, kLoaderThreads, kBatch>(this->args, info, to, chunks, loader());
    ptx::fence_async_proxy();
    if constexpr (kColumns == Columns::norms) {
      sync_loaders();
      for (int row = loader(); row < C::kRows; row += kLoaderThreads)
        this->shared.row_scale[buffer][row] = inverse_norm_of<C, T>(to + row / 64 * 64 * C::kRowBytes, 64, row % 64);
    }
    if constexpr (kStored<T> || C::kSplit) {
      if (this->warp == kProducerWarp) this->fetch_row_factors(info);
    }
    ptx::mbarrier_arrive(&this->shared.queries_full[buffer]);
  }

  __device__ __forceinline__ void stream(bool cross, const Unit& unit, int part, bool new_queries) {
    const Segments& side = this->args.problem.documents;
    const Piece piece = piece_of<C::N>(this->args, unit.document.length);
    int flags = (new_queries ? StageInfo::kNewQueries : 0) | (unit.document.valid ? 0 : StageInfo::kInvalid);
    KeptTokens kept{side, unit.document, this->lane};
    bool more = this->args.masked && kept.find();
    for (int from = piece.from;; from += C::N) {
      const bool first_tile = flags & StageInfo::kNewQueries;
      this->acquire();
      if (this->args.masked) {
        // A whole tile is one copy, a part of one many: so it reaches back where there are no more tokens, and over the
        // end of a document that has fewer.
        const int first = more ? kept.first() : 0, end = more ? first + min(C::N, kept.extent(first)) : 0;
        const int begin = max(0, min(first, end - C::N));
        flags |= keep_marked(kept, begin, first, end);
        kept.pass(end);
        more = more && kept.find();
        if (!more) flags |= StageInfo::kLast | (unit.release ? StageInfo::kRelease : 0);
        copy_rows(unit, flags, begin, end ? C::N : 0, min(C::N, unit.document.length - begin));
      } else {
        const Tile<C::N> tile(from, piece.to, side.mask);
        more = !tile.last;
        if (!more) flags |= StageInfo::kLast | (unit.release ? StageInfo::kRelease : 0);
        if (copies())
          copy_rows(unit, flags | this->keep_first(tile.rows), tile.first, tile.rows, tile.rows);
        else
          copy_by_hand(unit, flags, tile.rows, tile.first);
      }
      this->ring.advance();
      if (first_tile) load_queries(cross, unit.group, part);  // behind the tile that takes longer to come
      if (!more) return;
      flags &= StageInfo::kInvalid;
    }
  }

  // Rows that follow one another, of which the first `tokens` are this document's.
  __device__ __forceinline__ void copy_rows(const Unit& unit, int flags, int first, int rows, int tokens) {
    const Segments& side = this->args.problem.documents;
    const int row = side.packed() ? static_cast<int>(unit.document.first_row) : 0;
    this->copy_tile(flags, first, rows, tokens, unit.target, row + first, unit.inner, unit.outer);
  }

  // Writes which columns of a tile from `begin` on are kept tokens from `first` up to `end`; says as `keep_columns`
  // does.
  __device__ __forceinline__ int keep_marked(const KeptTokens& kept, int begin, int first, int end) {
    return keep([&](int column) {
      const int token = begin + column;
      return kept.keeps(token) && first <= token && token < end;
    });
  }

  // Writes the stage's kept columns; says whether there is one, and whether there are all.
  __device__ __forceinline__ int keep_columns(const Span& document, int first, int rows) {
    const Segments& side = this->args.problem.documents;
    if (!side.mask) return keep([&](int column) { return column < rows; });
    return keep([&](int column) { return mask_byte(side, document, first + column, column < rows); });
  }
  template <class Keeps>
  __device__ __forceinline__ int keep(const Keeps& keeps) {
    constexpr int kWords = (C::N + 31) / 32;
    int kept[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) kept[w] = keeps(w * 32 + this->lane);  // all are asked before one is looked at
    int count = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t bits = __ballot_sync(~0u, kept[w] && w * 32 + this->lane < C::N);
      if (this->lane == 0 && this->warp == kProducerWarp) this->stage().bits[w] = bits;
      count += __popc(bits);
    }
    return (count ? StageInfo::kAnyToken : 0) | (count == C::N ? StageInfo::kFull : 0);
  }

  __device__ __forceinline__ void copy_by_hand(const Unit& unit, int flags, int tokens, int first) {
    const Segments& side = this->args.problem.documents;
    char* tile = this->tile();
    flags |= keep_columns(unit.document, first, tokens);
    const int chunks = C::kWidens && side.dtype == DType::bit ? 1 : this->atoms(side) * (C::kAtomBytes / 16);
    const int64_t begin = unit.document.begin + first * side.token_stride;
    if (splitters_load<C>(side)) {
      if (loader() == 0) this->shared.sources[this->ring.at] = {begin, tokens};
    } else {
      Rows{side, this->args.document_end, C::N, chunks, loader()}.copy(
          begin, [&](int row) { return row < tokens; }, DocumentPlace{held_address(tile + this->kArrival)});
    }
    if constexpr (C::kWidens) {
      sync_loaders();  // a row's chunks come from several warps
      with_stored(side.dtype, [&](auto dtype) {
        constexpr DType kDType = decltype(dtype)::value;
        const typename Sm90WideRows<C>::template Apart<kDType> stored{ptx::shared_address(tile)};
        widen_tile<C, T, kDType, kLoaderThreads, 1>(stored, stored.tile, loader());
      });
    }
    ptx::fence_async_proxy();
    if (has_factors(kColumns) || this->splits_stored())
      for (int row = loader(); row < tokens; row += kLoaderThreads) {
        const auto take = [&](const TokenFactor& factor) {
          return token_factor(side, factor, unit.outer * side.inner + unit.inner, unit.document, first + row);
        };
        if (side.scale) this->shared.token_scale[this->ring.at][row] = take(side.scale);
        if ((C::kSplit || kColumns == Columns::affine) && side.minimum)
          this->shared.token_minimum[this->ring.at][row] = take(side.minimum);
      }
    if constexpr (kColumns == Columns::norms) {
      sync_loaders();  // as above
      for (int row = loader(); row < C::N; row += kLoaderThreads)
        this->shared.token_scale[this->ring.at][row] = inverse_norm_of<C, T>(tile, C::N, row);
    }
    __syncwarp();
    this->publish(flags, first, C::N - 8, unit.target, 0);
    __syncwarp();
  }

  __device__ __forceinline__ void sync_loaders() { asm volatile("bar.sync 8, %0;" ::"n"(kLoaderThreads) : "memory"); }
};

}  // namespace cuda
}  // namespace maxsim
