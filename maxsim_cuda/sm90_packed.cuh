// Producer of the Hopper forward for packed documents under no mask: how long each is has to be looked up, and nothing
// else. A short call waits for its instructions, and a copy brings whole tiles of 256-byte rows.
#pragma once

#include "sm90_feed.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, Columns kColumns>
struct Sm90PackedProducer : Sm90Feed<C, T, kColumns> {
  using Sm90Feed<C, T, kColumns>::Sm90Feed;
  static_assert(C::kTogether && C::N <= 160, "one copy a tile, and five words of kept columns");

  static constexpr int kNarrow = kNarrowColumns<C>, kWidth = kNarrow ? kNarrow : C::N;  // of a last tile

  using Shares = TokenShares<kWidth / 2, int>;

  int group = 0;  // of queries
  bool new_queries = true;
  int ahead = 32;            // lanes whose documents have been met
  int64_t from = 0, to = 0;  // of the document that this lane has looked up

  __device__ __forceinline__ void run() {
    const Sm90Args& args = this->args;
    // Where documents are longer than a share, cuts can go backwards, and what lies between is met again: it may be
    // written twice, but not counted.
    const bool deals = kDeals && args.block_count <= C::kBlocks && !args.partials;
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
  // Where query tokens are few, documents come from memory, which is slower when it is read all over at once than from
  // one end to the other. So thread blocks take turns at documents, and divide the last ones so that all have as much.
  static constexpr bool kDeals = C::kGroups < 4;

  // The documents behind `dealt`, for each group of queries.
  __device__ __forceinline__ void divide(int count, int dealt) {
    const int groups = (static_cast<int>(block_count(this->args)) + C::kBlocks - 1) / C::kBlocks;
    const Shares shares(this->args, groups, gridDim.x);
    auto cut = shares.at(blockIdx.x + this->lane / 16);
    if (dealt) cut.behind += shares.cost(dealt) - dealt_before(shares, dealt);
    int unit = cut.group * count + shares.find(cut.behind, dealt);
    if (dealt && cut.group) unit = count;
    const int begin = __shfl_sync(~0u, unit, 0);
    group = begin / count;
    int document = begin - group * count, left = __shfl_sync(~0u, unit, 16) - begin;
    if (dealt && left <= 0) release_queries();
    for (ahead = 32; left > 0; --left) {
      const bool ends_group = document + 1 == count;
      stream_next(document, 1, left == 1 || ends_group);
      ++document;
      if (ends_group) {
        document = 0;
        ahead = 32;
        ++group;
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

  __device__ __forceinline__ void stream_next(int document, int step, bool release) {
    const Sm90Args& args = this->args;
    if (ahead == 32) {
      const int64_t own = args.first + min(int64_t{document} + this->lane * step, args.count - 1);
      from = args.problem.documents.offsets[own];
      to = args.problem.documents.offsets[own + 1];
      ahead = 0;
    }
    stream(args.first + document, __shfl_sync(~0u, from, ahead), __shfl_sync(~0u, to, ahead), release);
    ++ahead;
  }

  __device__ __forceinline__ void stream(int64_t target, int64_t from, int64_t to, bool release) {
    const int extent = static_cast<int>(this->args.problem.documents.extent);
    const bool valid = 0 <= from && from <= to && to <= extent;
    const int row = valid ? static_cast<int>(from) : 0, length = valid ? static_cast<int>(to - from) : 0;
    const int ends = StageInfo::kLast | (release ? StageInfo::kRelease : 0);
    const int always = valid ? 0 : StageInfo::kInvalid;
    // The last tile reaches back, as Tile says; that of a shorter document over its neighbours, whose columns are not
    // kept.
    for (int at = 0; at == 0 || at < length; at += C::N) {
      const bool narrow =
          kNarrow && length >= kNarrow && length - at <= kNarrow && row + length - kNarrow + C::N <= extent;
      const bool whole = narrow || length >= C::N;
      const int first = whole ? min(at, length - (narrow ? kNarrow : C::N)) : min(0, extent - C::N - row);
      this->acquire();
      int flags = always | (new_queries ? StageInfo::kNewQueries : 0) | (at + C::N >= length ? ends : 0);
      if (whole)
        flags |= StageInfo::kFull | StageInfo::kAnyToken | (narrow ? StageInfo::kNarrow : 0);
      else
        flags |= keep(-first, length - first);
      const bool any = flags & StageInfo::kAnyToken;
      this->publish(flags, first, C::N - 8, target, any ? C::kTileBytes : 0);
      if (any && this->lane == 0) this->load_whole(row + first, 0);
      __syncwarp();
      this->ring.advance();
      if (new_queries) {  // behind the tile that takes longer to come
        this->look_up_queries(true, group, 0);
        new_queries = false;
      }
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
