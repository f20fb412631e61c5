// Rows of 16-bit features that begin anywhere, between the addresses that the copy engine counts in: a tile comes as it
// lies in memory, by linear copies, and several warps put its rows where products read them.
#pragma once

#include "sm90_unmapped.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, Columns kColumns>
struct Sm90Placer {
  static constexpr int kWarps = kPlacers<C>, kThreads = kWarps * 32;
  static constexpr int kLanes = C::kRowBytes / 8, kTogether = 32 / kLanes;  // eight bytes a lane, rows at a time
  static constexpr int kSteps = 8 / kTogether;                              // for eight rows
  static constexpr int kBatch = C::kMathRegisters ? 2 : 4;
  static_assert(C::kAtomBytes == 128 && sizeof(T) == 2);

  const Sm90Args& args;
  Sm90Shared<C>& shared;
  char *queries, *tiles;
  int warp, lane;

  __device__ __forceinline__ void run() const {
    const Segments& side = args.problem.documents;
    clear();
    Ring<C::kStages> ring;
    Ring<C::kQueryBuffers> buffer;
    while (true) {
      const int flags = args.apart                                     ? place_tiles<2, true>(ring)
                        : args.row_alignment == 8 && side.dim % 4 == 0 ? place_tiles<8, false>(ring)
                        : args.row_alignment >= 4                      ? place_tiles<4, false>(ring)
                                                                       : place_tiles<2, false>(ring);
      if (flags & StageInfo::kEnd) return;
      copy_queries(buffer.at, buffer.phase);
      buffer.advance();
    }
  }

 private:
  // Eight bytes from a multiple of kAlignment on.
  template <int kAlignment>
  __device__ __forceinline__ static uint2 load(uint32_t at) {
    if constexpr (kAlignment == 8) return ptx::load_shared_8(at);
    if constexpr (kAlignment == 4) return make_uint2(ptx::load_shared_4(at), ptx::load_shared_4(at + 4));
    const uint32_t first = at & ~3u, skipped = (at & 3) * 8, middle = ptx::load_shared_4(first + 4);
    return make_uint2(__funnelshift_r(ptx::load_shared_4(first), middle, skipped),
                      __funnelshift_r(middle, ptx::load_shared_4(first + 8), skipped));
  }

  // What of a lane's eight bytes is a row's.
  __device__ __forceinline__ uint2 kept() const {
    const int bytes = static_cast<int>(args.problem.documents.dim * sizeof(T)) - lane % kLanes * 8;
    const auto word = [](int count) { return __funnelshift_lc(~0u, 0, min(max(count, 0), 4) * 8); };
    return make_uint2(word(bytes), word(bytes - 4));
  }

  __device__ __forceinline__ int thread() const { return warp * 32 + lane; }
  __device__ __forceinline__ void sync_placers() const { asm volatile("bar.sync 8, %0;" ::"n"(kThreads) : "memory"); }

  // Where row i of eight goes, counted from where the eight do.
  __device__ __forceinline__ int place(int i) const {
    return swizzled(C::N, i * kTogether + lane / kLanes, lane % kLanes / 2) + lane % 2 * 8;
  }

  // What no row fills becomes zeros.
  __device__ __forceinline__ void clear() const {
    if (kept().x) return;
    const uint32_t tile = ptx::shared_address(tiles);
#pragma unroll 1
    for (int at = warp; at < C::kStages * C::N / 8; at += kWarps)
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        ptx::store_shared_8(tile + at / (C::N / 8) * C::kTileBytes + at % (C::N / 8) * 1024 + place(i),
                            make_uint2(0, 0));
  }

  // Up to the tile that new queries come behind, or the last one; returns its flags. The loop is short: it has to stay
  // where instructions are read from, or fetching them takes longer than all the rest.
  template <int kAlignment, bool kApart>
  __device__ __forceinline__ int place_tiles(Ring<C::kStages>& ring) const {
    const uint2 mask = kept();
    const uint32_t tile = ptx::shared_address(tiles);
    const int stride = static_cast<int>(args.problem.documents.token_stride * sizeof(T));
    const int pitch = kApart ? C::kStagedRowBytes : stride;
    const uint32_t came = tile + C::kStages * C::kTileBytes + lane % kLanes * 8;
    uint32_t to[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) to[i] = tile + place(i) + warp * 1024;
    while (true) {
      const int at = ring.at;
      ptx::mbarrier_wait(&shared.full[at], ring.phase);
      ptx::mbarrier_wait(&shared.empty[at], ring.phase ^ 1);
      ring.advance();
      const StageInfo& info = shared.came[at];
      const int flags = info.flags, last_eight = info.last_eight, skipped = info.skipped;
      if (warp == 0 && lane < static_cast<int>(sizeof(StageInfo) / 4))
        reinterpret_cast<uint32_t*>(&shared.stages[at])[lane] = reinterpret_cast<const uint32_t*>(&info)[lane];
      if (mask.x && !(flags & StageInfo::kEnd))
#pragma unroll 1
        for (int first = warp * 8, moved = at * C::kTileBytes; first < C::N;
             first += kWarps * 8, moved += kWarps * 1024) {
          const int row = min(first, last_eight) + lane / kLanes;
          const uint32_t from = came + at * C::kStagedBytes + row * pitch;
          uint2 value[kSteps];
#pragma unroll
          for (int i = 0; i < kSteps; ++i) {
            const int before = kApart ? (skipped + (row + i * kTogether) * (stride & 15)) & 15 : skipped;
            value[i] = load<kAlignment>(from + before + i * kTogether * pitch);
          }
#pragma unroll
          for (int i = 0; i < kSteps; ++i) {
            if (kAlignment < 8) value[i] = make_uint2(value[i].x & mask.x, value[i].y & mask.y);  // else all is a row's
            ptx::store_shared_8(to[i] + moved, value[i]);
          }
        }
      ptx::mbarrier_arrive(&shared.came_empty[at]);
      if constexpr (kColumns == Columns::norms) {
        sync_placers();
        for (int row = thread(); row < C::N; row += kThreads)
          shared.token_scale[at][row] = inverse_norm_of<C, T>(tiles + at * C::kTileBytes, C::N, row);
      }
      ptx::fence_async_proxy();
      ptx::mbarrier_arrive(&shared.scaled[at]);
      if (flags & (StageInfo::kNewQueries | StageInfo::kEnd)) return flags;
    }
  }

  __device__ __forceinline__ void copy_queries(int buffer, int phase) const {
    ptx::mbarrier_wait(&shared.queries_named[buffer], phase);
    BlockInfo info;
    if (lane < C::kBlocks) info = shared.blocks[buffer][lane];
    char* to = queries + buffer * C::kQueryBytes;
    copy_query_rows<C, kThreads, kBatch>(args, info, to, C::kRowBytes / 16, thread());
    ptx::fence_async_proxy();
    if constexpr (kColumns == Columns::norms) {
      sync_placers();
      for (int row = thread(); row < C::kRows; row += kThreads)
        shared.row_scale[buffer][row] = inverse_norm_of<C, T>(to + row / 64 * 64 * C::kRowBytes, 64, row % 64);
    }
    ptx::mbarrier_arrive(&shared.queries_full[buffer]);
  }
};

}  // namespace cuda
}  // namespace maxsim
