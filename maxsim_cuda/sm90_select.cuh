// The choice of a tile shape: included once for each dtype.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "check.h"
#include "launch.h"
#include "sm90_forward.cuh"
#include "sm90_select.h"
#include "tensor_map.cuh"

namespace maxsim {
namespace cuda {
namespace {

bool dense(const Problem& problem) {
  const auto plain = [](const Segments& side) {
    return side.whole() && side.count < INT32_MAX && side.extent < INT32_MAX;
  };
  return problem.pairing != Pairing::list && plain(problem.queries) && plain(problem.documents);
}

// Tokens of a document, where the host knows no better.
int64_t average_length(const Segments& documents) {
  return documents.packed() ? ceil_div(documents.extent, std::max<int64_t>(documents.count, 1)) : documents.extent;
}

// How many clusters of two, four and eight blocks of a kernel run at once.
struct Clusters {
  static constexpr int kSizes = 3;
  int active[kSizes];

  template <class Kernel>
  Clusters(Kernel kernel, int threads, int shared_bytes) {
    for (int i = 0; i < kSizes; ++i) {
      cudaLaunchAttribute size{};
      size.id = cudaLaunchAttributeClusterDimension;
      size.val.clusterDim = {2u << i, 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = 2u << i;
      config.blockDim = threads;
      config.dynamicSmemBytes = shared_bytes;
      config.attrs = &size;
      config.numAttrs = 1;
      if (cudaOccupancyMaxActiveClusters(&active[i], kernel, &config) != cudaSuccess) active[i] = 0;
    }
  }
};

// Tiles of a piece of a document that are worth a cluster: fewer take no longer than its start and its merging.
constexpr int64_t kWorthwhile = 16;

// Blocks that share each document, so that few long ones still fill the GPU.
template <class C>
int64_t pieces_of(const ForwardArgs& args, int64_t units, const Clusters& clusters) {
  const Segments& documents = args.problem.documents;
  if (documents.mask || units > clusters.active[0]) return 1;
  const int64_t tiles = ceil_div(average_length(documents), C::N);
  int64_t pieces = 1;
  for (int i = 0; i < Clusters::kSizes && units <= clusters.active[i] && 2 * pieces * kWorthwhile <= tiles; ++i)
    pieces *= 2;
  return pieces;
}

// What Sm90Packed and Sm90Marked ask for.
bool packed(const Problem& problem) {
  const Segments& documents = problem.documents;
  return problem.pairing == Pairing::cross && documents.packed() && !documents.mask && documents.extent < INT32_MAX;
}
bool marked(const Problem& problem) {
  const Segments& documents = problem.documents;
  return problem.pairing != Pairing::list && !documents.packed() && documents.count < INT32_MAX &&
         documents.extent < INT32_MAX;
}

// Whether 32 bits hold what Sm90Packed counts: tokens and half a tile for each document, and groups of queries times
// thread blocks.
template <class C>
bool counts_in_words(const ForwardArgs& args, int64_t places) {
  const Segments& documents = args.problem.documents;
  return documents.extent + documents.count * (C::N / 2) < INT32_MAX &&
         (ceil_div(args.block_count, C::kBlocks) + 1) * (places + 2) < INT32_MAX;
}

// What Sm90Dense asks for beyond `dense`. Few long documents are left to clusters.
template <class C>
bool whole_tiles(const ForwardArgs& args, int64_t units) {
  const int64_t length = args.problem.documents.extent;
  return !args.partials && length >= C::N &&
         (units > int64_t{current_device().sms} * C::kPerSm || length <= 2 * kWorthwhile * C::N);
}

// Whether rows follow one another in memory, from where a linear copy may begin.
bool follow_one_another(const Segments& side) {
  return side.feature_stride == 1 && side.token_stride == row_elements(side) &&
         reinterpret_cast<uintptr_t>(side.data) % 16 == 0;
}

template <class C, class T, bool kArgmax, Columns kColumns>
void launch(const ForwardArgs& args, cudaStream_t stream) {
  const auto kernel = sm90_forward<C, T, kArgmax, kColumns>;
  static std::atomic<bool> ready[kDevices];  // a kernel's attributes belong to a device
  if (std::atomic<bool>& done = ready[current_device().index]; !done) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes),
          "shared memory of sm90_forward");
    done = true;
  }
  const Segments& documents = args.problem.documents;
  CUtensorMap query_map{}, document_map{}, tail_map{};
  Sm90Args mapped{args};
  mapped.query_end = end_of(args.problem.queries);
  mapped.document_end = end_of(documents);
  mapped.signs = C::kWidens && documents.dtype == DType::bit && follow_one_another(documents);
  mapped.row_alignment = row_alignment(documents);
  mapped.apart = documents.token_stride * element_size(documents.dtype) > C::kRowBytes;
  mapped.tma =
      C::kLoose || (!C::kLoads && describe(args.problem.queries, C::kQueryBoxRows, &query_map, C::kQueryAtomBytes) &&
                    (mapped.signs || ((C::kTogether ? describe_whole(documents, C::N, &document_map)
                                                    : describe(documents, C::N, &document_map, C::kAtomBytes)) &&
                                      (kOnlyOne<C> || describe(documents, 8, &tail_map, C::kAtomBytes)))));
  const bool cross = args.problem.pairing == Pairing::cross;
  const int64_t units = args.count * (cross ? ceil_div(args.block_count, C::kBlocks) : 1);
  const int64_t places = int64_t{current_device().sms} * C::kPerSm;
  mapped.pass_through =
      (args.problem.pairing == Pairing::slab || (cross && units == args.count)) && is_short_stream(documents);
  mapped.masked = mapped.tma && documents.mask;
  mapped.dense = mapped.tma && units < INT32_MAX && dense(args.problem);
  mapped.dense_units = static_cast<uint32_t>(units);
  mapped.average_tokens = static_cast<uint32_t>(average_length(documents));
  const auto pieces = [&] {
    static const Clusters clusters(kernel, C::kThreads, C::kSharedBytes);
    return static_cast<int32_t>(pieces_of<C>(args, units, clusters));
  };
  if constexpr (kOnlyOne<C>) {
    const bool fits = kOnlyDense<C> ? mapped.dense && whole_tiles<C>(args, units)
                                    : mapped.tma && units < INT32_MAX && pieces() == 1 &&
                                          (!kOnlyPacked<C> || counts_in_words<C>(args, places));
    if (!fits) return launch<typename C::Other, T, kArgmax, kColumns>(args, stream);
  } else {
    mapped.pieces = pieces();
  }
  // As few blocks as share the work as evenly: none is left with a last unit of its own. Ragged documents are shared
  // out by their tokens.
  const int64_t share = std::max<int64_t>(1, ceil_div(units, places));
  const bool by_tokens = cross && documents.packed();
  const int64_t shares = by_tokens ? std::min(units, places) : ceil_div(units, share);
  mapped.dense_share = static_cast<uint32_t>(units / shares);
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(mapped.pieces * shares);
  config.blockDim = C::kThreads;
  config.dynamicSmemBytes = C::kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (args.follows_table) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (mapped.pieces > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(mapped.pieces), 1, 1};
  }
  check(cudaLaunchKernelEx(&config, kernel, mapped, query_map, document_map, tail_map), "sm90_forward");
}

