// Producers of the Hopper forward for packed documents under no mask: how long each is has to be looked up, and nothing
// else but queries. A short call waits for its instructions, and a copy brings whole tiles of 256-byte rows.
#pragma once

#include "sm90_feed.cuh"

namespace maxsim {
namespace cuda {

// Where query tokens are few, documents come from memory, which is slower when it is read all over at once than from
// one end to the other. So thread blocks take turns at documents, and divide the last ones so that all have as much.
// Where documents are longer than a share, cuts can go backwards, and what lies between is met again: it may be written
// twice, but not counted.
template <class C>
__device__ __forceinline__ bool deals_documents(const ForwardArgs& args) {
  return C::kGroups < 4 && args.block_count <= C::kBlocks && !args.partials;
}
template <class C>
__device__ __forceinline__ int query_groups(const ForwardArgs& args) {
  return (static_cast<int>(block_count(args)) + C::kBlocks - 1) / C::kBlocks;
}

// The warp that looks up documents says which groups of queries they meet.
template <bool kWaits>
__device__ __forceinline__ void meet_packed_warps() {
  if (kWaits)
    asm volatile("bar.sync 2, 64;" ::: "memory");
  else
    asm volatile("bar.arrive 2, 64;" ::: "memory");
}

// Queries, which a warp of their own looks up, as far as it can before it knows where this block's share begins.
template <class C, class T, Columns kColumns>
struct Sm90PackedQueries : Sm90Feed<C, T, kColumns> {
  using Sm90Feed<C, T, kColumns>::Sm90Feed;

  __device__ __forceinline__ void run() {
    const Sm90Args& args = this->args;
    if (args.follows_table) ptx::wait_for_prior_kernel();
    const bool deals = deals_documents<C>(args);
    int group = deals ? 0 : blockIdx.x * static_cast<unsigned>(query_groups<C>(args)) / gridDim.x, last = 0;
    BlockInfo info = describe(group);
    if (!deals) {
      meet_packed_warps<true>();
      last = this->shared.last_group;
      if (const int first = this->shared.first_group; first != group) info = describe(group = first);
    }
    while (group <= last) {
      this->acquire_queries();
      this->copy_queries(info, args.problem.queries.packed());
      this->buffer.advance();
      if (++group <= last) info = describe(group);
    }
  }

  __device__ __forceinline__ BlockInfo describe(int group) const {
    return describe_block<C::kBlocks>(this->args, true, group, 0, this->lane);
  }
};

template <class C, class T, Columns kColumns>
struct Sm90PackedProducer : Sm90Feed<C, T, kColumns> {
  using Sm90Feed<C, T, kColumns>::Sm90Feed;
  static_assert(C::kTogether && C::N <= 160, "one copy a tile, and five words of kept columns");

  static constexpr bool kJoins = kJoinsDocuments<C>;
  static constexpr int kDocumentCost = kJoins ? 24 : C::N / 2;  // of its end, or of a tile that it does not fill

  using Shares = TokenShares<kDocumentCost, int>;

  bool new_queries = true;
  int ahead = 32;           // lanes whose documents have been met
  int row = 0, length = 0;  // of the document that this lane has looked up; -1 long where its offsets are no good

  __device__ __forceinline__ void run() {
    const Sm90Args& args = this->args;
    const bool deals = deals_documents<C>(args);
    if (deals && this->lane == 0) begin_to_read();
    if (args.follows_table) ptx::wait_for_prior_kernel();
    const int count = static_cast<int>(args.count), blocks = gridDim.x;
    const int dealt = !deals ? 0 : count < 2 * blocks ? count : (count / blocks - 1) * blocks;
    for (int document = blockIdx.x; document < dealt; document += blocks)
      stream_next(document, blocks, document + blocks >= count);
    if (dealt < count) divide(count, dealt);
    this->end();
  }

