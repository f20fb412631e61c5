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

  int64_t group;  // of queries
  bool new_queries = true;

  __device__ __forceinline__ void run() {
    const Sm90Args& args = this->args;
    const Segments& side = args.problem.documents;
    if (args.block_count <= C::kBlocks && args.count == side.count && this->lane == 0) begin_to_read();
    if (args.follows_table) ptx::wait_for_prior_kernel();
    const int count = static_cast<int>(args.count);
    const int64_t groups = quotient(block_count(args) + C::kBlocks - 1, C::kBlocks);
    const UnitRange mine = share_tokens<kWidth / 2>(args, groups, blockIdx.x, gridDim.x);
    group = quotient(mine.from, count);
    int document = static_cast<int>(mine.from - group * count), ahead = 32;
    int64_t from = 0, to = 0;  // of the document that this lane has looked up
    for (int left = static_cast<int>(mine.to - mine.from); left > 0; --left) {
      if (ahead == 32) {
        const int64_t own = args.first + min(document + this->lane, count - 1);
        from = side.offsets[own];
        to = side.offsets[own + 1];
        ahead = 0;
      }
      const bool ends_group = document + 1 == count;
      stream(args.first + document, __shfl_sync(~0u, from, ahead), __shfl_sync(~0u, to, ahead),
             left == 1 || ends_group);
      ++ahead;
      ++document;
      if (ends_group) {
        document = 0;
        ahead = 32;
        ++group;
        new_queries = true;
      }
    }
    this->end();
  }

 private:
  // Where a share begins is looked up in offsets, and until then memory would have nothing to do. What lies about there
  // is met by this block or a neighbour, and waits in L2.
  __device__ __forceinline__ void begin_to_read() {
    const Segments& side = this->args.problem.documents;
    const uint32_t row = static_cast<uint32_t>(uint64_t{static_cast<uint32_t>(side.extent)} * blockIdx.x / gridDim.x);
    const char* from = static_cast<const char*>(side.data) + row * side.token_stride * int64_t{sizeof(T)};
    constexpr int64_t kBytes = (64 << 10) / C::kPerSm;
    const int bytes = static_cast<int>(min(kBytes, this->args.document_end - from)) & ~15;
    if (bytes > 0) ptx::bulk_prefetch(from, bytes);
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