// The plain case has a kernel of its own. Of stored documents with scales for tokens too, where winners leave
// registers.
template <class C, class T, bool kArgmax, Columns kColumns>
void launch_shortest(const ForwardArgs& args, cudaStream_t stream) {
  if constexpr (kStored<T>) {
    if constexpr (!kArgmax && (kColumns == Columns::plain || kColumns == Columns::given))
      if (dense(args.problem)) return launch<Sm90Dense<C>, T, kArgmax, kColumns>(args, stream);
  } else if constexpr (kColumns == Columns::plain) {
    if constexpr (C::kAtoms == 2) {
      // To multiply no column in vain pays where arithmetic bounds; beside winners there are no registers for it.
      constexpr bool kSpares = C::kGroups == 4 && !kArgmax;
      if (args.problem.documents.dim == 2 * kAtom<T>) {
        if (dense(args.problem)) return launch<Sm90Dense<C, true>, T, kArgmax, kColumns>(args, stream);
        if (packed(args.problem)) return launch<Sm90Packed<C, kSpares>, T, kArgmax, kColumns>(args, stream);
        if (marked(args.problem)) return launch<Sm90Marked<C, kSpares ? 64 : 0>, T, kArgmax, kColumns>(args, stream);
      }
    }
    if (dense(args.problem)) return launch<Sm90Dense<C>, T, kArgmax, kColumns>(args, stream);
  }
  launch<C, T, kArgmax, kColumns>(args, stream);
}

// Whether tiles of kFirst columns spend fewer than those of kSecond, with the cost of a tile's start counted as eight.
template <int kFirst, int kSecond>
bool wastes_less(int64_t length) {
  const auto cost = [&](int64_t n) { return ceil_div(std::max<int64_t>(length, 1), n) * (n + 8); };
  return cost(kFirst) < cost(kSecond);
}