 private:
  // The documents behind `dealt`, for each group of queries.
  __device__ __forceinline__ void divide(int count, int dealt) {
    const Shares shares(this->args, query_groups<C>(this->args), gridDim.x);
    auto cut = shares.at(blockIdx.x + this->lane / 16);
    if (dealt) cut.behind += shares.cost(dealt) - dealt_before(shares, dealt);
    int unit = cut.group * count + shares.find(cut.behind, dealt);
    if (dealt && cut.group) unit = count;
    const int begin = __shfl_sync(~0u, unit, 0);
    const int group = begin / count;
    int document = begin - group * count, left = __shfl_sync(~0u, unit, 16) - begin;
    if (!deals_documents<C>(this->args)) {
      if (this->lane == 0) {
        this->shared.first_group = group;
        this->shared.last_group = left > 0 ? (begin + left - 1) / count : group - 1;
      }
      meet_packed_warps<false>();
    }
    if constexpr (kJoins) {
      for (int next; left > 0; left -= next, document = 0) {
        next = min(left, count - document);
        new_queries = true;
        join(document, document + next);
      }
      return;
    }
    if (dealt && left <= 0) release_queries();
    for (ahead = 32; left > 0; --left) {
      const bool ends_group = document + 1 == count;
      stream_next(document, 1, left == 1 || ends_group);
      ++document;
      if (ends_group) {
        document = 0;
        ahead = 32;
        new_queries = true;
      }
    }
  }

  // Where documents are has to be looked up, and until then memory would have nothing to do. What lies about where this
  // block's first one should be is met by it or a neighbour, and waits in L2.
  __device__ __forceinline__ void begin_to_read() const {
    const Segments& side = this->args.problem.documents;
    const char* from = static_cast<const char*>(side.data) +
                       uint64_t{this->args.average_tokens} * blockIdx.x * side.token_stride * sizeof(T);
    constexpr int64_t kBytes = (64 << 10) / C::kPerSm;
    const int bytes = static_cast<int>(min(kBytes, this->args.document_end - from)) & ~15;
    if (bytes > 0) ptx::bulk_prefetch(from, bytes);
  }

