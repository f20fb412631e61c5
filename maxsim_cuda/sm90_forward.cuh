// Forward on Hopper: a producer warp streams document tiles through a ring in shared memory, math warpgroups multiply
// them with resident query rows and keep the row maxima in registers, and a finisher warp turns those into scores. No
// score tile is ever written.
#pragma once

#include "sm90_consumer.cuh"
#include "sm90_dense.cuh"
#include "sm90_finisher.cuh"
#include "sm90_loose.cuh"
#include "sm90_marked.cuh"
#include "sm90_packed.cuh"
#include "sm90_producer.cuh"
#include "sm90_spread.cuh"
#include "sm90_split.cuh"
#include "sm90_widen.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, bool kArgmax, Columns kColumns>
__global__ void __launch_bounds__(C::kThreads, C::kPerSm)
    sm90_forward(const __grid_constant__ Sm90Args args, const __grid_constant__ CUtensorMap query_map,
                 const __grid_constant__ CUtensorMap document_map, const __grid_constant__ CUtensorMap tail_map) {
  extern __shared__ char dynamic[];
  __shared__ Sm90Shared<C> shared;
  static_assert(!kStored<T> || C::kAtoms == 1, "stored features fill no more than a row of 128 bytes");
  static_assert((C::kSharedBytes + sizeof(Sm90Shared<C>) + 1024) * C::kPerSm <= 228 * 1024, "what a block can have");
  char* queries = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(dynamic) + 1023) & ~uintptr_t{1023});
  char* tiles = queries + C::kQueryBuffers * C::kQueryBytes;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x % 128 / 32;
  // Shuffled to stay in a register: the compiler would rather read the special one again at every use, and wait for it.
  const int lane = __shfl_xor_sync(~0u, threadIdx.x % 32, 0);
  const bool tma = kOnlyCopies<C> || args.tma;
  if (threadIdx.x == C::kGroups * 128 && tma) {
    if (!C::kLoose && !(C::kWidens && args.signs)) ptx::tma_prefetch(&document_map);
    if (!C::kLoose) ptx::tma_prefetch(&query_map);
  }
  // Who arrives on `scaled`: each lane for its copies or for what it wrote, or a warp when it is done.
  constexpr int kScalers = C::kLoose                    ? kPlacers<C> * 32
                           : C::kSplit                  ? C::kMoreWarps * 32
                           : kColumns == Columns::norms ? kScaleThreads
                           : !has_factors(kColumns)     ? (C::kWidens ? C::kMoreWarps * 32 : kLoaderWarps)
                                                        : 32 + C::kMoreWarps * 32 + C::kSpreads;
  constexpr int kFactorWarps = Sm90Feed<C, T, kColumns>::kFactorWarp ? 1 : 0;
  // The producer starts on the barriers that it made; the others wait until they are there.
  constexpr int kProducerThread = C::kGroups * 128 + kProducerWarp * 32;
  if (threadIdx.x == kProducerThread)
    shared.init(tma, kStored<T>, C::kSplit && is_stored(args.problem.documents.dtype), kScalers,
                C::kGroups * (Sm90Consumer<C, T, kArgmax, kColumns>::kOneArrives ? 4 : 128), args.pieces);
  __syncwarp();
  if (tma && group == C::kGroups && warp == kProducerWarp)
    asm volatile("bar.arrive 1, %0;" ::"n"(C::kThreads) : "memory");
  else
    asm volatile("bar.sync 1, %0;" ::"n"(C::kThreads) : "memory");
  if (!kOnlyDense<C> && args.pieces > 1) ptx::cluster_arrive();
  if (group < C::kGroups) {
    if (C::kMathRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::kMathRegisters));
    Sm90Consumer<C, T, kArgmax, kColumns>{
        args,
        shared,
        ptx::wgmma_operand(ptx::shared_address(queries) + group * C::kTiles * 64 * C::kRowBytes),
        ptx::wgmma_operand(ptx::shared_address(tiles)),
        queries + group * C::kTiles * 64 * C::kRowBytes,
        group,
        warp,
        lane,
        __shfl_sync(~0u, ptx::shared_address(&shared), 0)}
        .run();
    return;
  }
  if (C::kMathRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(C::kOtherRegisters));
  if (C::kLoose && (group > C::kGroups || warp >= kLoaderWarps)) {
    if constexpr (C::kLoose) {
      const int placer = group > C::kGroups ? kLoaderWarps + warp : warp - kLoaderWarps;
      Sm90Placer<C, T, kColumns>{args, shared, queries, tiles, placer, lane}.run();
    }
  } else if (C::kWidens && group > C::kGroups) {
    if constexpr (C::kWidens)
      if (args.tma)  // else the loaders do
        Sm90Widener<C, T>{args, shared, ptx::shared_address(tiles),
                          static_cast<int>(threadIdx.x) - (C::kGroups + 1) * 128}
            .run();
  } else if (C::kSplit && group > C::kGroups) {
    if constexpr (C::kSplit) Sm90Splitter<C>{args, shared, queries, tiles, threadIdx.x - (C::kGroups + 1) * 128}.run();
  } else if (warp == kFinisherWarp) {
    Sm90Finisher<C, T, kArgmax, kColumns>{args, shared, lane}.run();
  } else if (warp == kProducerWarp || !tma) {
    const Sm90Maps maps{query_map, document_map, tail_map};
    if constexpr (kOnlyMarked<C>)
      Sm90MarkedProducer<C, T, kColumns>(args, maps, shared, queries, tiles, warp, lane).run();
    else if constexpr (kOnlyPacked<C>)
      Sm90PackedProducer<C, T, kColumns>(args, maps, shared, queries, tiles, warp, lane).run();
    else if (kOnlyDense<C> || args.dense)
      Sm90DenseProducer<C, T, kColumns>(args, maps, shared, queries, tiles, warp, lane).run();
    else
      Sm90Producer<C, T, kColumns>(args, maps, shared, queries, tiles, warp, lane).run();
  } else if constexpr (kOnlyPacked<C>) {
    if (warp == kLoaderWarps)
      Sm90PackedQueries<C, T, kColumns>(args, Sm90Maps{query_map, document_map, tail_map}, shared, queries, tiles, warp,
                                        lane)
          .run();
  } else if constexpr (kOnlyMarked<C>) {
    if (warp == kLoaderWarps)
      Sm90Marker<C>{args, shared, lane}.run();
    else
      Sm90TileMarker<C>{args, shared, lane}.run();
  } else if constexpr (C::kSpreads || kFactorWarps > 0) {
    if constexpr (kFactorWarps > 0)
      if (args.dense && warp == kLoaderWarps)
        Sm90DenseProducer<C, T, kColumns, true>(args, Sm90Maps{query_map, document_map, tail_map}, shared, queries,
                                                tiles, warp, lane)
            .run();
    const int spreader = warp - kLoaderWarps - kFactorWarps;
    if constexpr (C::kSpreads)
      if (spreader >= 0)
        Sm90Spreader<C, kLoaderWarps - kFactorWarps>{args, shared, ptx::shared_address(tiles), spreader, lane}.run();
  } else if constexpr (kColumns == Columns::norms) {
    scale_stages<C, T>(shared, queries, tiles, threadIdx.x % 128 - 64);
  }
}

}  // namespace cuda
}  // namespace maxsim