// Whether a tile is one piece of memory, of rows short enough to be spread.
bool comes_in_one_piece(const Segments& side) {
  const SegmentStride& stride = side.segment_stride;
  return !side.mask && side.dim % 16 == 0 && side.dim <= kSpreadBytes && follow_one_another(side) &&
         (side.packed() || (stride.outer % 16 == 0 && stride.inner % 16 == 0));
}

// For up to two blocks of query rows.
template <int kAtoms, class T, bool kArgmax, Columns kColumns>
void launch_lean(const ForwardArgs& args, cudaStream_t stream) {
  const Segments& documents = args.problem.documents;
  // Factors of tokens are fetched by a warp that cannot look up where other documents than padded ones are.
  if constexpr (kStored<T> && (kColumns == Columns::plain || (kColumns == Columns::given && !kArgmax)))
    if (comes_in_one_piece(documents) && (kColumns == Columns::plain || dense(args.problem)))
      return launch_shortest<Sm90Spread, T, kArgmax, kColumns>(args, stream);
  if constexpr (kStored<T>)
    if (documents.dim <= 64) return launch_shortest<Sm90Narrow<T>, T, kArgmax, kColumns>(args, stream);
  if constexpr (!kArgmax && kColumns == Columns::plain && kAtoms == 2)
    if (args.problem.pairing != Pairing::list && args.count >= 32 * current_device().sms)
      return launch_shortest<Sm90Long<kAtoms>, T, kArgmax, kColumns>(args, stream);
  if constexpr (kColumns == Columns::given)
    launch_shortest<Sm90LeanScaled<T>, T, kArgmax, kColumns>(args, stream);
  else
    launch_shortest<Sm90Lean<kAtoms>, T, kArgmax, kColumns>(args, stream);
}

template <int kAtoms, class T, bool kArgmax, Columns kColumns>
void launch_shape(const ForwardArgs& args, cudaStream_t stream) {
  const int64_t blocks = blocks_per_document(args), length = average_length(args.problem.documents);
  if (blocks <= 2) return launch_lean<kAtoms, T, kArgmax, kColumns>(args, stream);
  if (blocks <= 4) {
    if constexpr (kStored<T> && !kArgmax) return launch_shortest<Sm90MiddleStored, T, kArgmax, kColumns>(args, stream);
    if (wastes_less<112, 128>(length))
      return launch_shortest<Sm90Middle<kAtoms, 112>, T, kArgmax, kColumns>(args, stream);
    return launch_shortest<Sm90Middle<kAtoms, 128>, T, kArgmax, kColumns>(args, stream);
  }
  if constexpr (kColumns == Columns::norms) {
    if constexpr (!kArgmax)
      if (dense(args.problem) && !args.partials)
        return launch<Sm90Dense<Sm90Wide<kAtoms, T>, false, Sm90Paired<kAtoms, 104>>, T, kArgmax, kColumns>(args,
                                                                                                            stream);
    if (wastes_less<104, 128>(length)) return launch<Sm90Paired<kAtoms, 104>, T, kArgmax, kColumns>(args, stream);
    launch<Sm90Paired<kAtoms, 128>, T, kArgmax, kColumns>(args, stream);
  } else if constexpr (kArgmax &&
                       kColumns == Columns::given) {  // query rows and more columns have no room in registers
    launch<Sm90Paired<kAtoms, Sm90Wide<kAtoms, T>::N>, T, kArgmax, kColumns>(args, stream);
  } else {
    launch_shortest<Sm90Wide<kAtoms, T>, T, kArgmax, kColumns>(args, stream);
  }
}

template <int kAtoms, class T, Columns kColumns>
void launch_form(const ForwardArgs& args, cudaStream_t stream) {
  args.argmax ? launch_shape<kAtoms, T, true, kColumns>(args, stream)
              : launch_shape<kAtoms, T, false, kColumns>(args, stream);
}

template <int kAtoms, class T>
void select_norms(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.normalize ? launch_form<kAtoms, T, Columns::norms>(args, stream)
                         : launch_form<kAtoms, T, Columns::plain>(args, stream);
}

// As `launch_shape`, of loose rows.
template <class T, bool kArgmax, Columns kColumns>
void launch_loose(const ForwardArgs& args, cudaStream_t stream) {
  const int64_t blocks = blocks_per_document(args);
  if (blocks <= 2) return launch<Sm90LooseLean, T, kArgmax, kColumns>(args, stream);
  if (blocks <= 4) return launch<Sm90LooseMiddle, T, kArgmax, kColumns>(args, stream);
  launch<Sm90LoosePaired, T, kArgmax, kColumns>(args, stream);
}