  // What thread blocks in front of a cut have been dealt, by the halves of a warp.
  __device__ __forceinline__ int dealt_before(const Shares& shares, int dealt) const {
    int sum = 0;
    for (int first = this->lane % 16 * gridDim.x; first < dealt; first += 16 * gridDim.x)
      sum += shares.cost(first + blockIdx.x + this->lane / 16) - shares.cost(first);
#pragma unroll
    for (int step = 8; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }

  // A tile of which no token counts, and no document ends with it.
  __device__ __forceinline__ void release_queries() {
    this->acquire();
    this->publish(StageInfo::kRelease | this->keep_first(0), 0, C::N - 8, 0, 0);
    __syncwarp();
    this->ring.advance();
  }

  __device__ __forceinline__ void look_up(int document, int step) {
    const Segments& side = this->args.problem.documents;
    const int64_t own = this->args.first + min(int64_t{document} + this->lane * step, this->args.count - 1);
    const int64_t from = side.offsets[own], to = side.offsets[own + 1];
    const bool valid = 0 <= from && from <= to && to <= side.extent;
    row = valid ? static_cast<int>(from) : 0;
    length = valid ? static_cast<int>(to - from) : -1;
    ahead = 0;
  }

  // Documents of one group of queries, up to `end`, which share tiles where they follow one another.
  __device__ __forceinline__ void join(int document, int end) {
    constexpr int kEnds = Sm90Shared<C>::kEnds;
    const int lane = this->lane, latest = static_cast<int>(this->args.problem.documents.extent) - C::N;
    int next = 0;       // the next row to be met, of the document that is open
    bool open = false;  // tiles have met a part of it
    for (ahead = 32; document < end;) {
      if (ahead + kEnds >= 32) look_up(document, 1);
      const bool follows = lane >= ahead && lane - ahead < end - document && length > 0;
      const int known = __clz(__brev(~(__ballot_sync(~0u, follows) >> ahead)));  // how many follow one another
      if (!open) next = __shfl_sync(~0u, row, ahead);
      const auto ended = [&](int begin) {
        return __popc(__ballot_sync(~0u, lane >= ahead && lane - ahead < known && row + length <= begin + C::N));
      };
      // If one document ends in the tile, it does so at a multiple of eight columns.
      int begin = min(next, latest), all = ended(begin), skipped = next - begin;
      const int opened = __shfl_sync(~0u, row, ahead), until = __shfl_sync(~0u, row + length, ahead);
      bool eights = false;
      if (const int back = begin - (begin - until & 7); all && open && back >= opened)
        if (const int fewer = ended(back); fewer == 1) {
          begin = back;
          all = fewer;
          skipped = 0;
          eights = true;
        }
      const int ends = min(all, kEnds);
      open = ends == all && ends < known;
      const int last = __shfl_sync(~0u, length, ahead) < 0 ? StageInfo::kLast | StageInfo::kInvalid : StageInfo::kLast;
      int flags = known == 0 ? last : StageInfo::kAnyToken;
      flags |= known && ends == 0 ? StageInfo::kFull : eights ? StageInfo::kEights : 0;
      this->acquire();
      for (int i = 0; ends && i < ends + 2; ++i) {
        const int end_column = __shfl_sync(~0u, row + length, ahead + min(max(i, 1), ends) - 1) - begin;
        const int column = i == 0 ? skipped : i > ends && open ? C::N : end_column;
        if (lane == 0)  // who also says that they are written
          this->shared.bounds[this->ring.at][i] = {below(column, 0), below(column, 1), below(column, 2),
                                                   below(column, 3)};
      }
      const int met = known ? ends : 1;  // documents
      flags |= new_queries ? StageInfo::kNewQueries : 0;
      flags |= document + met == end ? StageInfo::kRelease : 0;
      this->publish(flags, 0, ends, this->args.first + document, known ? C::kTileBytes : 0);
      if (known && lane == 0) this->load_whole(begin, 0);
      __syncwarp();
      this->ring.advance();
      new_queries = false;
      next = begin + C::N;
      document += met;
      ahead += met;
    }
  }

  // Bits of the columns in front of one, as Sm90Shared has them for a lane.
  __device__ __forceinline__ static uint32_t below(int column, int lane) {
    const int rest = min(max(column % 8 - 2 * lane, 0), 2);
    return static_cast<uint32_t>(((uint64_t{1} << rest << column / 8 * 2)) - 1);
  }

  __device__ __forceinline__ void stream_next(int document, int step, bool release) {
    if (ahead == 32) look_up(document, step);
    stream(this->args.first + document, __shfl_sync(~0u, row, ahead), __shfl_sync(~0u, length, ahead), release);
    ++ahead;
  }

  __device__ __forceinline__ void stream(int64_t target, int row, int length, bool release) {
    const int extent = static_cast<int>(this->args.problem.documents.extent);
    const int ends = StageInfo::kLast | (release ? StageInfo::kRelease : 0);
    const int always = length < 0 ? StageInfo::kInvalid : 0;
    // The last tile reaches back, as Tile says; that of a shorter document over its neighbours, whose columns are not
    // kept.
    for (int at = 0; at == 0 || at < length; at += C::N) {
      const bool whole = length >= C::N;
      const int first = whole ? min(at, length - C::N) : min(0, extent - C::N - row);
      this->acquire();
      int flags = always | (new_queries ? StageInfo::kNewQueries : 0) | (at + C::N >= length ? ends : 0);
      if (whole)
        flags |= StageInfo::kFull | StageInfo::kAnyToken;
      else
        flags |= keep(-first, length - first);
      const bool any = flags & StageInfo::kAnyToken;
      this->publish(flags, first, C::N - 8, target, any ? C::kTileBytes : 0);
      if (any && this->lane == 0) this->load_whole(row + first, 0);
      __syncwarp();
      this->ring.advance();
      new_queries = false;
    }
  }

  // Writes that columns from `begin` on up to `end` are kept, if there are any.
  __device__ __forceinline__ int keep(int begin, int end) {
    const auto below = [](int word, int column) {
      const int bits = column - word * 32;
      return bits >= 32 ? ~0u : bits > 0 ? (1u << bits) - 1 : 0;
    };
    if (this->lane == 0)  // who also says that they are written
#pragma unroll
      for (int word = 0; word < 5; ++word)
        this->shared.stages[this->ring.at].bits[word] = below(word, end) & ~below(word, begin);
    return begin < end ? StageInfo::kAnyToken : 0;
  }
};

}  // namespace cuda
}  // namespace maxsim