template <class T, Columns kColumns>
void select_loose_form(const ForwardArgs& args, cudaStream_t stream) {
  args.argmax ? launch_loose<T, true, kColumns>(args, stream) : launch_loose<T, false, kColumns>(args, stream);
}

template <class T>
void select_loose(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.normalize ? select_loose_form<T, Columns::norms>(args, stream)
                         : select_loose_form<T, Columns::plain>(args, stream);
}

// Whether document rows begin anywhere, or query rows do. What has other memory between its features is left to loads.
bool loose(const Problem& problem) {
  return problem.documents.feature_stride == 1 && !(maps(problem.queries) && maps(problem.documents));
}

template <class T>
void select_dim(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.queries.dim <= kAtom<T> ? select_norms<1, T>(args, stream) : select_norms<2, T>(args, stream);
}

// A factor that all documents share can wait for the maximum.
bool one_factor(const TokenFactor& scale) {
  return !scale || !(scale.block_stride || scale.segment_stride.outer || scale.segment_stride.inner);
}

template <class T>
void select_stored(const ForwardArgs& args, cudaStream_t stream) {
  one_factor(args.problem.documents.scale) ? launch_form<1, T, Columns::plain>(args, stream)
                                           : launch_form<1, T, Columns::given>(args, stream);
}

// As `launch_shape`, of stored documents that are widened.
template <int kAtoms, class T, bool kArgmax, Columns kColumns>
void launch_widened(const ForwardArgs& args, cudaStream_t stream) {
  const int64_t blocks = blocks_per_document(args);
  if (blocks <= 2) {
    constexpr int kPerSm = kArgmax && has_factors(kColumns) ? 1 : 2;
    return launch<Sm90WidenLean<kAtoms, kPerSm>, T, kArgmax, kColumns>(args, stream);
  }
  if (blocks <= 4) return launch<Sm90WidenMiddle<kAtoms>, T, kArgmax, kColumns>(args, stream);
  launch<Sm90WidenPaired<kAtoms>, T, kArgmax, kColumns>(args, stream);
}

template <class T, bool kArgmax, Columns kColumns>
void select_widened_dim(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.queries.dim <= kAtom<T> ? launch_widened<1, T, kArgmax, kColumns>(args, stream)
                                       : launch_widened<2, T, kArgmax, kColumns>(args, stream);
}

template <class T, Columns kColumns>
void select_widened_form(const ForwardArgs& args, cudaStream_t stream) {
  args.argmax ? select_widened_dim<T, true, kColumns>(args, stream)
              : select_widened_dim<T, false, kColumns>(args, stream);
}

template <class T>
void select_widened(const ForwardArgs& args, cudaStream_t stream) {
  if (args.problem.documents.minimum) return select_widened_form<T, Columns::affine>(args, stream);
  one_factor(args.problem.documents.scale) ? select_widened_form<T, Columns::plain>(args, stream)
                                           : select_widened_form<T, Columns::given>(args, stream);
}

// Whether document tokens may be the rows of products: integers of which the affine ones are unsigned and no others,
// under one block of query tokens. They are widened by fewer instructions, to the same bits.
bool turned(const ForwardArgs& args) {
  const Segments& documents = args.problem.documents;
  return documents.dtype == (documents.minimum ? DType::u8 : DType::s8) && blocks_per_document(args) <= 1;
}

template <class T, bool kArgmax, Columns kColumns>
void launch_turned(const ForwardArgs& args, cudaStream_t stream) {
  args.problem.documents.dim <= 64 ? launch<Sm90Turned<64>, T, kArgmax, kColumns>(args, stream)
                                   : launch<Sm90Turned<128>, T, kArgmax, kColumns>(args, stream);
}

template <class T, Columns kColumns>
void select_turned_form(const ForwardArgs& args, cudaStream_t stream) {
  args.argmax ? launch_turned<T, true, kColumns>(args, stream) : launch_turned<T, false, kColumns>(args, stream);
}

template <class T>
void select_turned(const ForwardArgs& args, cudaStream_t stream) {
  if (args.problem.documents.minimum) return select_turned_form<T, Columns::affine>(args, stream);
  one_factor(args.problem.documents.scale) ? select_turned_form<T, Columns::plain>(args, stream)
                                           : select_turned_form<T, Columns::given>(args, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
